"""What torch must know of the native ops: shapes without data, autocast, and that there is no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.ops._autocast import register_autocast
from pykernels.ops.int8_matmul.autograd import refuse_backward


def _like(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


def _sequences(x: Tensor, h0: Tensor, bidirectional: bool) -> tuple[Tensor, Tensor, Tensor]:
    width = h0.shape[-1] * (2 if bidirectional else 1)
    return x.new_empty((*x.shape[:-1], width)), _like(h0), _like(h0)


def _fake(
    x: Tensor, h0: Tensor, c0: Tensor, weights: Any, scales: Any, batch_sizes: Any, num_layers: int,
    bidirectional: bool, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _sequences(x, h0, bidirectional)


def _fake_pack(
    weights: list[Tensor], scales: Any, num_layers: int, bidirectional: bool, has_bias: bool,
    weight_only: bool = False,
) -> Tensor:  # fmt: skip
    # csrc/cpu/int8_lstm/layout.h: hidden units are rounded up to the vectors of the instruction set, which a trace does
    # not know.
    return weights[0].new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


def _fake_packed(
    x: Tensor, h0: Tensor, c0: Tensor, packed: Tensor, input_size: int, hidden_size: int, batch_sizes: Any,
    num_layers: int, bidirectional: bool, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _sequences(x, h0, bidirectional)


def _fake_cell(x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(h), _like(c)


def _register() -> torch.library.Library:
    fakes: dict[str, Any] = {
        "int8_lstm": _fake,
        "int8_lstm_pack": _fake_pack,
        "int8_lstm_packed": _fake_packed,
        "int8_lstm_cell": _fake_cell,
        "int8_lstm_cell_packed": _fake_cell,
    }
    library = torch.library.Library("pykernels", "FRAGMENT")
    for name, fake in fakes.items():
        torch.library.register_fake(f"pykernels::{name}", fake)
        if name != "int8_lstm_pack":
            torch.library.register_autograd(f"pykernels::{name}", refuse_backward(name.removesuffix("_packed")))
            register_autocast(library, name, casts=(0, 1, 2))
    return library


# Torch drops what a Library registered when the Library dies.
_library = _register() if _native.error is None else None
