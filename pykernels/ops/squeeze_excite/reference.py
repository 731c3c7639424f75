"""squeeze_excite in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.int8_pointwise.reference import in_format_of, rounded
from pykernels.ops.squeeze_excite.arguments import NEGATIVE_SLOPE, Grids, SqueezeCall


def reference(x: Tensor, call: SqueezeCall) -> Tensor:
    """Squeeze-and-excitation of arguments that have been checked, on any device, of any floating dtype."""
    return x * _gates(x.mean((-2, -1)), call)[..., None, None]


def int8_reference(x: Tensor, call: SqueezeCall, grids: Grids) -> Tensor:
    """The same of int8 maps: their sums are exact, and the rest is computed in the weights' dtype, float32 at least."""
    wide = torch.promote_types(call.reduce_weight.dtype, torch.float32)
    call = SqueezeCall._make(t.to(wide) if isinstance(t, Tensor) else t for t in call)
    sums = (x.double() - grids.x_zero_point).sum((-2, -1)).to(wide)
    gates = _gates(sums / float(x.shape[-2] * x.shape[-1]) * grids.x_scale, call)
    factors = gates * grids.x_scale * (1.0 / grids.out_scale)
    y = rounded((x.to(wide) - grids.x_zero_point) * factors[..., None, None], grids.out_zero_point)
    return in_format_of(y, x)


def _gates(means: Tensor, call: SqueezeCall) -> Tensor:
    weights = call.reduce_weight.flatten(1), call.expand_weight.flatten(1)
    hidden = F.linear(means, weights[0], call.reduce_bias)
    hidden = apply_activation(hidden, ACTIVATIONS[call.activation], NEGATIVE_SLOPE)
    return apply_activation(F.linear(hidden, weights[1], call.expand_bias), ACTIVATIONS[call.gate], NEGATIVE_SLOPE)
