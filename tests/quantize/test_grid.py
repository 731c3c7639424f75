"""Grids and the observers that find them."""

from __future__ import annotations

import pytest
import torch

from pykernels.quantize._grid import OBSERVERS, Observer, grid_of


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 6.0), (-1e-3, 1e3)])
def test_a_grid_covers_its_range_and_holds_zero(low, high):
    grid = grid_of(low, high)
    assert float(grid.dequantize(grid.quantize(torch.tensor(0.0)))) == 0
    x = torch.linspace(low, high, 1001)
    worst = (grid.dequantize(grid.quantize(x)) - x).abs().max()
    # Half a step, and at the ends another half, by which the zero point was rounded.
    assert worst <= grid.scale * (1 + 1e-4)
    inner = x[(x > low + grid.scale) & (x < high - grid.scale)]
    assert (grid.dequantize(grid.quantize(inner)) - inner).abs().max() <= grid.scale * (0.5 + 1e-3)


def test_nothing_but_zeros_gets_a_grid():
    assert grid_of(0.0, 0.0) == (1.0, 0)
    observer = Observer("mse")
    observer.see(torch.zeros(10))
    assert observer.range() == (0.0, 0.0)


@pytest.mark.parametrize("method", OBSERVERS)
def test_what_was_not_seen_has_no_range(method):
    assert Observer(method).range() is None
    observer = Observer(method)
    assert not observer.see(torch.tensor([1.0, float("nan")]))
    assert not observer.see(torch.tensor([1.0, float("inf")]))
    assert observer.range() is None


def test_a_histogram_that_widens_counts_as_one_that_was_wide():
    torch.manual_seed(0)
    x = torch.randn(20000)
    parts, whole = Observer("percentile"), Observer("percentile")
    for scale in (0.01, 0.3, 9.0):
        parts.see(x * scale)
    for scale in (9.0, 0.3, 0.01):
        whole.see(x * scale)
    assert parts.limit == whole.limit
    assert parts.counts.sum() == whole.counts.sum() == 60000
    # What lies on the border of two bins may have been put into either.
    assert (parts.counts.cumsum(0) - whole.counts.cumsum(0)).abs().max() <= 600


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_outliers_are_cut_off(method):
    torch.manual_seed(0)
    x = torch.randn(200_000)
    x[:3] = torch.tensor([200.0, -150.0, 180.0])
    observer, least = Observer(method), Observer("minmax")
    observer.see(x)
    least.see(x)
    assert least.range() == (-150.0, 200.0)
    low, high = observer.range()
    assert -120 < low < -2
    assert 2 < high < 150

    def squares(bounds):
        grid = grid_of(*bounds)
        return (grid.dequantize(grid.quantize(x[3:])) - x[3:]).square().mean()

    assert squares((low, high)) < squares((-150.0, 200.0)) / 2


def test_the_mse_observer_finds_the_best_share():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(100_000), torch.tensor([30.0, -30.0])])
    observer = Observer("mse")
    observer.see(x)

    def squares(share):
        grid = grid_of(-30 * share, 30 * share)
        return float((grid.dequantize(grid.quantize(x)) - x).square().mean())

    low, high = observer.range()
    assert squares(high / 30) <= 1.02 * min(squares(i / 64) for i in range(16, 65))
    assert low == pytest.approx(-high)
