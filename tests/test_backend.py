"""Choosing a backend: explicit means explicit, auto falls back and says so once."""

from __future__ import annotations

import logging

import pytest
import torch

import pykernels as pk
from pykernels import _backend, _native


@pytest.fixture
def call():
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    return lambda **kwargs: pk.ops.conv_bn_act(x, w, **kwargs)


def test_an_unknown_name():
    with (
        pytest.raises(ValueError, match=r"backend: expected one of auto, cpu, cuda, triton, reference; got 'gpu'"),
        pk.backend("gpu"),
    ):
        pass


def test_an_unknown_name_per_call(call):
    with pytest.raises(ValueError, match="got 'gpu'"):
        call(backend="gpu")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_is_not_built_raises_and_says_why(call, name):
    with pytest.raises(RuntimeError, match=rf"conv_bn_act: backend='{name}' cannot run: "):
        call(backend=name)


def test_blocks_nest_and_end(call):
    with pk.backend("cuda"):
        with pk.backend("reference"):
            call()
        with pytest.raises(RuntimeError):
            call()
    call()


def test_a_call_overrides_its_block(call):
    with pk.backend("cuda"):
        assert call(backend="reference").shape == (1, 4, 4, 4)


def test_an_explicit_backend_refuses_a_dtype_it_has_not():
    x, w = torch.randn(1, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"its kernels take torch.float32, torch.bfloat16, not torch.float64"):
        pk.ops.conv_bn_act(x, w, backend="cpu")


def test_an_explicit_backend_refuses_another_device():
    x, w = torch.randn(1, 3, 6, 6, device="meta"), torch.randn(4, 3, 3, 3, device="meta")
    with pytest.raises(RuntimeError, match="its tensors are on 'meta'"):
        pk.ops.conv_bn_act(x, w, backend="cpu")


def test_auto_falls_back_and_tells_it_once(call, monkeypatch, caplog):
    monkeypatch.setattr(_native, "error", "the native library is not built")
    monkeypatch.setattr(_backend, "_told", set())
    with caplog.at_level(logging.WARNING, logger="pykernels"):
        call(), call()
    assert [r.getMessage() for r in caplog.records] == [
        "conv_bn_act: the native library is not built; using the reference"
    ]
