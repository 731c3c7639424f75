"""Memory formats inside a program.

Fused convolutions with only layout-free steps between them run in channels_last, in which the kernels are fastest. What
a step gives may then lie in memory in another way than eager's. It goes into layout-free steps as it is, and is
converted for all others and for the result. Where memory is shared and written to, no format changes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels.optimize._calls import OurCall
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, bound, mapped, strides_in, values_in
from pykernels.optimize._kinds import WITH_FLAG, WRITES_ELEMENTS, name_of
from pykernels.optimize._norms import is_norm
from pykernels.optimize._squeeze import is_squeeze

#: Their values don't depend on strides, they succeed whatever these are, and they are no slower in channels_last.
#: Without them for the last reason: softmax, log_softmax, instance_norm, einsum, repeat, pixel_unshuffle, unfold,
#: channel_shuffle, and grouped conv_transpose2d. Without them for the first: what sorts.
_FREE = frozenset(
    ["add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__",
    "__truediv__", "__rtruediv__", "__neg__", "neg", "rsub", "addcmul", "addcdiv", "lerp", "true_divide",
    "relu", "relu6", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "hardtanh", "gelu", "elu",
    "leaky_relu", "mish", "softplus", "celu", "selu", "prelu", "clamp", "clamp_min", "clamp_max", "threshold",
    "softsign", "logsigmoid", "tanhshrink", "hardshrink", "softshrink", "glu",
    "exp", "log", "sqrt", "rsqrt", "abs", "pow", "__pow__", "__rpow__", "square", "reciprocal", "sign", "round",
    "floor", "ceil", "sin", "cos", "erf", "log1p", "expm1", "exp2", "log2", "clone", "detach",
    "cat", "concat", "stack", "chunk", "split", "unbind", "__getitem__", "narrow", "select", "index_select",
    "flip", "roll", "expand", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "flatten", "reshape",
    "max_pool2d", "_max_pool2d", "boolean_dispatch", "fn", "max_pool2d_with_indices", "avg_pool2d", "lp_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "upsample", "grid_sample", "pixel_shuffle", "pad",
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "logsumexp", "cumsum", "normalize",
    "maximum", "minimum", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__",
    "__le__", "__gt__", "__ge__", "argmax", "argmin",
    "batch_norm", "conv2d", "conv_transpose2d", "group_norm", "layer_norm", "linear", "matmul", "__matmul__",
    *WRITES_ELEMENTS]
)  # fmt: skip
#: Those of them that may write, and then return what they wrote to.
_IN_PLACE = WRITES_ELEMENTS | {*WITH_FLAG, "dropout", "threshold"}


def as_contiguous(t: Tensor) -> Tensor:
    """``t``, copied only where it is not contiguous."""
    return t if t.is_contiguous() else t.contiguous()


def as_time_major(t: Tensor) -> Tensor:
    """``t`` of (batch, time, features), copied only where it does not lie in memory step by step."""
    if t.shape[0] == 1 and t.is_contiguous():
        return t
    return as_contiguous(t.transpose(0, 1)).transpose(0, 1)


def as_channels_last(t: Tensor) -> Tensor:
    """``t``, copied only where it is not in channels_last."""
    return t.contiguous(memory_format=torch.channels_last)


def _to(layout: str, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``move``, with the strides of a new tensor even where a size is 1, so that nothing depends on them but them."""

    def fix(t: Tensor) -> Tensor:
        t = move(t)
        if 1 not in t.shape or t.stride() == (strides := strides_in(layout, t.shape)):
            return t
        return t.as_strided(t.shape, strides)

    fix.__name__ = f"as_{layout}"
    return fix


_RECURRENT = (nn.GRU, nn.RNN, nn.LSTM)
#: What multiplies by weights in a way that depends on how its inputs lie in memory.
FED = (*_RECURRENT, nn.MultiheadAttention)
#: Of recurrent layers and of attention.
_INPUTS = ("input",), ("query", "key", "value")
#: In multiplications of a convolution, a fifth of whose time is at stake: what it costs to turn an element, and what it
#: brings to those that are ten times as fast. Measured, and low, because what is turned may lie in cache.
_TURN, _GAINED = 60, 500
_GAIN = ("max_pool2d", "_max_pool2d", "boolean_dispatch", "fn", "avg_pool2d", "interpolate", "upsample", "normalize")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
#: To eager's strides, for readers that could see the difference.
FIXES = {
    "contiguous": _to("contiguous", as_contiguous), "channels_last": _to("channels_last", as_channels_last),
    "time_major": _to("time_major", as_time_major),
}  # fmt: skip


def settle(graph: Graph) -> None:
    """Decides formats; puts conversions in where they are needed."""
    ours = [s for s in graph.steps if _is_ours(s)]
    for step in ours:
        output = step.results()[0]
        if step.kind == "module" and len(output.shape) == 3:
            turned, plain = (strides_in(layout, output.shape) for layout in ("time_major", "contiguous"))
            output.layout = "time_major" if output.stride == turned != plain else output.layout
    _feed_products(graph)
    if not ours:
        return
    convs = [s for s in ours if _is_conv(s)]
    if _is_shared_and_written(graph) or not _settle_freely(graph, convs):
        for step in convs:
            step.function.channels_last = False
            layout = step.outputs.layout
            step.function.fix = layout if layout in FIXES else "contiguous"
        _turn_at_once(graph)


def _turn_at_once(graph: Graph) -> None:
    """Has the results of our recurrent layers turned where they are made."""
    steps: list[Step] = []
    for step in graph.steps:
        steps.append(step)
        output = step.results()[0] if _is_ours(step) else None
        if output is not None and output.layout == "time_major":
            made = output.like(graph.next_index() + len(steps))
            states = tuple(step.outputs[1:])
            step.outputs = (made, *states)
            steps.append(Step(FIXES["time_major"], (made,), {}, output, (), "format", step.where))
    graph.steps = steps


def _is_ours(step: Step) -> bool:
    """Whether our kernels run it; they take any strides and give their own."""
    return _is_conv(step) or (step.kind == "module" and bool(step.note))


def _is_conv(step: Step) -> bool:
    """Whether it is a fused convolution of images. Rows have one format only."""
    return isinstance(step.function, FusedConv) and step.function.rank == 4


def _is_free(step: Step) -> bool:
    if _is_ours(step) or isinstance(step.function, FusedConv | OurCall) or step.kind == "view":
        return True
    if is_norm(step) or is_squeeze(step):
        return True
    name = name_of(step.function)
    if name == "conv_transpose2d":
        return step.kind == "call" and bound(step, _TRANSPOSED).get("groups", 1) == 1
    return step.kind == "call" and name in _FREE


def _feed_products(graph: Graph) -> None:
    """Gives what multiplies by weights in torch inputs that lie in memory as its products want them.

    With weights that are without gradients these take up to three times as long on others.
    """
    steps: list[Step] = []
    copies: dict[Value, Value]

    def replaced(x: Any) -> Any:
        return copies.get(x, x) if isinstance(x, Value) else x

    for step in graph.steps:
        copies = {}
        for x, way in _wanted(step).items():
            copy = copies[x] = x.like(graph.next_index() + len(steps))
            copy.layout = "contiguous" if way is as_contiguous else "other"
            steps.append(Step(way, (x,), {}, copy, (), "format", step.where))
        if copies:
            step.args, step.kwargs = mapped(step.args, replaced), mapped(step.kwargs, replaced)
        steps.append(step)
    graph.steps = steps


def fed(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one of `FED` that is called by itself, as `_feed_products` gives them in a program."""
    names = _INPUTS[isinstance(module, nn.MultiheadAttention)]
    given = [*args[: len(names)], *(kwargs[n] for n in names[len(args) :] if n in kwargs)]
    inputs = {id(t): t for t in given if isinstance(t, Tensor) and t.dim() == 3}
    if not module.batch_first or len(inputs) < len(names[:2]):
        return args, kwargs
    turned = {key: as_time_major(t) for key, t in inputs.items()}
    args = *(turned.get(id(t), t) for t in args[: len(names)]), *args[len(names) :]
    return args, {n: turned.get(id(t), t) if n in names else t for n, t in kwargs.items()}


def _wanted(step: Step) -> dict[Value, Any]:
    """How torch's recurrent layers, attention and linear layers want what they are given."""
    module: Any = step.function
    if step.kind == "module" and type(module) in FED:
        names = _INPUTS[type(module) is nn.MultiheadAttention]
        given = bound(step, names)
        inputs = {v: None for k in names if isinstance(v := given.get(k), Value) and len(v.shape) == 3}
        if len(names) > 1 and (len(inputs) < 2 or not module.batch_first):
            return {}  # attention of one sequence to itself goes another way
        return dict.fromkeys(inputs, as_time_major if module.batch_first else as_contiguous)
    x = step.args[0] if step.args else None
    if step.function is F.linear and isinstance(x, Value) and len(x.shape) > 2 and x.layout == "other":
        return {x: as_contiguous}
    return {}


def _is_shared_and_written(graph: Graph) -> bool:
    owners: dict[int, set[Value]] = {}
    # Images that `as_images` made: views for any strides, which only convolutions read.
    images = {v for s in graph.steps if s.kind == "view" for v in (*s.reads(), *s.results()) if len(v.shape) == 4}
    for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))):
        owners.setdefault(v.storage, set()).update({v} - images)
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
        before = {c for v in step.reads() for c in origins.get(v, ())}
        if _is_conv(step):
            for c in before:
                c.function.channels_last = step.function.channels_last = True
            before = {step}
        # A sequence passes a format on only from one convolution of sequences to the next.
        sequences = step.kind == "view" or any(v in origins and len(v.shape) == 3 for v in step.reads())
        for v in step.results():
            if len(v.shape) == 4 or (len(v.shape) == 3 and sequences):
                origins[v] = before


def _pays(graph: Graph) -> bool:
    """Whether the joined convolutions gain more by channels_last than the conversions around them cost."""
    tainted = _tainted(graph, set())
    gain, border = 0.0, set()
    for step in graph.steps:
        if _is_conv(step):
            if step.function.channels_last:
                gain += step.function.products(step.args[0].shape, step.outputs.shape)
                border |= {v for v in step.reads() if v not in tainted and v.layout == "contiguous"}
        elif not _is_free(step):
            border |= {v for v in step.reads() if v in tainted and v.layout == "contiguous"}
        elif name_of(step.function) in _GAIN:
            gain += _GAINED * sum(prod(v.shape) for v in step.reads() if v in tainted)
    border |= {v for v in values_in(graph.result) if v in tainted and v.layout == "contiguous"}
    return gain >= _TURN * sum(prod(v.shape) for v in border)


def _settle_freely(graph: Graph, convs: list[Step]) -> bool:
    _join(graph, convs)
    if not _pays(graph):
        for step in convs:
            step.function.channels_last = False
    producers = {v: s for s in graph.steps for v in s.results()}
    strict = _copies_that_tell(graph)
    while True:
        tainted = _tainted(graph, strict)
        told = [v for s in graph.steps if s in strict or not _is_free(s) for v in s.reads()]
        told += values_in(graph.result)
        strange = {
            v for v in told if v in tainted and (v.layout not in FIXES or v.stride != strides_in(v.layout, v.shape))
        }
        if not strange:
            break
        found = {producers[v] for v in strange}
        if any(_is_ours(s) or s.writes or s in strict for s in found):
            return False
        strict |= found
    _put_right(graph, strict, tainted)
    return True


def _copies_that_tell(graph: Graph) -> set[Step]:
    """Copies of eager's that could be views of what lies otherwise, where a write or the caller would tell."""
    told = {v.storage for s in graph.steps for v in s.writes} | {v.storage for v in values_in(graph.result)}
    return {
        step
        for step in graph.steps
        if step.kind == "call" and name_of(step.function) in ("reshape", "flatten", "ravel")
        if (mine := {v.storage for v in step.results()}).isdisjoint(given := {v.storage for v in step.reads()})
        if not told.isdisjoint(mine | given)
    }


def _tainted(graph: Graph, strict: set[Step]) -> set[Value]:
    """Values that may lie in memory otherwise than eager's."""
    tainted: set[Value] = set()
    for step in graph.steps:
        if step.kind == "module" and _is_ours(step):
            tainted |= {v for v in step.results() if v.layout == "time_major"}  # its states lie as eager's
        elif _is_conv(step) or (step not in strict and _is_free(step) and any(v in tainted for v in step.reads())):
            tainted |= set(step.results())
    return tainted


def _put_right(graph: Graph, strict: set[Step], tainted: set[Value]) -> None:
    steps: list[Step] = []
    fixed: dict[Value, Value] = {}
    count = graph.next_index()

    def fix(v: object) -> object:
        if not isinstance(v, Value) or v not in tainted:
            return v
        if v not in fixed:
            fixed[v] = v.like(count + len(fixed))
            steps.append(Step(FIXES[v.layout], (v,), {}, fixed[v], (), "format", where))
        return fixed[v]

    for step in graph.steps:
        where = step.where
        if step in strict or not _is_free(step):
            step.args, step.kwargs = mapped(step.args, fix), mapped(step.kwargs, fix)
        steps.append(step)
    where = "the result"
    graph.result = mapped(graph.result, fix)
    graph.steps = steps
