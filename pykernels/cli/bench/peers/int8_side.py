"""Loads the int8 products that run inside PyTorch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .contenders import Loaded
from .exported import arrays_of
from .rows import Row
from .subjects import build

Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def load(row: Row, folder: Path, threads: int, *, how: str) -> Loaded:
    """``how`` is the contender's name; a trailing ``_t`` holds the weight as (N, K), transposed by a view."""
    torch.set_num_threads(threads)
    module, _ = build(row)
    (a,) = (torch.from_numpy(x) for x in arrays_of(folder / "inputs.npz"))
    weight: Any = module.weight
    start = time.perf_counter()
    if how.endswith("_t"):
        weight = weight.t().contiguous().t()
    multiply: Multiply
    if how.startswith("int8_ours"):
        from pykernels import _native

        if _native.error is not None:
            raise RuntimeError(_native.error)
        multiply = importlib.import_module("pykernels.ops").int8_matmul
    elif how == "int8_packed":
        multiply, weight = _packed(weight)
    elif how == "qlinear":
        # The form that oneDNN is fast in: a unsigned, with its zero point in the middle.
        a, multiply = (a.int() + 128).to(torch.uint8), _qlinear(a, weight)
    elif how == "linear_f32":
        a, weight, multiply = a.float(), weight.t().contiguous().float(), F.linear
    else:
        multiply = torch._int_mm
    load_s = time.perf_counter() - start

    def call() -> torch.Tensor:
        with torch.no_grad():
            return multiply(a, weight)

    return Loaded(call, lambda result: [result.numpy()], load_s)


def _packed(weight: torch.Tensor) -> tuple[Multiply, torch.Tensor]:
    from pykernels import _native

    if _native.error is not None:
        raise RuntimeError(_native.error)
    ops, n = torch.ops.pykernels, weight.shape[1]
    product = ops.int8_matmul_packed.default

    def multiply(a: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return product(a, packed, n, None, None, None, None, 0, torch.int32)

    return multiply, ops.int8_pack.default(weight)


def _qlinear(a: torch.Tensor, weight: torch.Tensor) -> Multiply:
    n = weight.shape[1]
    packed = torch.ops.onednn.qlinear_prepack(weight.t().contiguous(), list(a.shape))
    scales, zero_points = torch.ones(n), torch.zeros(n, dtype=torch.int64)
    product = torch.ops.onednn.qlinear_pointwise.default

    def multiply(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return product(a, 1.0, 128, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], "")

    return multiply
