"""What PyTorch needs to know of int8_conv2d: its shape without data, that it has no gradient, plain PyTorch for a CPU.

The schema is in csrc/torch/cpu/int8_conv2d.cpp, the CUDA implementation in csrc/torch/cuda/int8_conv2d.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.conv_bn_act.arguments import Geometry, output_size
from pykernels.ops.int8_conv2d.reference import int8_conv2d_reference
from pykernels.ops.int8_matmul.autograd import refuse_backward


def _fake(
    x: torch.Tensor, weight: torch.Tensor, scale: Any, shift: Any, residual: Any, residual_scale: Any,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, activation: Any,
    negative_slope: Any, y_scale: Any, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    top, left, bottom, right = padding
    g = Geometry((stride[0], stride[1]), (top, left, bottom, right), (dilation[0], dilation[1]), groups)
    p, q = output_size(x.shape[2], x.shape[3], weight.shape[2:], g)
    y = x.new_empty((x.shape[0], weight.shape[0], p, q), dtype=out_dtype)
    return y.to(memory_format=suggest_memory_format(x))


def _on_cpu(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None,
    residual: torch.Tensor | None, residual_scale: float, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, activation: int, negative_slope: float, y_scale: float,
    out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    top, left, bottom, right = padding
    y = int8_conv2d_reference(
        F.pad(x, (left, right, top, bottom)), weight, scale, shift, residual=residual, residual_scale=residual_scale,
        stride=tuple(stride), dilation=tuple(dilation), groups=groups, activation=ACTIVATIONS[activation],
        negative_slope=negative_slope, out_scale=y_scale, out_dtype=out_dtype,
    )  # fmt: skip
    return y.contiguous(memory_format=suggest_memory_format(x))


if _native.error is None:
    torch.library.register_fake("pykernels::int8_conv2d", _fake)
    torch.library.register_autograd("pykernels::int8_conv2d", refuse_backward("int8_conv2d"))
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _library.impl("int8_conv2d", _on_cpu, "CPU")
