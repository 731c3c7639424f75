"""Which of the kernels' activations a step of torch's is, and how torch runs each of them in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.optimize._graph import Step, Value, bound, is_torchs

#: leaky_relu has a slope besides, and is not among them.
IN_PLACE: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None, "relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_, "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    **{f.__name__: partial(f, inplace=True) for f in (F.elu, F.silu, F.hardswish, F.relu6, F.hardsigmoid, F.mish)},
}  # fmt: skip
_PLAIN = ("relu", "sigmoid", "tanh", "silu", "hardswish", "relu6", "hardsigmoid", "mish")
_MULTIPLY = ("mul", "__mul__", "__rmul__", "multiply")
_BOUNDS = {
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
}


def activation_of(step: Step) -> tuple[str, float] | None:
    """The name and negative_slope of the activation that ``step`` applies to its one tensor."""
    name = getattr(step.function, "__name__", "")
    base = name.removesuffix("_")
    if not is_torchs(step.function, name):
        return None
    if base in _PLAIN:
        rest = {k: v for k, v in step.kwargs.items() if k not in ("input", "inplace")}
        return (base, 0.01) if not rest and len(step.args) <= 2 else None
    if base in _BOUNDS:
        return _bounded(base, bound(step, _BOUNDS[base]))
    if base == "leaky_relu":
        slope = bound(step, ("input", "negative_slope", "inplace")).get("negative_slope", 0.01)
        return (base, float(slope)) if type(slope) in (int, float) else None
    if base == "elu":
        given = bound(step, ("input", "alpha", "inplace"))
        plain = given.get("alpha", 1.0) == 1.0 and not {"scale", "input_scale"} & set(given) and len(step.args) <= 3
        return (base, 0.01) if plain else None
    if base == "gelu" and len(step.args) < 2:
        how = step.kwargs.get("approximate", "none")
        return {"none": ("gelu", 0.01), "tanh": ("gelu_tanh", 0.01)}.get(how) if type(how) is str else None
    return None


def _bounded(base: str, given: dict[str, Any]) -> tuple[str, float] | None:
    """Whatever keeps values between 0 and 6, or above 0."""
    if base == "hardtanh":
        low, high = given.get("min_val", -1.0), given.get("max_val", 1.0)
    else:
        low, high = given.get("min"), given.get("max")
    if type(low) not in (int, float) or low != 0:
        return None
    if high is None:
        return "relu", 0.01
    return ("relu6", 0.01) if type(high) in (int, float) and high == 6 else None


def written_out(value: Value, users: Sequence[Step | None], users_of: dict[Value, list[Step | None]]) -> list[Step]:
    """The two steps of ``x * sigmoid(x)``, if these are the users of ``value``."""
    steps = [s for s in users if s is not None and s.kind == "call" and not s.writes and not s.kwargs]
    if len(users) != 2 or len(steps) != 2:
        return []
    gate, product = steps[0].outputs, steps[1]
    if not is_torchs(steps[0].function, "sigmoid") or not is_torchs(product.function, *_MULTIPLY):
        return []
    if not isinstance(gate, Value) or users_of.get(gate) != [product]:
        return []
    return steps
