"""The grids that int8 numbers lie on, and the observers that find a grid for what a calibration has seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pykernels.nn.int8_conv import Grid

OBSERVERS = ("minmax", "percentile", "mse", "entropy")

#: Of a histogram; even, so that 0 is a border.
_BINS = 4096
#: What `percentile` cuts off at either end.
_TAIL = 1e-4
#: How much of the range the other observers try to keep.
_SHARES = tuple(i / 64 for i in range(16, 65))
_TINY = torch.finfo(torch.float32).tiny


def grid_of(low: float, high: float) -> Grid:
    """The asymmetric grid that holds 0 exactly and covers [low, high]; every grid covers 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = high / 255 - low / 255
    if scale < _TINY:
        return Grid(1.0, 0)
    return Grid(scale, min(max(round(-128 - low / scale), -128), 127))


class Observer:
    """What a calibration has seen of one tensor of the model.

    It keeps the least and the largest value and, if ``method`` is not "minmax", a histogram between -limit and limit,
    where ``limit`` doubles when a value lies beyond: then pairs of bins become one.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.low, self.high = math.inf, -math.inf
        self.limit = 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def see(self, x: Tensor) -> bool:
        """Takes account of ``x``. Is all of it finite?"""
        if x.numel() == 0:
            return True
        low, high = (float(t) for t in torch.aminmax(x.float()))
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.method != "minmax":
            self._count(x.float(), max(-low, high))
        return True

    def _count(self, x: Tensor, largest: float) -> None:
        if largest == 0:
            self.counts[_BINS // 2] += x.numel()
            return
        if self.limit == 0:
            self.limit = 2.0 ** math.ceil(math.log2(largest))
        while self.limit < largest:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_BINS // 4 : 3 * _BINS // 4] = pairs
            self.limit *= 2
        self.counts += torch.histc(x / self.limit, _BINS, -1, 1).double()

    def range(self) -> tuple[float, float] | None:
        """What the grid is to cover; None if nothing was seen."""
        if self.low > self.high:
            return None
        if self.method == "minmax" or self.limit == 0:
            return self.low, self.high
        low, high = getattr(self, f"_{self.method}")()
        return max(low, self.low), min(high, self.high)

    def _percentile(self) -> tuple[float, float]:
        """All but a ten-thousandth at either end."""
        below = self.counts.cumsum(0) / self.counts.sum()
        first = int(torch.searchsorted(below, _TAIL))
        last = int(torch.searchsorted(below, 1 - _TAIL))
        width = 2 * self.limit / _BINS
        return min(-self.limit + first * width, 0.0), max(-self.limit + (last + 1) * width, 0.0)

    def _mse(self) -> tuple[float, float]:
        """The share of the range for which the expected squared error is least."""
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * self.limit / _BINS) - self.limit

        def error(share: float) -> float:
            grid = grid_of(self.low * share, self.high * share)
            q = ((centres / grid.scale).round() + grid.zero_point).clamp(-128, 127)
            return float((self.counts * ((q - grid.zero_point) * grid.scale - centres).square()).sum())

        best = min(_SHARES, key=error)
        return self.low * best, self.high * best

    def _entropy(self) -> tuple[float, float]:
        """The share of the range that keeps the distribution of magnitudes best, by Kullback and Leibler's divergence.

        After Migacz, "8-bit inference with TensorRT", 2017.
        """
        half = _BINS // 2
        magnitudes = self.counts[half:] + self.counts[:half].flip(0)
        magnitudes[0] = magnitudes[1]  # the zeros of a ReLU say nothing about its scale
        levels = 128 if self.low < 0 < self.high else 255
        largest = max(-self.low, self.high)
        bins = [min(max(levels, math.ceil(share * largest / self.limit * half)), half) for share in _SHARES]
        best = min(zip(bins, _SHARES, strict=True), key=lambda pair: _divergence(magnitudes, pair[0], levels))[1]
        return self.low * best, self.high * best


def _divergence(counts: Tensor, kept: int, levels: int) -> float:
    """Of the first ``kept`` bins, with what lies beyond in the last, from their form in so many levels."""
    inside = counts[:kept].clone()
    p = inside.clone()
    p[-1] += counts[kept:].sum()
    level = torch.arange(kept) * levels // kept
    filled = (inside > 0).double()
    sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    full = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled)
    q = (sums / full.clamp(min=1))[level] * filled
    p, q = p / p.sum(), q / q.sum().clamp(min=_TINY)
    some = p > 0
    return float((p[some] * (p[some] / q[some].clamp(min=1e-12)).log()).sum())
