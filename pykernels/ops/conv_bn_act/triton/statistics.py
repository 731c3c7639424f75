"""conv_statistics in Triton: z = conv2d(x, weight) + bias, then the mean and variance of z's channels.

Two kernels one after the other: z is read once more. (In CUDA C++ the convolution's epilogue leaves the statistics.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pykernels.ops._triton import triton_op
from pykernels.ops.batch_norm_act.triton import batch_norm_statistics
from pykernels.ops.conv_bn_act.statistics import backward, setup_context
from pykernels.ops.conv_bn_act.triton import conv_bn_act


@triton_op("pykernels::conv_statistics_triton")
def conv_statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.conv_statistics`` in Triton."""
    z = conv_bn_act(x, weight, None, bias, None, stride, padding, dilation, groups, 0, 0.0, tf32)
    mean, var = batch_norm_statistics(z, None, None, 0.0)
    return z, mean, var


conv_statistics.register_autograd(backward, setup_context=setup_context)
