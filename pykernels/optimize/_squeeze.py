"""Squeeze-and-excitation on the CPU as one step: mean, product, activation, product, gate, multiplication.

It reads the weights as they are, so that nothing has to be packed; large ones are copied to huge pages. Each call
reads them from end to end from L3 or memory, where small pages halve the speed (docs/kernels/squeeze_excite/cpu.md).
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from pykernels._huge import on_huge_pages
from pykernels.ops import _dispatch
from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.squeeze_excite.arguments import NEGATIVE_SLOPE
from pykernels.ops.squeeze_excite.op import SQUEEZE_EXCITE
from pykernels.optimize._activations import activation_of
from pykernels.optimize._calls import takes_image
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs, may_move
from pykernels.optimize._keep import PackedWeight
from pykernels.optimize._linear import FusedLinear, linear_of
from pykernels.optimize._patterns import conv_of
from pykernels.optimize._pools import mean_of_map

_MULTIPLY = ("mul", "__mul__", "__rmul__", "multiply")
_POINT = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
#: Smaller weights are few pages.
_LARGE_BYTES = 64 << 10


def squeeze_excite_(x: Tensor, *rest: Any) -> Tensor:
    """Into ``x``."""
    torch.ops.pykernels.squeeze_excite_out.default(x, *rest, out=x)
    return x


def is_squeeze(step: Step) -> bool:
    """Whether it is a call of our op."""
    name = getattr(step.function, "__name__", "")
    return step.kind == "call" and name in ("squeeze_excite.default", "squeeze_excite_")


def use_our_squeeze(graph: Graph, constants: set[Value]) -> list[Step]:
    """Puts our op in the place of torch's steps. Returns those that copy weights."""
    if not _dispatch.has_native(SQUEEZE_EXCITE, torch.device("cpu")):
        return []
    finder = _Finder(graph, constants)
    finder.rewrite()
    return list(finder.copies.values())


class _Finder:
    def __init__(self, graph: Graph, constants: set[Value]) -> None:
        self.graph, self.constants = graph, constants
        self.users = graph.users()
        self.at = {s: i for i, s in enumerate(graph.steps)}
        self.producers = {v: s for s in graph.steps for v in s.results()}
        values = [*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))]
        self.next = 1 + max((v.index for v in values), default=-1)
        #: By what they copy.
        self.copies: dict[Value, Step] = {}

    def rewrite(self) -> None:
        gone: set[Step] = set()
        for step in self.graph.steps:
            found = self._found(step)
            if found is None or gone & set(found[0]):
                continue
            chain, args, names = found
            gone |= set(chain)
            args = tuple(self._copied(a) if i in (1, 3) else a for i, a in enumerate(args))
            step.function, step.args, step.kwargs = torch.ops.pykernels.squeeze_excite.default, args, {}
            step.note = "+".join(("squeeze_excite", *names))
            step.sources = tuple(dict.fromkeys(s.where for s in (*chain[::-1], step) if s.where)) or (step.where,)
        self.graph.steps = [s for s in self.graph.steps if s not in gone]

    def _copied(self, weight: Value) -> Value:
        """``weight``, or what it is copied to."""
        if prod(weight.shape) * weight.dtype.itemsize < _LARGE_BYTES:
            return weight
        if weight not in self.copies:
            new = weight.like(self.next)
            new.kind, new.tensor, new.storage = "step", None, -2 - self.next  # nobody else's
            self.next += 1
            self.copies[weight] = Step(on_huge_pages, (weight,), {}, new)
            self.constants.add(new)
        made: Value = self.copies[weight].outputs
        return made

    def _found(self, step: Step) -> tuple[list[Step], tuple[Any, ...], tuple[str, str]] | None:
        """All steps before the multiplication ``step``, our arguments and the activations' names."""
        if step.kind != "call" or not is_torchs(step.function, *_MULTIPLY) or len(step.args) != 2 or step.kwargs:
            return None
        y = step.outputs
        for x, gates in (step.args, step.args[::-1]):
            fits = isinstance(x, Value) and isinstance(gates, Value) and isinstance(y, Value) and not step.writes
            if not fits or len(x.shape) != 4 or gates.shape != (*x.shape[:2], 1, 1):
                continue
            if (y.shape, y.layout) != (x.shape, x.layout) or not takes_image(SQUEEZE_EXCITE, step, x):
                continue
            found = self._before(step, x, gates)
            if found is not None:
                return found
        return None

    def _before(self, step: Step, x: Value, gates: Value) -> tuple[list[Step], tuple[Any, ...], tuple[str, str]] | None:
        chain: list[Step] = []
        at: Value | None = self._past_views(gates, chain)
        acts: list[str] = []
        layers: list[FusedConv] = []
        for _ in range(2):
            act, at = self._activation(at, chain)
            layer, at = self._product(at, chain)
            if act is None or layer is None or at is None:
                return None
            acts.append(act)
            layers.append(layer)
        mean = self._made_by(at, chain)
        found = None if mean is None else mean_of_map(mean)
        held = [x, *(v for layer in layers for v in layer.parameters())]
        if found is None or found[1] is not x or not may_move(self.graph, self.at, chain, step, held):
            return None
        (gate, act), (expand, reduce) = acts, layers
        weights = reduce.weight, reduce.bias, expand.weight, expand.bias
        if weights[0].shape[:2] != weights[2].shape[1::-1] or weights[2].shape[0] != x.shape[1]:
            return None
        return chain, (x, *weights, ACTIVATIONS.index(act), ACTIVATIONS.index(gate)), (act, gate)

    def _made_by(self, value: Value | None, chain: list[Step]) -> Step | None:
        """The step that makes what only one step reads; it joins ``chain``."""
        made = self.producers.get(value) if value is not None and len(self.users.get(value, ())) == 1 else None
        if made is None or made.kind != "call" or made.outputs is not value:
            return None
        chain.append(made)
        return made

    def _past_views(self, value: Value | None, chain: list[Step]) -> Value | None:
        """What ``value``, (N, C) or (N, C, 1, 1), is another shape of."""
        while value is not None:
            made = self.producers.get(value)
            if made is None or not self._is_view(made) or self._made_by(value, chain) is None:
                return value
            value = made.args[0]
        return None

    def _is_view(self, step: Step) -> bool:
        """Whether it changes only the number of sizes of 1 behind the channels, whatever the batch."""
        x, y = step.args[0] if step.args else None, step.outputs
        if not isinstance(x, Value) or not isinstance(y, Value) or step.writes or len(x.shape) < 2:
            return False
        if x.shape[:2] != y.shape[:2] or {*x.shape[2:], *y.shape[2:]} > {1}:
            return False
        name, rest = getattr(step.function, "__name__", ""), step.args[1:]
        if not is_torchs(step.function, name) or (step.kwargs and name != "flatten"):
            return False
        if name == "flatten":
            return bound(step, ("input", "start_dim", "end_dim")).get("start_dim") == 1 and len(rest) < 2
        if name in ("view", "reshape"):
            sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
            return self.graph.exact or (list(sizes) == [-1, *y.shape[1:]])
        if name == "unsqueeze":
            return rest in ((-1,), (2,), (3,))
        none, whole = (None,) * (len(y.shape) - 2), (slice(None),) * 2
        return name == "__getitem__" and len(x.shape) == 2 and rest in (((*whole, *none),), ((Ellipsis, *none),))

    def _activation(self, value: Value | None, chain: list[Step]) -> tuple[str | None, Value | None]:
        """The name of the activation that makes ``value``, and of what."""
        step = self._made_by(value, chain)
        act = None if step is None else activation_of(step)
        reads = [] if step is None else list(step.reads())
        plain = act is not None and not act.constants and act.slopes is None and act.slope == NEGATIVE_SLOPE
        if act is None or not plain or len(reads) != 1:
            return None, None
        return act.name, reads[0]

    def _product(self, value: Value | None, chain: list[Step]) -> tuple[FusedConv | None, Value | None]:
        """The 1x1 convolution or linear layer that makes ``value``, and of what; both but for views."""
        step = self._made_by(self._past_views(value, chain), chain)
        found = None if step is None else conv_of(step) or linear_of(step)
        if found is None:
            return None, None
        layer, x = found
        whole = isinstance(layer, FusedLinear) and not layer.turned and len(x.shape) == 2
        if not whole and (layer.rank != 4 or layer.weight.shape[2:] != (1, 1) or layer.geometry() != _POINT):
            return None, None
        fits = all(v in self.constants and v.dtype is x.dtype for v in layer.parameters())
        if not fits or isinstance(layer.weight.tensor, PackedWeight):
            return None, None
        return layer, self._past_views(x, chain)
