"""The nine activations: names, codes of the kernel API (their index), reference functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

#: In the order of ``enum class Activation`` in csrc/include/pykernels/activation.h.
ACTIVATIONS = ("none", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "silu", "gelu", "hardswish")

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


def activation_code(op: str, activation: str) -> int:
    """The kernel API's number of an activation. ValueError names the op and the choices."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"pykernels.{op}: activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return ACTIVATIONS.index(activation)


def apply_activation(x: torch.Tensor, activation: str, negative_slope: float = 0.01) -> torch.Tensor:
    """``activation`` as plain PyTorch; ``negative_slope`` is leaky_relu's."""
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    return _FUNCTIONS[activation](x)
