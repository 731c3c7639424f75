"""The activations. Each entry has a name, a code of the kernel API (its index), a function and a gradient.

A new activation needs an entry here, one in the kernels' table (csrc/common/activation.h), and its formulas for Triton
in `pykernels.ops._triton_activation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops._arguments import check_choice

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One activation: y = ``forward(z, slope)``, where ``slope`` is leaky_relu's negative_slope.

    Its gradient gz = gy y'(z) comes from z, or from y if y determines it; then nobody need keep z. Both gradients are
    differentiable themselves.
    """

    forward: Callable[[Tensor, float], Tensor]
    #: (gy, z, slope) -> gz
    from_input: Callable[[Tensor, Tensor, float], Tensor]
    #: (gy, y, slope) -> gz; None where y does not tell the slope at z.
    from_output: Callable[[Tensor, Tensor, float], Tensor] | None = None
    #: Whether the gradient depends only on z's sign.
    signed: bool = False


def _silu_backward(gy: Tensor, z: Tensor, slope: float) -> Tensor:
    if torch.is_grad_enabled():  # aten.silu_backward has no derivative of its own
        s = torch.sigmoid(z)
        return gy * s * (1 + z * (1 - s))
    return aten.silu_backward(gy, z)


def _mish_backward(gy: Tensor, z: Tensor, slope: float) -> Tensor:
    if torch.is_grad_enabled():  # nor has mish
        gate, s = torch.tanh(F.softplus(z)), torch.sigmoid(z)
        return gy * (gate + z * s * (1 - gate * gate))
    return aten.mish_backward(gy, z)


def _hardsigmoid_backward(gy: Tensor, z: Tensor, slope: float) -> Tensor:
    return torch.where((z <= -3) | (z >= 3), 0, gy / 6)


#: In the order of ``enum class Activation`` in csrc/common/activation.h.
_TABLE = {
    "none": Activation(lambda z, _: z, lambda gy, z, _: gy, lambda gy, y, _: gy),
    "relu": Activation(
        lambda z, _: F.relu(z),
        lambda gy, z, _: aten.threshold_backward(gy, z, 0),
        lambda gy, y, _: aten.threshold_backward(gy, y, 0),
        signed=True,
    ),
    "leaky_relu": Activation(
        lambda z, slope: F.leaky_relu(z, slope),
        lambda gy, z, slope: aten.leaky_relu_backward(gy, z, slope, False),
        lambda gy, y, slope: aten.leaky_relu_backward(gy, y, slope, True),
        signed=True,
    ),
    "elu": Activation(
        lambda z, _: F.elu(z),
        lambda gy, z, _: aten.elu_backward(gy, 1, 1, 1, False, z),
        lambda gy, y, _: aten.elu_backward(gy, 1, 1, 1, True, y),
    ),
    "sigmoid": Activation(
        lambda z, _: torch.sigmoid(z),
        lambda gy, z, _: aten.sigmoid_backward(gy, torch.sigmoid(z)),
        lambda gy, y, _: aten.sigmoid_backward(gy, y),
    ),
    "tanh": Activation(
        lambda z, _: torch.tanh(z),
        lambda gy, z, _: aten.tanh_backward(gy, torch.tanh(z)),
        lambda gy, y, _: aten.tanh_backward(gy, y),
    ),
    "silu": Activation(lambda z, _: F.silu(z), _silu_backward),
    "gelu": Activation(lambda z, _: F.gelu(z), lambda gy, z, _: aten.gelu_backward(gy, z)),
    "hardswish": Activation(lambda z, _: F.hardswish(z), lambda gy, z, _: aten.hardswish_backward(gy, z)),
    "relu6": Activation(
        lambda z, _: F.relu6(z),
        lambda gy, z, _: aten.hardtanh_backward(gy, z, 0, 6),
        lambda gy, y, _: aten.hardtanh_backward(gy, y, 0, 6),
    ),
    "hardsigmoid": Activation(
        lambda z, _: F.relu6(z + 3) / 6,  # F.hardsigmoid has no second derivative
        _hardsigmoid_backward,
        lambda gy, y, _: torch.where((y <= 0) | (y >= 1), 0, gy / 6),
    ),
    "mish": Activation(lambda z, _: F.mish(z), _mish_backward),
    "gelu_tanh": Activation(
        lambda z, _: F.gelu(z, approximate="tanh"), lambda gy, z, _: aten.gelu_backward(gy, z, approximate="tanh")
    ),
    "softplus": Activation(
        lambda z, _: F.softplus(z),
        lambda gy, z, _: aten.softplus_backward(gy, z, 1, 20),
        lambda gy, y, _: gy * -torch.expm1(-y),
    ),
}

ACTIVATIONS = tuple(_TABLE)
"""The names that ``activation`` may have, from "none" on."""


def activation_code(op: str, activation: str) -> int:
    """The kernel API's number of an activation. ValueError names the op and the choices."""
    check_choice(op, "activation", activation, ACTIVATIONS)
    return ACTIVATIONS.index(activation)


def apply_activation(z: Tensor, activation: str, negative_slope: float = 0.01) -> Tensor:
    """``activation`` as plain PyTorch; ``negative_slope`` is leaky_relu's."""
    return _TABLE[activation].forward(z, negative_slope)


def is_signed(activation: str) -> bool:
    """Whether the gradient depends only on the sign of the activation's input."""
    return _TABLE[activation].signed


def output_tells(activation: str, slope: float) -> bool:
    """Whether the output determines the gradient. leaky_relu's does not if a slope <= 0 has folded the signs."""
    return _TABLE[activation].from_output is not None and (activation != "leaky_relu" or slope > 0)


def activation_backward(gy: Tensor, activation: str, slope: float, y: Tensor | None, z: Callable[[], Tensor]) -> Tensor:
    """The gradient of the activation's input: from its output ``y``, or, if that is None, from its input ``z()``."""
    entry = _TABLE[activation]
    if activation == "none":
        return gy
    if y is None:
        return entry.from_input(gy, z(), slope)
    if entry.from_output is None:
        raise AssertionError(f"the output of {activation} does not tell its gradient")
    return entry.from_output(gy, y, slope)
