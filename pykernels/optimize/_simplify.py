"""Drops steps that nothing reads and duplicates, and reuses memory for sums and activations."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, is_torchs, mapped, values_in
from pykernels.optimize._group_norms import GroupNorm
from pykernels.optimize._kinds import PARTS, PURE, WITH_FLAG, name_of
from pykernels.optimize._layer_norms import LayerNorm
from pykernels.optimize._norms import is_norm
from pykernels.optimize._patterns import constant_norm
from pykernels.optimize._shuffles import Shuffle
from pykernels.optimize._squeeze import is_squeeze, squeeze_excite_
from pykernels.optimize._torchs import batch_norm_

#: What they return is memory that nothing else has.
_FRESH = frozenset(
    ["conv2d", "batch_norm", "linear", "conv_transpose2d", "cat", "max_pool2d", "avg_pool2d", "add", "mul", "sub",
    "__add__", "__mul__", "__sub__", "__radd__", "__rmul__", "relu", "silu", "sigmoid", "hardswish", "hardsigmoid",
    "relu6", "hardtanh", "leaky_relu", "gelu", "elu", "tanh"]
)  # fmt: skip
#: Of one tensor, whatever its sizes.
_NEVER_RAISE = frozenset(
    ["add", "sub", "mul", "div", "true_divide", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow",
    "reciprocal", "sigmoid", "tanh", "relu", "softplus", "clamp", "permute", "transpose", "t", "T", "mT", "unsqueeze",
    "flatten", "sum", "mean", "to", "float", "double", "half", "bfloat16", "softmax", "eq", "ne", "lt", "le", "gt",
    "ge", "detach", "contiguous", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__",
    "__rtruediv__", "__neg__", "__pow__", "size", "silu", "gelu", "hardswish"]
)  # fmt: skip
_UNARY = {"relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_}
_BINARY = {
    "add": torch.Tensor.add_, "__add__": torch.Tensor.add_, "mul": torch.Tensor.mul_, "__mul__": torch.Tensor.mul_,
}  # fmt: skip


def is_pure(step: Step) -> bool:
    """Whether it gives the same for the same arguments, and does nothing else."""
    if step.kind != "call" or step.writes or "out" in step.kwargs:
        return False
    name = name_of(step.function)
    if name == "batch_norm":
        statistics = list(step.args[1:3]) + [step.kwargs.get(k) for k in ("running_mean", "running_var")]
        return is_torchs(step.function, name) and not any(isinstance(v, Value) for v in statistics)
    return name in PURE


def drop_dead(graph: Graph) -> bool:
    """Takes out the pure steps that nothing reads. Might any of them raise for other sizes?"""
    unsure = False
    needed = set(values_in(graph.result))
    kept: list[Step] = []
    for step in reversed(graph.steps):
        # The model may have counted the parts: to take them apart fails where there is another number of them.
        counts = name_of(step.function) in PARTS
        if is_pure(step) and not counts and not any(v in needed for v in step.results()):
            unsure |= len(set(step.reads())) > 1 or name_of(step.function) not in _NEVER_RAISE
            continue
        needed |= set(step.reads())
        kept.append(step)
    graph.steps = kept[::-1]
    return unsure


def drop_duplicates(graph: Graph) -> None:
    """Takes out pure steps that do what an earlier one did, unless their result is handed out or written to."""
    written = {v.storage for s in graph.steps for v in s.writes}
    returned = {v.storage for v in values_in(graph.result)}
    handed = {v.storage for s in graph.steps if s.kind != "call" for v in s.reads()}
    known: dict[Hashable, Step] = {}
    same: dict[Value, Value] = {}
    steps: list[Step] = []

    def current(x: Any) -> Any:
        return same.get(x, x) if isinstance(x, Value) else x

    for step in graph.steps:
        if same:
            step.args, step.kwargs = mapped(step.args, current), mapped(step.kwargs, current)
        storages = {v.storage for v in (*step.reads(), *step.results())}
        kept = {v.storage for v in step.results()} & (returned | handed)
        if is_pure(step) and not storages & written and not kept:
            key = step.function, _frozen(step.args), _frozen(step.kwargs)
            first = known.setdefault(key, step)
            if first is not step:
                same.update(zip(step.results(), first.results(), strict=True))
                continue
        steps.append(step)
    graph.steps = steps


def _frozen(x: Any) -> Hashable:
    if isinstance(x, tuple | list):
        return type(x), tuple(_frozen(i) for i in x)
    if isinstance(x, dict):
        return dict, tuple((_frozen(k), _frozen(v)) for k, v in x.items())
    if isinstance(x, slice):
        return slice, _frozen((x.start, x.stop, x.step))
    return type(x), repr(x) if isinstance(x, float) else id(x) if isinstance(x, Value) else x


def reuse_memory(graph: Graph) -> None:
    """Lets sums and activations write into their first operand, where nobody reads that later and it is only ours."""
    by_storage: dict[int, set[Value]] = {}
    for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))):
        by_storage.setdefault(v.storage, set()).add(v)
    # What can't be inspected may keep what it is given.
    kept = {v for s in graph.steps if s.kind == "opaque" for v in s.reads()}
    fresh = {s.outputs for s in graph.steps if is_fresh(s) and isinstance(s.outputs, Value)} - kept
    left = {v: len(readers) for v, readers in graph.users().items()}
    for step in graph.steps:
        for v in step.reads():
            left[v] -= 1
        x = step.args[0] if step.args else None
        out = step.outputs
        if not isinstance(x, Value) or not isinstance(out, Value) or step.writes or step.kind != "call":
            continue
        alike = (out.shape, out.dtype, out.stride) == (x.shape, x.dtype, x.stride) and out.layout != "other"
        if x not in fresh or left[x] or by_storage[x.storage] != {x} or not alike:
            continue
        function = _in_place(step)
        if function is None:
            continue
        step.function, step.writes = function, (x,)
        fresh |= {out} - kept
        moved = by_storage.pop(out.storage)
        for v in moved:
            v.storage = x.storage
        # x is gone: what is written to next is whoever has its memory now.
        by_storage[x.storage] = moved


def is_fresh(step: Step) -> bool:
    """Is its output memory that nothing else has?"""
    if isinstance(step.function, FusedConv | GroupNorm | LayerNorm | Shuffle) or is_norm(step) or is_squeeze(step):
        return True
    return step.kind == "call" and not step.writes and name_of(step.function) in _FRESH


def _in_place(step: Step) -> Any:
    """What does the same as ``step`` into its first argument; None if nothing does."""
    if is_squeeze(step):
        return squeeze_excite_
    name = name_of(step.function)
    if not is_torchs(step.function, name):
        return None
    norm = constant_norm(step)
    if norm is not None:
        step.args, step.kwargs = norm, {}
        return batch_norm_
    if name in _UNARY and len(step.args) == 1 and not step.kwargs:
        return _UNARY[name]
    if name in WITH_FLAG and step.function is getattr(F, name) and set(step.kwargs) <= {"inplace", *_OPTIONS}:
        options = {k: v for k, v in step.kwargs.items() if k != "inplace"}
        names = ("input", *_OPTIONS_OF.get(name, ()))
        if len(step.args) > len(names):
            return None
        options.update(zip(names[1:], step.args[1:], strict=False))
        step.args, step.kwargs = step.args[:1], {}
        return partial(step.function, **options, inplace=True)
    if name in _BINARY and len(step.args) == 2 and not step.kwargs:
        other = step.args[1]
        same = isinstance(other, Value) and (other.shape, other.dtype) == (step.outputs.shape, step.outputs.dtype)
        return _BINARY[name] if same and other is not step.args[0] else None
    return None


_OPTIONS_OF = {"hardtanh": ("min_val", "max_val"), "leaky_relu": ("negative_slope",), "elu": ("alpha",)}
_OPTIONS = tuple(o for options in _OPTIONS_OF.values() for o in options)
