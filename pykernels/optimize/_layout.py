"""Memory formats inside a program.

Fused convolutions that are joined by layout-free steps run in channels_last, which the kernels are fastest in. What a
step gives may then lie in memory otherwise than eager's: it goes into layout-free steps as it is, and is put right for
all others and for the result. Where memory is shared and written to, no format is changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.optimize._graph import Graph, Step, Value, mapped, values_in
from pykernels.optimize._kinds import name_of
from pykernels.optimize._patterns import FusedConv

#: Their values don't depend on strides, they succeed whatever these are, and they are no slower in channels_last.
_FREE = frozenset(
    ["add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__",
    "__truediv__", "__rtruediv__", "__neg__", "neg", "relu", "relu6", "sigmoid", "tanh", "silu", "hardswish",
    "hardsigmoid", "hardtanh", "gelu", "elu", "leaky_relu", "mish", "softplus", "celu", "selu", "prelu", "clamp",
    "exp", "log", "sqrt", "rsqrt", "abs", "pow", "__pow__", "square", "cat", "chunk", "split", "__getitem__",
    "narrow", "max_pool2d", "_max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "interpolate",
    "upsample", "pad", "mean", "sum", "amax", "amin", "flatten", "reshape", "batch_norm", "conv2d", "group_norm",
    "softmax", "sigmoid_", "relu_", "tanh_", "add_", "mul_", "sub_", "div_", "__iadd__", "__imul__", "__isub__",
    "hardtanh_", "clamp_", "fn", "max_pool2d_with_indices", "unsqueeze", "maximum", "minimum", "where", "permute",
    "transpose", "linear"]
)  # fmt: skip
#: Those of them that may write, and then return what they wrote to.
_IN_PLACE = frozenset(
    ("relu", "relu_", "relu6", "sigmoid_", "tanh_", "add_", "mul_", "sub_", "div_", "__iadd__", "__imul__", "__isub__",
     "silu", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "elu", "leaky_relu", "clamp_", "mish", "dropout")
)  # fmt: skip


def as_contiguous(t: Tensor) -> Tensor:
    """``t``, copied only where it is not contiguous."""
    return t if t.is_contiguous() else t.contiguous()


def as_channels_last(t: Tensor) -> Tensor:
    """``t``, copied only where it is not in channels_last."""
    return t.contiguous(memory_format=torch.channels_last)


_FIXES = {"contiguous": as_contiguous, "channels_last": as_channels_last}


def settle(graph: Graph) -> None:
    """Decides formats; puts conversions in where they are needed."""
    convs = [s for s in graph.steps if isinstance(s.function, FusedConv)]
    if not convs:
        return
    if _is_shared_and_written(graph) or not _settle_freely(graph, convs):
        for step in convs:
            step.function.channels_last = False
            layout = step.outputs.layout
            step.function.fix = layout if layout in _FIXES else "contiguous"


def _is_free(step: Step) -> bool:
    if isinstance(step.function, FusedConv):
        return True
    return step.kind == "call" and name_of(step.function) in _FREE


def _is_shared_and_written(graph: Graph) -> bool:
    owners: dict[int, set[Value]] = {}
    for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))):
        owners.setdefault(v.storage, set()).add(v)
    overwritten = {s.outputs for s in graph.steps if s.writes and isinstance(s.outputs, Value)}
    for step in graph.steps:
        for v in step.writes:
            name = name_of(step.function)
            if step.kind != "call" or name not in _IN_PLACE or not isinstance(step.outputs, Value):
                return True
            # More than one that no write gave: a view, which another format could turn into a copy.
            if v.storage == -1 or len(owners[v.storage] - overwritten) > 1:
                return True
    seen: dict[int, Value] = {}
    for v in values_in(graph.result):
        if seen.setdefault(v.storage, v) is not v:
            return True
    return any(v.storage == -1 and v.kind != "input" for v in values_in(graph.result))


def _join(graph: Graph, convs: list[Step]) -> None:
    """Marks the convolutions that another follows or precedes with nothing but layout-free steps between."""
    origins: dict[Value, set[Step]] = {}
    for step in graph.steps:
        if not _is_free(step):
            continue
        before = {c for v in step.reads() for c in origins.get(v, ()) if len(v.shape) == 4}
        if isinstance(step.function, FusedConv):
            for c in before:
                c.function.channels_last = step.function.channels_last = True
            before = {step}
        for v in step.results():
            if len(v.shape) == 4:
                origins[v] = before


def _settle_freely(graph: Graph, convs: list[Step]) -> bool:
    _join(graph, convs)
    producers = {v: s for s in graph.steps for v in s.results()}
    strict: set[Step] = set()
    while True:
        tainted = _tainted(graph, strict)
        strange = {
            v
            for s in graph.steps if s in strict or not _is_free(s)
            for v in s.reads() if v in tainted and v.layout not in _FIXES
        } | {v for v in values_in(graph.result) if v in tainted and v.layout not in _FIXES}  # fmt: skip
        if not strange:
            break
        found = {producers[v] for v in strange}
        if any(isinstance(s.function, FusedConv) or s.writes or s in strict for s in found):
            return False
        strict |= found
    _put_right(graph, strict, tainted)
    return True


def _tainted(graph: Graph, strict: set[Step]) -> set[Value]:
    """Values that may lie in memory otherwise than eager's."""
    tainted: set[Value] = set()
    for step in graph.steps:
        if isinstance(step.function, FusedConv) or (
            step not in strict and _is_free(step) and any(v in tainted for v in step.reads())
        ):
            tainted |= set(step.results())
    return tainted


def _put_right(graph: Graph, strict: set[Step], tainted: set[Value]) -> None:
    steps: list[Step] = []
    fixed: dict[Value, Value] = {}
    count = 1 + max(v.index for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))))

    def fix(v: object) -> object:
        if not isinstance(v, Value) or v not in tainted:
            return v
        if v not in fixed:
            fixed[v] = v.like(count + len(fixed))
            steps.append(Step(_FIXES[v.layout], (v,), {}, fixed[v], (), "format"))
        return fixed[v]

    for step in graph.steps:
        if step in strict or not _is_free(step):
            step.args, step.kwargs = mapped(step.args, fix), mapped(step.kwargs, fix)
        steps.append(step)
    graph.result = mapped(graph.result, fix)
    graph.steps = steps
