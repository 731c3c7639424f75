"""What may make weights fit for int8 before they are rounded: equal channels, and biases without the rounding's mean.

After Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019. Where a layer's channel i is read by other layers alone, and its activation f has f(t x) = t f(x),
the layer may give x_i / s_i, and the others multiply what they read by s_i: the same numbers, with other ranges.

- With one scale for a weight, s makes the ranges of row i of the one weight and of column i of the other one equal.
- With a scale for each row, s makes that of the values of channel i and of column i equal, as in Xiao et al.,
  "SmoothQuant", 2022. A depthwise layer after it has a scale for each column: then all channels get one range.

Rounding moves a weight by e, and so the mean of a sum by e times the mean of what is read; the bias takes that back.
The model's own parameters stay: an int8 layer scales and rounds them, whenever they change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels.optimize._conv1d import FusedConv1d
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step
from pykernels.optimize._linear import FusedLinear

_LAYERS = (FusedConv, FusedConv1d, FusedLinear)
_SWEEPS = 20
#: A channel whose range is less than this part of the largest counts as one that has it.
_LEAST = 2.0**-8


class Tuning(NamedTuple):
    """What an int8 layer does to its weight and bias: ``rows`` (K,) divide, ``columns`` (C,) multiply.

    ``means`` (C,) are those of the channels that it reads, as the model computes them.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    means: Tensor | None = None

    def scaled(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``weight`` (K, C / groups, R, S) and ``bias`` (K,) between other scales."""
        if self.rows is not None:
            weight = weight / self.rows.reshape(-1, 1, 1, 1)
            bias = None if bias is None else bias / self.rows
        if self.columns is not None:
            weight = (_grouped(weight, self.columns) * _as_columns(weight, self.columns)).view(weight.shape)
        return weight, bias

    def corrected(self, weight: Tensor, rounded: Tensor, bias: Tensor | None) -> Tensor | None:
        """``bias`` for a ``weight`` that is ``rounded``, so that the sums have the mean that they had."""
        if self.means is None:
            return bias
        means = self.means if self.columns is None else self.means / self.columns
        moved = (rounded - weight).sum((2, 3), keepdim=True)
        shift = (_grouped(moved, means) * _as_columns(moved, means)).sum((2, 3, 4)).flatten()
        return -shift if bias is None else bias - shift


UNTUNED = Tuning()


class Factors(NamedTuple):
    """What the channels of a value are divided by in int8, and the range of all of them then."""

    low: float
    high: float
    tensor: Tensor


@dataclass(eq=False)
class Pair:
    """A layer whose result, ``at`` among the values of the graph, is read by ``readers`` alone."""

    at: int
    giver: Step
    readers: list[Step]


class Channels:
    """The least, the largest and the mean value of each channel that a calibration has seen."""

    def __init__(self, axis: int) -> None:
        self.axis, self.count = axis, 0
        self.low: Tensor | float = torch.inf
        self.high: Tensor | float = -torch.inf
        self.total: Tensor | float = 0.0

    def see(self, x: Tensor) -> None:
        """Takes account of ``x``, which has elements."""
        rows = x.detach().float().movedim(self.axis, 0).flatten(1)
        low, high = rows.aminmax(dim=1)
        self.low, self.high = torch.minimum(low, torch.as_tensor(self.low)), high.maximum(torch.as_tensor(self.high))
        self.total, self.count = self.total + rows.double().sum(1), self.count + rows.shape[1]

    def mean(self) -> Tensor:
        """(C,)."""
        return (torch.as_tensor(self.total) / self.count).float()

    def largest(self) -> Tensor:
        """The largest magnitudes, (C,)."""
        return torch.as_tensor(self.high).maximum(-torch.as_tensor(self.low))


def axes_of(layers: Sequence[Step], position: Mapping[object, int]) -> dict[int, int]:
    """Which dimension of the values that layers read is that of the channels."""
    found: dict[int, int] = {}
    for step in layers:
        if type(step.function) in _LAYERS and step.args[0] in position:
            found.setdefault(position[step.args[0]], _axis(step))
    return found


def _axis(step: Step) -> int:
    return -1 if isinstance(step.function, FusedLinear) else 1


def pairs_of(graph: Graph) -> list[Pair]:
    """The layers of a graph in float whose channels may be scaled, in its order."""
    users, found = graph.users(), []
    position = {v: i for i, v in enumerate([*graph.inputs, *(v for s in graph.steps for v in s.results())])}
    for step in graph.steps:
        layer = step.function
        if type(layer) not in _LAYERS or step.args[1] is not None or not _is_homogeneous(layer):
            continue
        readers = users.get(step.outputs, [])
        alike = [s for s in readers if s is not None and type(s.function) in _LAYERS and _axis(s) == _axis(step)]
        if readers and len(alike) == len(readers) and all(s.args[1] is not step.outputs for s in alike):
            found.append(Pair(position[step.outputs], step, alike))
    return found


def _is_homogeneous(layer: FusedConv) -> bool:
    """Has its activation f(t x) = t f(x) for t > 0? That of ReLU6 has it below 6."""
    act = layer.act
    return not act.constants and act.slopes is None and act.name in ("none", "relu", "leaky_relu", "relu6")


def equalised(
    pairs: Sequence[Pair], weights: dict[Step, Tensor], channels: Mapping[int, Channels], per_channel: bool
) -> dict[int, Factors]:
    """The factors of each pair's value. ``weights`` are those of the layers in float; they are scaled too."""
    factors = {p: torch.ones(weights[p.giver].shape[0]) for p in pairs}
    for _ in range(_SWEEPS):
        for p, s in factors.items():
            seen = channels[p.at].largest()
            rows = seen / s if per_channel else weights[p.giver].abs().amax((1, 2, 3))
            columns = torch.stack([_column_ranges(weights[r], s.numel(), per_channel) for r in p.readers]).amax(0)
            new = s * (_positive(rows) / _positive(columns)).sqrt()
            if p.giver.function.act.name == "relu6":
                new = _below_six(new, seen)
            weights[p.giver] = Tuning(rows=new / s).scaled(weights[p.giver], None)[0]
            for r in p.readers:
                weights[r] = Tuning(columns=new / s).scaled(weights[r], None)[0]
            factors[p] = new
    found: dict[int, Factors] = {}
    for p, s in factors.items():
        low, high = (torch.as_tensor(x) / s for x in (channels[p.at].low, channels[p.at].high))
        found[p.at] = Factors(float(low.min()), float(high.max()), s)
    return found


def _column_ranges(weight: Tensor, c: int, per_channel: bool) -> Tensor:
    """The largest magnitude of each column; with scales for the rows, as a part of the row's."""
    size = weight.abs()
    if per_channel:
        size = size / _positive(size.amax((1, 2, 3), keepdim=True))
    return _grouped(size, torch.empty(c)).amax((1, 3, 4)).flatten()


def _below_six(s: Tensor, seen: Tensor) -> Tensor:
    """``s`` with which a clamp at 6 is what it was: 1 for channels that reach it, and no others reach it then."""
    reaches = seen >= 6
    highest = (seen / s)[~reaches].max() if not bool(reaches.all()) else torch.tensor(6.0)
    s = s * (highest / 6).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(reaches, torch.ones_like(s), s)


def _positive(x: Tensor) -> Tensor:
    """``x``, but nothing below a small part of the largest."""
    largest = x.max()
    return x.clamp(min=float(largest) * _LEAST) if largest > 0 else torch.ones_like(x)


def _grouped(weight: Tensor, columns: Tensor) -> Tensor:
    """``weight`` (K, C / groups, R, S) as (groups, K / groups, C / groups, R, S)."""
    groups = columns.numel() // weight.shape[1]
    return weight.reshape(groups, -1, *weight.shape[1:])


def _as_columns(weight: Tensor, columns: Tensor) -> Tensor:
    return columns.reshape(-1, 1, weight.shape[1], 1, 1)


def along(y: Tensor, factors: Tensor, step: Step) -> Tensor:
    """``y`` times factors of its channels; ``step`` gave it."""
    return y * factors.reshape(-1, *[1] * (0 if _axis(step) == -1 else y.dim() - 2))
