"""Steps and values: a recording consists of them, and patterns, layout and code generation rewrite them."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F

#: What a step, or our own inspection of one, may raise. Other exceptions are somebody else's: the handler of a signal,
#: which may run anywhere, raises a TimeoutError.
OF_STEPS = RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError, AttributeError


class Value:
    """A tensor of a recording: an input, a source (a parameter, buffer or other watched tensor) or a step's output.

    ``storage`` tells aliases: two values with the same one may share memory. ``layout`` is eager's: "contiguous" (which
    goes before), "channels_last" or "other"; ``stride`` are eager's strides, None where there are none.
    """

    __slots__ = ("device", "dtype", "dynamic", "index", "kind", "layout", "shape", "storage", "stride", "tensor")

    def __init__(self, index: int, kind: str, tensor: torch.Tensor, dynamic: bool = False) -> None:
        self.index, self.kind, self.dynamic = index, kind, dynamic
        self.shape, self.dtype, self.device = tuple(tensor.shape), tensor.dtype, tensor.device
        self.layout = layout_of(tensor)
        self.stride = tensor.stride() if tensor.layout is torch.strided else None
        # Any two inputs may share memory at another call, so that all count as one.
        self.storage = -1 if kind == "input" else storage_of(tensor)
        #: Kept for sources only: the others live as long as the recording.
        self.tensor = tensor if kind == "source" else None

    def like(self, index: int) -> Value:
        """Another value that differs only in where it lies."""
        new = Value.__new__(Value)
        for name in Value.__slots__:
            setattr(new, name, getattr(self, name))
        new.index = index
        return new

    def __repr__(self) -> str:
        return f"v{self.index}"


def layout_of(t: torch.Tensor) -> str:
    """Which of the two usual memory formats ``t`` is in; if in both, the one whose strides it has."""
    if t.layout is not torch.strided:
        return "other"
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    if t.is_contiguous():
        of_last = channels_last and t.stride() == strides_in("channels_last", t.shape) != strides_in("", t.shape)
        return "channels_last" if of_last else "contiguous"
    return "channels_last" if channels_last else "other"


@functools.lru_cache(1024)
def strides_in(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a new tensor in "channels_last", "time_major" or else contiguous.

    "time_major" is what a recurrent layer of torch's gives where the batch is the first dimension.
    """
    orders = {"channels_last": (0, 2, 3, 1), "time_major": (1, 0, 2)}
    strides, step = [0] * len(shape), 1
    for dim in reversed(orders.get(layout, range(len(shape)))):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def suggests_channels_last(t: torch.Tensor) -> bool:
    """Does torch take ``t`` for channels_last where that is for its strides to say, as for a convolution's result?"""
    sizes, strides, least = t.shape, t.stride(), 0
    if t.dim() != 4 or strides[1] == 0 or 0 in sizes:
        return False
    for dim in (1, 3, 2, 0):
        if strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * sizes[dim]
    return True


def storage_of(t: torch.Tensor) -> int:
    """Equal for tensors in one piece of memory; of what has none it is the tensor's own."""
    try:
        return t.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return id(t)


def is_sequence_of_names(kind: type) -> bool:
    """Is it a class of results of torch's, such as that of ``torch.max(x, 0)``?"""
    return issubclass(kind, tuple) and hasattr(kind, "n_sequence_fields")


@dataclass(frozen=True, eq=False)
class Made:
    """An object of a class that a result may be of: torch's, a dict's subclass with its items, or a dataclass."""

    kind: type
    items: dict[Any, Any] | None
    attributes: dict[str, Any]

    @staticmethod
    def suits(x: Any) -> bool:
        """Can another object of its class be made that differs in nothing from ``x``?"""
        kind: Any = type(x)
        if is_sequence_of_names(kind):
            return True
        of_dict = isinstance(x, dict)
        if isinstance(x, defaultdict) or (not of_dict and (not is_dataclass(x) or isinstance(x, type))):
            return False
        above: Any = OrderedDict if isinstance(x, OrderedDict) else dict if of_dict else object
        # Slots hold what neither the items nor the attributes tell.
        plain = all("__slots__" not in vars(k) for k in kind.__mro__[: kind.__mro__.index(above)])
        return plain and kind.__new__ is above.__new__ and (of_dict or hasattr(x, "__dict__"))

    @staticmethod
    def make(kind: Any, items: dict[Any, Any] | None, attributes: dict[str, Any]) -> Any:
        """The object. No ``__init__`` runs: what it would have done is in the items and attributes."""
        if is_sequence_of_names(kind):
            return kind((items or {}).values())
        new = kind.__new__(kind)
        put = OrderedDict.__setitem__ if issubclass(kind, OrderedDict) else dict.__setitem__
        for key, value in (items or {}).items():
            put(new, key, value)
        if attributes:
            vars(new).update(attributes)
        return new


@dataclass(eq=False)
class Step:
    """``outputs = function(*args, **kwargs)``, with values in place of tensors.

    ``outputs`` is a value, None, or a nest of tuples of them; ``writes`` are the values whose memory it writes to.
    ``kind``: "call" of a torch function, "module" (one that is called whole), "opaque" (one that can't be followed),
    "fused", "format" (a change of strides) or "view" (one of rank, at no cost). ``where`` is the name of the module
    that ran it.
    """

    #: Or a `FusedConv`, which says what is called.
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    writes: tuple[Value, ...] = ()
    kind: str = "call"
    where: str = ""
    note: str = ""
    #: What a fused step is made of, for the report.
    sources: tuple[str, ...] = ()

    def reads(self) -> Iterator[Value]:
        """The values among its arguments, as often as they stand there."""
        yield from values_in(self.args)
        yield from values_in(self.kwargs)

    def results(self) -> list[Value]:
        """The values among its outputs."""
        return list(values_in(self.outputs))

    def name(self) -> str:
        """What it calls, in a word."""
        if self.kind in ("module", "opaque"):
            return type(self.function).__name__
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        name = getattr(function, "__name__", "call")
        if name == "__get__":
            return str(getattr(getattr(self.function, "__self__", None), "__name__", name))
        return name


@dataclass
class Graph:
    """A recording: ``inputs`` in the order of the arguments' tensors, steps, and the nest of the result."""

    inputs: list[Value]
    steps: list[Step]
    result: Any
    #: Holds for the recorded sizes and strides only.
    exact: bool = False
    #: Why children could not be followed: name, class, reason.
    opaque: list[tuple[str, str, str]] = field(default_factory=list)
    #: What does not run as it might, for the report: name, kind, reason.
    left: list[tuple[str, str, str]] = field(default_factory=list)
    #: Steps are left out that nothing reads, but that might raise for other sizes.
    unsure: bool = False
    #: What `pykernels.quantize` made of it, if anything.
    rewritten: Any = None

    def next_index(self) -> int:
        """One that no value has yet."""
        values = (*self.inputs, *(v for s in self.steps for v in (*s.reads(), *s.results())))
        return 1 + max((v.index for v in values), default=-1)

    def users(self) -> dict[Value, list[Step | None]]:
        """Who reads each value, once for each time; None is the result."""
        users: dict[Value, list[Step | None]] = {}
        for step in self.steps:
            for value in step.reads():
                users.setdefault(value, []).append(step)
        for value in values_in(self.result):
            users.setdefault(value, []).append(None)
        return users


def may_move(graph: Graph, at: dict[Step, int], chain: Sequence[Step], to: Step, held: Iterable[Value]) -> bool:
    """May what ``chain`` does be done where ``to`` stands? Is none of its inputs, ``held``, written to before?

    ``at`` says where in ``graph`` each step is.
    """
    storages, mine = {v.storage for v in held}, set(chain)
    between = [s for s in graph.steps[min(at[s] for s in chain) : at[to]] if s not in mine]
    return not any(s.kind == "opaque" or any(v.storage in storages for v in s.writes) for s in between)


def values_in(nest: Any) -> Iterator[Value]:
    """All values in nested tuples, lists, dicts, slices and `Made`."""
    if isinstance(nest, Value):
        yield nest
    elif isinstance(nest, tuple | list):
        for x in nest:
            yield from values_in(x)
    elif isinstance(nest, dict):
        for x in nest.values():
            yield from values_in(x)
    elif isinstance(nest, slice):
        for x in (nest.start, nest.stop, nest.step):
            yield from values_in(x)
    elif isinstance(nest, Made):
        yield from values_in(nest.items)
        yield from values_in(nest.attributes)


def mapped(nest: Any, leaf: Callable[[Any], Any]) -> Any:
    """``nest`` with ``leaf`` applied to whatever is not a plain tuple, list, dict, slice or `Made`."""
    kind = type(nest)
    if is_sequence_of_names(kind):
        return Made(kind, {i: mapped(x, leaf) for i, x in enumerate(nest)}, {})
    if isinstance(nest, tuple) and kind is not torch.Size:
        items = [mapped(x, leaf) for x in nest]
        # Not by the class, which may have its own ideas of what its fields can be.
        return tuple.__new__(kind, items) if hasattr(nest, "_fields") else tuple(items)
    if kind is list:
        return [mapped(x, leaf) for x in nest]
    if kind is dict:
        return {k: mapped(v, leaf) for k, v in nest.items()}
    if kind is slice:
        return slice(mapped(nest.start, leaf), mapped(nest.stop, leaf), mapped(nest.step, leaf))
    if kind is Made:
        return Made(nest.kind, mapped(nest.items, leaf), mapped(nest.attributes, leaf))
    return leaf(nest)


def is_torchs(function: Any, *names: str) -> bool:
    """Whether it is torch's function or method of one of these names."""
    name = getattr(function, "__name__", "")
    return name in names and any(function is getattr(owner, name, None) for owner in (torch, F, torch.Tensor))


def bound(step: Step, names: tuple[str, ...]) -> dict[str, Any]:
    """A step's arguments by name."""
    return {**dict(zip(names, step.args, strict=False)), **step.kwargs}
