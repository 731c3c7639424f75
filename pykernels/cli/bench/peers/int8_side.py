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


def load(row: Row, folder: Path, threads: int, *, how: str) -> Loaded:
    """``how`` is the contender's name; a trailing ``_t`` holds the weight as (N, K), transposed by a view."""
    torch.set_num_threads(threads)
    module, _ = build(row)
    (a,) = (torch.from_numpy(x) for x in arrays_of(folder / "inputs.npz"))
    weight: Any = module.weight
    start = time.perf_counter()
    if how.endswith("_t"):
        weight = weight.t().contiguous().t()
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    if how.startswith("int8_ours"):
        from pykernels import _native

        if _native.error is not None:
            raise RuntimeError(_native.error)
        multiply = importlib.import_module("pykernels.ops").int8_matmul
    elif how == "linear_f32":
        a, weight, multiply = a.float(), weight.t().contiguous().float(), F.linear
    else:
        multiply = torch._int_mm
    load_s = time.perf_counter() - start

    def call() -> torch.Tensor:
        with torch.no_grad():
            return multiply(a, weight)

    return Loaded(call, lambda result: [result.numpy()], load_s)
