"""What torch must know of the native ops: shapes without data, autocast, and that there is no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.ops._autocast import register_autocast
from pykernels.ops.int8_matmul.autograd import refuse_backward


def _fake(x: Tensor, weight: Tensor, scale: Any, bias: Any, activation: int) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _fake_pack(weight: Tensor, scale: Any, bias: Any) -> Tensor:
    # csrc/cpu/weight_only_linear/layout.h: rows are rounded up to the panels of the instruction set, which a trace does
    # not know.
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


def _fake_packed(x: Tensor, packed: Tensor, n: Any, activation: int) -> Tensor:
    return x.new_empty((x.shape[0], n))


def _register() -> torch.library.Library:
    library = torch.library.Library("pykernels", "FRAGMENT")
    torch.library.register_fake("pykernels::weight_only_linear_pack", _fake_pack)
    for name, fake in (("weight_only_linear", _fake), ("weight_only_linear_packed", _fake_packed)):
        torch.library.register_fake(f"pykernels::{name}", fake)
        torch.library.register_autograd(f"pykernels::{name}", refuse_backward("weight_only_linear"))
        register_autocast(library, name, casts=(0,))
    return library


# Torch drops what a Library registered when the Library dies.
_library = _register() if _native.error is None else None
