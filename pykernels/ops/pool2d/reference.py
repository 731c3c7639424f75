"""The pools in plain PyTorch. Every test compares with them, and they run where there is no kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pykernels.ops.pool2d.arguments import PoolCall


def reference(x: Tensor, call: PoolCall) -> Tensor:
    """A pool of arguments that have been checked, on any device, of any floating dtype."""
    if call.kernel_size == (0, 0):
        return F.adaptive_avg_pool2d(x, 1)
    if call.average:
        divisor = call.divisor or None
        return F.avg_pool2d(
            x, call.kernel_size, call.stride, call.padding, call.ceil_mode, call.count_include_pad, divisor
        )
    return F.max_pool2d(x, call.kernel_size, call.stride, call.padding, call.dilation, call.ceil_mode)
