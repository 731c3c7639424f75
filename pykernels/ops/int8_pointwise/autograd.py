"""What PyTorch needs to know of the native ops: shapes without data, and that there is no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.ops.int8_matmul.autograd import refuse_backward
from pykernels.ops.int8_pointwise.reference import in_format_of


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return in_format_of(x.new_empty(x.shape, dtype=dtype), x)


def _fake_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return _empty(x, torch.int8)


def _fake_dequantize(q: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    return _empty(q, dtype)


def _fake_first(first: Tensor, *_: Any) -> Tensor:
    return _empty(first, torch.int8)


def _fake_affine(x: list[Tensor], *_: Any) -> Tensor:
    shape = x[0].shape[0], sum(t.shape[1] for t in x), *x[0].shape[2:]
    return in_format_of(x[0].new_empty(shape), x[0])


def _fake_out(*_: Any) -> None:
    """Only writes."""


def _register() -> None:
    for name, fake in (
        ("int8_quantize", _fake_quantize),
        ("int8_dequantize", _fake_dequantize),
        ("int8_add", _fake_first),
        ("int8_lookup", _fake_first),
        ("int8_affine", _fake_affine),
    ):
        torch.library.register_fake(f"pykernels::{name}", fake)
        torch.library.register_autograd(f"pykernels::{name}", refuse_backward(name))
        torch.library.register_fake(f"pykernels::{name}_out", _fake_out)


if _native.error is None:
    _register()
