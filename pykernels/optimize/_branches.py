"""Makes parallel branches of one image that end in a sum one convolution, as in RepVGG and MobileOne.

Convolution is linear. Where branches are convolutions of the same stride and groups, with or without a batch norm, or a
batch norm alone, their weights, padded to the largest, and their shifts can be summed. That is done in float64, once
for each version of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.optimize._fused import Fusable, FusedConv
from pykernels.optimize._graph import Graph, Step, Value, is_torchs, may_move
from pykernels.optimize._patterns import ADDS, conv_of, takes_norm


@dataclass
class _Branch:
    """``x`` to a summand, by these steps; ``conv`` is None where it is a batch norm alone."""

    x: Value
    conv: FusedConv | None
    norm: Fusable
    steps: list[Step]
    geometry: Geometry | None


def merge_branches(graph: Graph, constants: set[Value]) -> list[Step]:
    """Rewrites ``graph``; returns the steps that sum the weights, to be run once. Their results join ``constants``."""
    return _Merger(graph, constants).merge()


class _Merger:
    def __init__(self, graph: Graph, constants: set[Value]) -> None:
        self.graph, self.constants = graph, constants
        self.users = graph.users()
        self.at = {s: i for i, s in enumerate(graph.steps)}
        self.producers = {v: s for s in graph.steps for v in s.results()}
        self.by_storage: dict[int, set[Value]] = {}
        for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))):
            self.by_storage.setdefault(v.storage, set()).add(v)
        self.folded: list[Step] = []
        self.next = 1 + max((v.index for values in self.by_storage.values() for v in values), default=-1)

    def merge(self) -> list[Step]:
        gone: set[Step] = set()
        instead: dict[Step, list[Step]] = {}
        for step in reversed(self.graph.steps):
            if step in gone or not self._is_sum(step):
                continue
            leaves, sums = self._leaves(step)
            branches = [self._branch(v) for v in leaves]
            groups = self._groups([b for b in branches if b is not None])
            if not groups:
                continue
            merged = [b for g in groups for b in g]
            used = [s for b in merged for s in b.steps]
            if not may_move(self.graph, self.at, [*used, *sums], step, [b.x for b in merged]):
                continue
            gone |= {*used, *sums}
            rest = [v for v, b in zip(leaves, branches, strict=True) if b not in merged]
            instead[step] = self._written(groups, rest, step.outputs)
        if instead:
            self.graph.steps = [
                s for step in self.graph.steps for s in instead.get(step, [] if step in gone else [step])
            ]
        return self.folded

    def _is_sum(self, step: Step) -> bool:
        if step.kind != "call" or step.kwargs or len(step.args) != 2 or not is_torchs(step.function, *ADDS):
            return False
        out = step.outputs
        left, right = step.args
        if not isinstance(out, Value):
            return False
        for v in (left, right):
            if isinstance(v, Value) and (v.shape, v.dtype, v.device) != (out.shape, out.dtype, out.device):
                return False
            if not isinstance(v, Value) and (type(v) not in (int, float) or v != 0):
                return False
        if step.writes:
            return isinstance(left, Value) and step.writes == (left,) and self._is_private(left)
        return out.layout != "other" and left is not right

    def _is_private(self, v: Value) -> bool:
        """Do nothing but sums in place share its memory?"""
        if v.kind != "step" or v.storage == -1:
            return False
        sharing = self.by_storage[v.storage]
        sums = {s.outputs for s in self.graph.steps if s.writes and is_torchs(s.function, *ADDS)}
        return len([w for w in sharing if w not in sums]) == 1

    def _leaves(self, root: Step) -> tuple[list[Value], list[Step]]:
        leaves: list[Value] = []
        sums, todo = [root], [*root.args]
        while todo:
            v = todo.pop()
            if not isinstance(v, Value):
                continue
            producer = self.producers.get(v)
            if producer is not None and len(self.users[v]) == 1 and self._is_sum(producer):
                sums.append(producer)
                todo += producer.args
            else:
                leaves.append(v)
        return leaves[::-1], sums

    def _branch(self, v: Value) -> _Branch | None:
        last = self.producers.get(v)
        if last is None or len(self.users[v]) != 1:
            return None
        if (found := self._conv(last)) is not None:
            return _Branch(found[1], found[0], found[0], [last], found[0].geometry())
        x = last.args[0] if last.args else None
        if not isinstance(x, Value) or len(x.shape) != 4:
            return None
        before = self.producers.get(x)
        if before is not None and len(self.users[x]) == 1 and (found := self._conv(before)) is not None:
            conv, image = found
            if takes_norm(conv, last, self.constants):
                return _Branch(image, conv, conv, [before, last], conv.geometry())
        alone = Fusable()
        if takes_norm(alone, last, self.constants):
            return _Branch(x, None, alone, [last], None)
        return None

    def _conv(self, step: Step) -> tuple[FusedConv, Value] | None:
        found = conv_of(step)
        if found is None or found[0].is_held:
            return None
        return found if all(v in self.constants for v in found[0].parameters()) else None

    def _groups(self, branches: list[_Branch]) -> list[list[_Branch]]:
        groups: list[list[_Branch]] = []
        for b in branches:
            if b.conv is None:
                continue
            for g in groups:
                if _fit(g[0], b):
                    g.append(b)
                    break
            else:
                groups.append([b])
        for b in branches:
            if b.conv is None:
                for g in groups:
                    conv, geometry = g[0].conv, g[0].geometry
                    if conv is None or geometry is None:
                        continue
                    same = g[0].x is b.x and conv.weight.shape[0] == b.x.shape[1]
                    if same and geometry.stride == (1, 1) and all(_is_centred(i) for i in g):
                        g.append(b)
                        break
        return [g for g in groups if len(g) > 1]

    def _written(self, groups: list[list[_Branch]], rest: list[Value], out: Value) -> list[Step]:
        steps: list[Step] = []
        summands: list[Value] = []
        for group in groups:
            convs = [b for b in group if b.conv is not None]
            largest: Any = max(convs, key=lambda b: b.conv.weight.shape[2] * b.conv.weight.shape[3])  # type: ignore[union-attr]
            terms = tuple(
                (
                    None if b.conv is None else b.conv.weight,
                    (None if b.conv is None else b.conv.bias, *(b.norm.norm or (None,) * 4)),
                    b.norm.eps,
                )
                for b in group
            )
            weight, bias = self._new(largest.conv.weight), self._new(largest.conv.weight)
            bias.shape = bias.shape[:1]
            self.folded.append(Step(_sum, (terms, largest.conv.weight), {}, (weight, bias)))
            self.constants |= {weight, bias}
            y = self._new(out)
            o = largest.conv.options
            args = (largest.x, weight, bias, o["stride"], o["padding"], o["dilation"], o["groups"])
            where = largest.steps[0].where
            steps.append(Step(F.conv2d, args, {}, y, (), "call", where))
            steps[-1].sources = tuple(dict.fromkeys(s.where for b in group for s in b.steps))
            summands.append(y)
        summands += rest
        total = summands[0]
        for v in summands[1:]:
            y = self._new(out)
            steps.append(Step(torch.add, (total, v), {}, y))
            total = y
        steps[-1].outputs = out
        return steps

    def _new(self, like: Value) -> Value:
        new = like.like(self.next)
        new.kind, new.tensor = "step", None
        new.storage = -2 - self.next  # nobody else's
        self.next += 1
        return new


def _is_centred(b: _Branch) -> bool:
    """Whether the middle of the filter lies on the pixel that it computes."""
    if b.conv is None or b.geometry is None:
        return False
    _, _, r, s = b.conv.weight.shape
    top, left, bottom, right = b.geometry.padding
    d = b.geometry.dilation
    return (top, left) == (bottom, right) == (d[0] * (r - 1) // 2, d[1] * (s - 1) // 2) and r % 2 == s % 2 == 1


def _fit(a: _Branch, b: _Branch) -> bool:
    if a.conv is None or b.conv is None or a.geometry is None or b.geometry is None or a.x is not b.x:
        return False
    g, h = a.geometry, b.geometry
    if (g.stride, g.dilation, g.groups) != (h.stride, h.dilation, h.groups):
        return False
    v, w = a.conv.weight, b.conv.weight
    if v.dtype is not w.dtype or v.shape[:2] != w.shape[:2]:
        return False
    same = v.shape == w.shape and g.padding == h.padding
    return same or (_is_centred(a) and _is_centred(b) and g.dilation == (1, 1))


def _sum(terms: tuple[Any, ...], largest: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias of one convolution that does what all ``terms`` do."""
    weight = torch.zeros(largest.shape, dtype=torch.float64, device=largest.device)
    bias = torch.zeros(largest.shape[0], dtype=torch.float64, device=largest.device)
    k, c, r, s = largest.shape
    for part, norm, eps in terms:
        conv_bias, mean, var, bn_weight, bn_bias = norm
        scale, shift = fold_batch_norm(conv_bias, mean, var, bn_weight, bn_bias, eps)
        if part is None:
            each = torch.arange(k, device=largest.device)
            part = torch.zeros(k, c, 1, 1, dtype=torch.float64, device=largest.device)
            part[each, each % c] = 1
        scaled = part.double() if scale is None else part.double() * scale.double().reshape(-1, 1, 1, 1)
        top, left = (r - part.shape[2]) // 2, (s - part.shape[3]) // 2
        weight[:, :, top : top + part.shape[2], left : left + part.shape[3]] += scaled
        if shift is not None:
            bias += shift.double()
    return weight.to(largest.dtype), bias.to(largest.dtype)
