"""Which of the kernels' activations a step of torch's applies, and how torch applies each of them in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.optimize._graph import Step, Value, bound, is_torchs

_IN_PLACE: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None, "relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_, "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"), "softplus": F.softplus,
    **{f.__name__: partial(f, inplace=True) for f in (F.elu, F.silu, F.hardswish, F.relu6, F.hardsigmoid, F.mish)},
}  # fmt: skip
_PLAIN = ("relu", "sigmoid", "tanh", "silu", "hardswish", "relu6", "hardsigmoid", "mish")
_MULTIPLY = ("mul", "__mul__", "__rmul__", "multiply")
_BOUNDS = {
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "clamp_max": ("input", "max"),
}
#: The steps that make a gate of x, for which x times the gate is an activation; "*" by some number.
_GATES = {
    ("sigmoid",): "silu", ("*", "sigmoid"): "silu", ("softplus", "tanh"): "mish", ("hardsigmoid",): "hardswish",
    ("+3", "relu6", "/6"): "hardswish", ("exp", "log1p", "tanh"): "mish",
}  # fmt: skip
_LONGEST_GATE = max(map(len, _GATES))


class Act(NamedTuple):
    """An activation of the kernels: its name and its constants."""

    name: str
    #: leaky_relu's.
    slope: float = 0.01
    #: In the place of the usual ones: elu's alpha, relu6's bounds, silu's factor in the sigmoid, softplus' beta.
    constants: tuple[float, ...] = ()
    #: Of leaky_relu, for each channel or for all: then it is PReLU.
    slopes: Value | None = None

    def title(self) -> str:
        """Its name in the report."""
        if self.slopes is not None:
            return "prelu"
        return {"relu6": "clamp", "silu": "quick_gelu"}.get(self.name, self.name) if self.constants else self.name

    def in_place(self, values: Mapping[Value, Any]) -> Callable[[Tensor], Tensor] | None:
        """torch's function that applies it to a tensor that nobody else has; None if there is none."""
        if self.slopes is not None:
            return partial(F.prelu, weight=values.get(self.slopes, self.slopes.tensor).detach())
        if self.name == "leaky_relu":
            return partial(F.leaky_relu, negative_slope=self.slope, inplace=True)
        if not self.constants:
            return _IN_PLACE[self.name]
        first, last = self.constants[0], self.constants[-1]
        if self.name == "elu":
            return partial(F.elu, alpha=first, inplace=True)
        if self.name == "softplus":
            return partial(F.softplus, beta=first)
        if self.name == "relu6":
            return partial(torch.clamp_, min=first, max=last)
        return lambda x: x.mul_(torch.sigmoid(x * first))


def activation_of(step: Step) -> Act | None:
    """The activation that ``step`` applies to its one tensor; PReLU has its slopes besides."""
    name = getattr(step.function, "__name__", "")
    base = name.removesuffix("_")
    if not is_torchs(step.function, name):
        return None
    if base in _PLAIN:
        rest = {k: v for k, v in step.kwargs.items() if k not in ("input", "inplace")}
        return Act(base) if not rest and len(step.args) <= 2 else None
    if base in _BOUNDS:
        return _bounded(base, bound(step, _BOUNDS[base]))
    if base == "leaky_relu":
        slope = bound(step, ("input", "negative_slope", "inplace")).get("negative_slope", 0.01)
        return Act(base, float(slope)) if type(slope) in (int, float) else None
    if base == "prelu":
        slopes = bound(step, ("input", "weight")).get("weight")
        return Act("leaky_relu", slopes=slopes) if isinstance(slopes, Value) else None
    if base == "elu":
        given = bound(step, ("input", "alpha", "inplace"))
        alpha = given.get("alpha", 1.0)
        whole = type(alpha) in (int, float) and not {"scale", "input_scale"} & set(given) and len(step.args) <= 3
        return (Act(base) if alpha == 1 else Act(base, constants=(float(alpha),))) if whole else None
    if base == "softplus":
        return _softplus(bound(step, ("input", "beta", "threshold")))
    if base == "gelu" and len(step.args) < 2:
        how = step.kwargs.get("approximate", "none")
        return {"none": Act("gelu"), "tanh": Act("gelu_tanh")}.get(how) if type(how) is str else None
    return None


def _softplus(given: dict[str, Any]) -> Act | None:
    """With a threshold from which on it is x to float32's precision."""
    beta, threshold = given.get("beta", 1), given.get("threshold", 20)
    if any(type(n) not in (int, float) for n in (beta, threshold)) or not (0 < beta < math.inf and threshold >= 20):
        return None
    return Act("softplus") if beta == 1 else Act("softplus", constants=(float(beta),))


def _bounded(base: str, given: dict[str, Any]) -> Act | None:
    """A clamp: whatever keeps values between two numbers, or above or below one."""
    if base == "hardtanh":
        low, high = given.get("min_val", -1.0), given.get("max_val", 1.0)
    else:
        low, high = given.get("min"), given.get("max")
    if any(b is not None and type(b) not in (int, float) for b in (low, high)) or low is high is None:
        return None
    bounds = float(-math.inf if low is None else low), float(math.inf if high is None else high)
    if any(map(math.isnan, bounds)):
        return None
    usual = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}.get(bounds)
    return Act("relu6", constants=bounds) if usual is None else Act(usual)


def written_out(
    value: Value, users: Sequence[Step | None], users_of: dict[Value, list[Step | None]]
) -> tuple[list[Step], Act] | None:
    """The steps that write out an activation of ``value``, and the activation; None if ``users`` begin none.

    Such as ``x * sigmoid(x)``, quick GELU, ``x * tanh(softplus(x))``, and ``x * relu6(x + 3) / 6`` in its orders.
    """
    if len(users) != 2 or any(s is None or s.kind != "call" for s in users):
        return None
    step, product = users
    steps: list[Step] = []
    words: list[str] = []
    number, before = 1.0, value
    while step is not product:
        word, factor = ("", 1.0) if step is None else _gate_step(step, before)
        # What it writes to, if anything, is its own.
        if step is None or not word or len(words) == _LONGEST_GATE or any(v is value for v in step.writes):
            return None
        words.append(word)
        steps.append(step)
        number, before = number * factor, step.outputs
        following = users_of.get(before, [])
        if len(following) != 1:
            return None
        step = following[0]
    if product is None or product.kwargs or not is_torchs(product.function, *_MULTIPLY):
        return None
    if list(product.args) not in ([value, before], [before, value]):
        return None
    steps.append(product)
    name = _GATES.get(tuple(words))
    if words == ["+3", "relu6"]:  # the sixth is taken of the product
        last = users_of.get(product.outputs, [])
        if len(last) == 1 and last[0] is not None and _gate_step(last[0], product.outputs)[0] == "/6":
            steps.append(last[0])
            name = "hardswish"
    if name is None or any(s.writes or not isinstance(s.outputs, Value) for s in steps[len(words) :]):
        return None
    return steps, Act(name, constants=(number,)) if words[0] == "*" else Act(name)


def _gate_step(step: Step, x: Value) -> tuple[str, float]:
    """What ``step`` does to x, in the words of `_GATES`, and the factor of "*"."""
    nothing = "", 1.0
    if step.kind != "call" or list(step.reads()) != [x] or not step.args or step.args[0] is not x:
        return nothing
    name = getattr(step.function, "__name__", "")
    if is_torchs(step.function, "exp", "log1p"):
        return (name, 1.0) if len(step.args) == 1 and not step.kwargs else nothing
    if is_torchs(step.function, *_MULTIPLY, "add", "__add__", "__radd__", "div", "__truediv__", "true_divide"):
        by = step.args[1] if len(step.args) == 2 and not step.kwargs else None
        if type(by) not in (int, float) or by is None or not math.isfinite(by):
            return nothing
        if name in _MULTIPLY:
            return ("/6", 1.0) if abs(6 * by - 1) < 1e-7 else ("*", float(by))
        if "add" in name:
            return ("+3", 1.0) if by == 3 else nothing
        return ("/6", 1.0) if by == 6 else nothing
    act = activation_of(step)
    return nothing if act is None or act.constants or act.slopes is not None else (act.name, 1.0)
