"""squeeze_excite in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.squeeze_excite.arguments import NEGATIVE_SLOPE, SqueezeCall


def reference(x: Tensor, call: SqueezeCall) -> Tensor:
    """Squeeze-and-excitation of arguments that have been checked, on any device, of any floating dtype."""
    weights = call.reduce_weight.flatten(1), call.expand_weight.flatten(1)
    hidden = F.linear(x.mean((-2, -1)), weights[0], call.reduce_bias)
    hidden = apply_activation(hidden, ACTIVATIONS[call.activation], NEGATIVE_SLOPE)
    gates = apply_activation(F.linear(hidden, weights[1], call.expand_bias), ACTIVATIONS[call.gate], NEGATIVE_SLOPE)
    return x * gates[..., None, None]
