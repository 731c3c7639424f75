"""What PyTorch needs to know of the native ops: shapes without data, and that there is no gradient.

The schemas are in csrc/torch/cpu/int8_conv2d.cpp, the CUDA implementation in csrc/torch/cuda/int8_conv2d.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.conv_bn_act.arguments import output_size
from pykernels.ops.conv_bn_act.autograd import fake_bound, fake_bound_out, fake_chain_out, fake_linear
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from pykernels.ops.int8_matmul.autograd import refuse_backward


def _fake(x: torch.Tensor, weight: torch.Tensor, scale: Any, shift: Any, residual: Any, *flat: Any) -> torch.Tensor:
    call = Int8ConvCall.of(*flat)
    p, q = output_size(x.shape[2], x.shape[3], weight.shape[2:], call.geometry)
    y = x.new_empty((x.shape[0], weight.shape[0], p, q), dtype=call.out_dtype)
    return y.to(memory_format=suggest_memory_format(x))


def _fake_bind(weight: torch.Tensor, scale: Any, shift: Any, table: Any, *flat: Any) -> torch.Tensor:
    # The size is the layout's business.
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


#: What the fakes give, by op.
_FAKES: dict[str, Any] = {
    "int8_conv2d": _fake,
    "int8_conv_bind": _fake_bind,
    "int8_conv2d_bound": fake_bound,
    "int8_conv2d_bound_out": fake_bound_out,
    "int8_conv2d_chain_out": fake_chain_out,
    "int8_linear_bound": fake_linear,
    "int8_linear_bound_out": fake_bound_out,
}

if _native.error is None:
    for _name, _of in _FAKES.items():
        torch.library.register_fake(f"pykernels::{_name}", _of)
        if not _name.endswith("_out"):  # those return nothing
            torch.library.register_autograd(f"pykernels::{_name}", refuse_backward(_name))
