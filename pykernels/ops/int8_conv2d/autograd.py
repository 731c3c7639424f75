"""What PyTorch needs to know of int8_conv2d: its shape without data, that it has no gradient, plain PyTorch for a CPU.

The schema is in csrc/torch/cpu/int8_conv2d.cpp, the CUDA implementation in csrc/torch/cuda/int8_conv2d.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.conv_bn_act.arguments import output_size
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from pykernels.ops.int8_conv2d.reference import reference
from pykernels.ops.int8_matmul.autograd import refuse_backward


def _fake(x: torch.Tensor, weight: torch.Tensor, scale: Any, shift: Any, residual: Any, *flat: Any) -> torch.Tensor:
    call = Int8ConvCall.of(*flat)
    p, q = output_size(x.shape[2], x.shape[3], weight.shape[2:], call.geometry)
    y = x.new_empty((x.shape[0], weight.shape[0], p, q), dtype=call.out_dtype)
    return y.to(memory_format=suggest_memory_format(x))


def _on_cpu(x: torch.Tensor, weight: torch.Tensor, scale: Any, shift: Any, residual: Any, *flat: Any) -> torch.Tensor:
    return reference(x, weight, scale, shift, residual, Int8ConvCall.of(*flat))


if _native.error is None:
    torch.library.register_fake("pykernels::int8_conv2d", _fake)
    torch.library.register_autograd("pykernels::int8_conv2d", refuse_backward("int8_conv2d"))
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _library.impl("int8_conv2d", _on_cpu, "CPU")
