"""The two ways to a batch norm that this machine can run: the ops in plain PyTorch, and Triton's kernels."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pykernels import _native
from pykernels.ops import batch_norm_act
from tests.harness import DEVICE, triton_reason


def _way(name, monkeypatch):
    reason = triton_reason() if name == "triton" else _native.error
    if reason is not None:
        pytest.skip(reason)
    if name == "triton":
        ops = importlib.import_module("pykernels.ops.batch_norm_act.triton")
        return SimpleNamespace(call=partial(batch_norm_act, backend="triton"), ops=ops, device=DEVICE)
    # On a CPU, too, the public function calls the ops, as it does on CUDA.
    public = importlib.import_module("pykernels.ops.batch_norm_act")  # the name is the function's
    monkeypatch.setattr(public, "choose", lambda *_: "cuda")
    return SimpleNamespace(call=batch_norm_act, ops=torch.ops.pykernels, device="cpu")


@pytest.fixture(params=["plain", "triton"])
def way(request, monkeypatch):
    """The public function, the ops and their device, one way after the other."""
    return _way(request.param, monkeypatch)


@pytest.fixture
def through_the_ops(monkeypatch):
    """The plain way alone."""
    return _way("plain", monkeypatch)


@pytest.fixture
def divided(monkeypatch):
    """Small tiles among several programs, as large tensors get them: the tests' own have one a channel."""
    if triton_reason() is not None:
        pytest.skip(f"needs Triton: {triton_reason()}")
    ops = importlib.import_module("pykernels.ops.batch_norm_act.triton")
    from pykernels.ops.batch_norm_act.triton.config import Config

    config = Config(block_w=16, block_c=8, warps=4, slabs=4, spread=3)
    monkeypatch.setattr(ops, "config", lambda *_: config)


@pytest.fixture(params=["whole", "divided"])
def walk(request):
    if request.param == "divided":
        request.getfixturevalue("divided")
