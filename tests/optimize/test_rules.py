"""Never slower: which convolutions stay torch's, and that these compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.cli.bench.peers.networks import NETWORKS, build
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.optimize import _rules
from pykernels.optimize._activations import Act
from pykernels.optimize._torchs import TorchConv
from tests.harness import relative_l2
from tests.optimize.models import agree, kinds, randomise

ACTIVATIONS = {
    "none": lambda y: y, "relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu,
    "hardswish": F.hardswish, "gelu": F.gelu, "elu": F.elu, "leaky_relu": lambda y: F.leaky_relu(y, 0.2),
}  # fmt: skip


def because(
    shape, weight, stride=1, padding=1, dilation=1, groups=1, activation="relu", layout="channels_last", isa="avx2"
):
    return _rules.torchs_because(shape, weight, (stride,) * 2, (padding,) * 4, (dilation,) * 2, groups, layout, isa)


@pytest.mark.parametrize(
    ("args", "ours"),
    [
        (((1, 64, 56, 56), (64, 64, 3, 3)), True),
        (((1, 304, 56, 56), (304, 1, 3, 3), 1, 1, 1, 304), True),
        (((1, 304, 56, 56), (304, 1, 3, 3), 1, 1, 1, 304, "silu", "contiguous"), True),
        (((1, 304, 56, 56), (304, 1, 3, 3), 1, 12, 12, 304), True),
        (((1, 96, 112, 112), (96, 1, 3, 3), 2, 1, 1, 96), True),
        (((1, 8, 4, 4), (8, 1, 3, 3), 1, 1, 1, 8), True),  # so small that the cost of the call decides
        (((0, 304, 56, 56), (304, 1, 3, 3), 1, 1, 1, 304), True),
        (((1, 3, 224, 224), (32, 3, 3, 3), 2), True),
        (((1, 3, 32, 32), (32, 3, 3, 3), 2), True),
        (((1, 64, 112, 112), (64, 16, 3, 3), 2, 1, 1, 4, "relu", "contiguous"), True),
        (((1, 240, 56, 56), (240, 24, 3, 3), 2, 1, 1, 10, "relu", "contiguous"), False),
        (((1, 240, 56, 56), (240, 24, 3, 3), 2, 1, 1, 10), True),
        (((1, 320, 14, 14), (320, 16, 3, 3), 1, 1, 1, 20), True),
        (((1, 144, 56, 56), (24, 144, 1, 1), 1, 0, 1, 1, "none", "contiguous"), True),
        (((1, 144, 56, 56), (24, 144, 1, 1), 1, 0, 1, 1, "none", "channels_last"), True),
        (((1, 960, 7, 7), (160, 960, 1, 1), 1, 0, 1, 1, "none", "contiguous"), True),
        (((1, 64, 56, 56), (64, 64, 5, 5), 1, 2, 1, 1, "relu", "contiguous"), True),
        (((1, 64, 112, 112), (64, 64, 3, 3), 2, 1, 1, 1, "relu", "contiguous"), True),
        (((1, 256, 20, 20), (64, 256, 3, 3), 1, 12, 12), True),
        (((1, 64, 56, 56), (64, 64, 3, 3), 1, 2, 2, 1, "relu", "contiguous"), True),
        (((1, 64, 56, 56), (32, 8, 3, 3), 1, 1, 1, 8), True),
        (((1, 96, 56, 56), (24, 12, 3, 3), 1, 1, 1, 8), False),
        (((1, 24, 28, 28), (48, 1, 3, 3), 1, 1, 1, 24), True),
        (((1, 64, 56, 56), (64, 16, 1, 1), 1, 0, 1, 4, "relu", "contiguous"), False),
        (((1, 64, 56, 56), (64, 16, 1, 1), 1, 0, 1, 4), True),
        (((1, 512, 14, 14), (512, 512, 3, 3), 1, 2, 2), True),
        (((1, 512, 1, 3199), (512, 512, 1, 3), 2, 0), True),
        (((1, 512, 1, 3199), (512, 512, 1, 3), 2, 0, 1, 1, "gelu", "contiguous"), False),
        (((1, 512, 1, 399), (512, 512, 1, 3), 2, 0, 1, 1, "gelu", "contiguous"), True),
        (((1, 512, 1, 300), (64, 512, 1, 1), 1, 0, 1, 1, "relu", "contiguous"), False),
        (((1, 2000, 1, 250), (2000, 2000, 1, 1), 1, 0, 1, 1, "relu", "contiguous"), True),
        (((1, 32, 1, 8000), (32, 32, 1, 11), 1, 25, 5, 1, "relu", "contiguous"), True),
    ],
)
def test_who_wins(args, ours):
    assert (because(*args) == "") is ours


@pytest.mark.parametrize(
    ("args", "ours"),
    [
        (((1, 240, 56, 56), (240, 24, 3, 3), 2, 1, 1, 10, "relu", "contiguous"), True),
        (((1, 96, 56, 56), (24, 12, 3, 3), 1, 1, 1, 8), False),
    ],
)
def test_some_rows_do_not_hold_on_avx512(args, ours):
    assert (because(*args, isa="avx512") == "") is ours


def test_every_row_is_for_a_kind_that_there_is_and_says_why():
    shapes = (((8, 1, 3, 3), 1, 1, 8), ((8, 3, 3, 3), 1, 1, 1), ((8, 8, 3, 3), 1, 1, 2), ((8, 8, 1, 1), 1, 1, 1),
              ((8, 8, 1, 1), 2, 1, 1), ((8, 8, 5, 5), 1, 1, 1), ((8, 8, 3, 3), 1, 1, 1),
              ((8, 8, 3, 3), 1, 2, 1), ((12, 3, 3, 3), 1, 1, 4))  # fmt: skip
    there_are = {_rules.kind_of(w, (s, s), (d, d), g) for w, s, d, g in shapes}
    there_are.add(_rules.kind_of((8, 8, 1, 3), (1, 1), (1, 1), 1, 1))
    assert there_are - {row.kind for row in _rules._TABLE} == {
        "stem",
        "pointwise",
        "strided",
        "dilated",
    }  # ours, whatever the size
    assert {row.kind for row in _rules._TABLE} < there_are
    assert all(row.why for row in _rules._TABLE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_torchs_way_computes_the_same(activation, channels_last):
    torch.manual_seed(0)
    bn = randomise(nn.BatchNorm2d(8))
    x, weight, bias, residual = (
        torch.randn(2, 4, 9, 8),
        torch.randn(8, 2, 3, 3),
        torch.randn(8),
        torch.randn(2, 8, 5, 4),
    )
    kept, g = residual.clone(), Geometry((2, 2), (1, 1, 1, 0), (1, 1), 2)
    norm = (bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    with torch.no_grad():
        run = TorchConv(g, Act(activation, 0.2).in_place({})).bind(weight, norm, bn.eps, channels_last)
        z = bn(F.conv2d(F.pad(x, (1, 0, 1, 1)), weight, bias, 2, 0, 1, 2))
        for r in (None, residual):
            expected = ACTIVATIONS[activation](z if r is None else z + r)
            assert relative_l2(run(x, r), expected) < 1e-6
    assert torch.equal(residual, kept)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        return self.b(F.relu(self.bn(self.a(x)) + x))


@torch.no_grad()
def test_the_choice_is_made_for_each_size():
    model = randomise(Wide())
    fast = pk.optimize(model)
    small, large = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 104, 104)
    agree(fast, model, large)
    assert kinds(fast) == ["conv"]
    assert [x.why for x in fast.report().left] == [
        "torch's convolution with wide filters is faster on large images of few channels"
    ]
    agree(fast, model, small)
    assert kinds(fast) == ["conv+bn+add+relu", "conv"]
    agree(fast, model, large)
    assert fast.report().programs == 1


@torch.no_grad()
def test_weights_that_change_reach_what_torch_runs():
    model = randomise(Wide())
    fast, x = pk.optimize(model), torch.randn(1, 16, 104, 104)
    agree(fast, model, x)
    model.a.weight.mul_(2)
    model.bn.running_var.mul_(3)
    agree(fast, model, x)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_people_run(name):
    model, x = build(name)
    x = x[..., :64, :64] if x.dim() == 4 else x
    fast = pk.optimize(model)
    expected = model(x)
    for _ in range(2):
        got = fast(x)
        assert relative_l2(got, expected) < 1e-5
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("isa", ["avx2", "avx512_vnni"])
def test_the_table_agrees_with_the_measurements(isa):
    """Where the last bench says that one is faster by a quarter, the table says so too, but for a few."""
    path = Path(__file__).parents[2] / f"bench/results/layers-{isa}.json"
    if not path.is_file():
        pytest.skip("no results beside the tests")
    wrong, total = [], 0
    for row in json.loads(path.read_text())["results"]:
        padding = [row["dilation"] * (r - 1) // 2 for r in row["kernel"]]
        why = _rules.torchs_because(
            (1, row["c"], row["size"], row["size"]), (row["k"], row["c"] // row["groups"], *row["kernel"]),
            (row["stride"],) * 2, (*padding, *padding), (row["dilation"],) * 2, row["groups"],
            row["layout"], isa,
        )  # fmt: skip
        total += 1
        if row["ratio"] < 0.8 if not why else row["ratio"] > 1.25:
            wrong.append((row["what"], row["activation"], row["layout"], row["ratio"]))
    assert len(wrong) <= total // 20, wrong
