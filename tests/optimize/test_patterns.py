"""What is rewritten beside convolution, batch norm and activation: pads, parallel branches, duplicates, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.cli.bench.peers.networks.mobile import MobileOneBlock
from pykernels.optimize._program import Program
from tests.harness import relative_l2
from tests.optimize.models import agree, image, kinds, randomise, same


def steps(fast) -> list[str]:
    """What the only program calls."""
    (program,) = {p for p in fast._compiled_call_impl.programs.values() if isinstance(p, Program)}
    return [s.note or s.name() for s in program.graph.steps if s.kind != "format"]


class SameConv(nn.Conv2d):
    """As in TensorFlow: the zeros depend on the size."""

    def forward(self, x):
        h, w = x.shape[-2:]
        rows, columns = (max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (h, w))
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


PADDED = {
    "ZeroPad2d": nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(3, 8, 3)),
    "and its own": nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(3, 8, 3, padding=1, stride=2)),
    "columns": nn.Sequential(nn.ConstantPad2d((2, 1, 0, 0), 0.0), nn.Conv2d(3, 8, (1, 4))),
    "same": nn.Sequential(SameConv(3, 8, 3, stride=2)),
    "same padding": nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 4, padding="same")),
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("size", [12, 13])
def test_zeros_around_the_image_are_the_convolutions(name, size):
    fast = same(nn.Sequential(*PADDED[name], nn.BatchNorm2d(8), nn.ReLU()), image(2, 3, size, size))
    assert steps(fast) == ["conv+bn+relu"]


@pytest.mark.parametrize("pad", [nn.ConstantPad2d(1, 1.0), nn.ReflectionPad2d(1), nn.ZeroPad2d(-1)])
def test_other_pads_stay(pad):
    fast = same(nn.Sequential(pad, nn.Conv2d(3, 8, 3)), image())
    assert len(steps(fast)) == 2


class PadsOnce(nn.Module):
    """Two read the padded image; it is written to before the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = x * 1
        y = F.pad(x, (1, 1, 1, 1))
        a = self.a(y)
        x.neg_()
        return a + self.b(y)


def test_a_padded_image_is_what_it_was_when_it_was_padded():
    fast = same(PadsOnce(), image())
    assert "pad" in steps(fast)
    assert kinds(fast) == ["conv"]  # of both


class RepVGG(nn.Module):
    def __init__(self, c, k, stride=1, groups=1, form="sum"):
        super().__init__()
        self.large = nn.Sequential(nn.Conv2d(c, k, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(k))
        self.small = nn.Sequential(nn.Conv2d(c, k, 1, stride, groups=groups), nn.BatchNorm2d(k))
        self.identity = nn.BatchNorm2d(c) if c == k and stride == 1 else None
        self.form = form

    def forward(self, x):
        if self.form == "in place":
            y = self.small(x)
            y += self.large(x)
            if self.identity is not None:
                y += self.identity(x)
        else:
            y = self.large(x) + self.small(x)
            if self.identity is not None:
                y = self.identity(x) + y
        if self.form == "residual":
            y = y + x
        return F.relu(y)


@pytest.mark.parametrize("form", ["sum", "in place", "residual"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_parallel_branches_are_one_convolution(form, groups):
    fast = same(RepVGG(8, 8, groups=groups, form=form), image(2, 8, 6, 7))
    assert steps(fast) == ["conv+add+relu" if form == "residual" else "conv+relu"]


@pytest.mark.parametrize("stride", [1, 2])
def test_branches_without_identity(stride):
    assert steps(same(RepVGG(8, 12, stride), image(2, 8, 7, 7))) == ["conv+relu"]


@pytest.mark.parametrize(("args", "kernel"), [((8, 8, 3, 1, 8), 3), ((8, 16, 1), 1), ((3, 8, 3, 2), 3)])
def test_mobileone(args, kernel):
    fast = same(MobileOneBlock(*args), image(2, args[0], 7, 8))
    assert steps(fast) == ["conv+relu"]


@torch.no_grad()
def test_summed_weights_follow_their_sources():
    model, x = randomise(RepVGG(8, 8)), image(2, 8, 6, 6)
    fast = pk.optimize(model)
    agree(fast, model, x)
    model.small[0].weight.mul_(3)
    agree(fast, model, x)
    model.identity.running_mean.add_(1)
    agree(fast, model, x)
    assert steps(fast) == ["conv+relu"]


class Branches(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.what = what

    def forward(self, x):
        x = x * 1
        if self.what == "read twice":
            y = self.b(x)
            return self.a(x) + y, y
        if self.what == "other image":
            return self.a(x) + self.b(x * 2)
        if self.what == "dilated":
            return self.wide(x) + self.b(x)
        if self.what == "written between":
            y = self.b(x)
            x.mul_(2)
            return self.a(x) + y
        if self.what == "view of a summand":
            y = self.b(x)
            z = y[:, 1:]
            y += self.a(x)
            return y, z * 2
        if self.what == "into a sum that is read":
            y = self.b(x) + self.a(x)
            z = F.relu(y)
            y += self.wide(x)
            return y, z
        return F.relu(self.a(x)) + self.b(x)


@torch.no_grad()
@pytest.mark.parametrize(
    "what",
    ["read twice", "other image", "dilated", "written between", "view of a summand", "into a sum that is read", "relu"],
)
def test_other_branches_keep_their_numbers(what):
    model = randomise(Branches(what))
    fast, x = pk.optimize(model), image(2, 4, 6, 6)
    expected = model(x)
    for _ in range(3):
        got = fast(x)
        for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, expected)), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert len(kinds(fast)) >= (1 if what == "into a sum that is read" else 2)


@pytest.mark.parametrize("act", [nn.Hardtanh(), nn.Hardtanh(inplace=True), nn.ELU(0.5), nn.Hardtanh(-2, 6)])
def test_an_activation_of_torchs_stops_no_fold_and_writes_in_place(act):
    first = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2)  # behind which no activation is fused
    fast = same(nn.Sequential(*first, act, nn.Conv2d(8, 4, 1)), image())
    assert kinds(fast) == ["conv+bn", "max_pool2d", "conv"]
    (program,) = fast._compiled_call_impl.programs.values()
    assert sum(bool(s.writes) for s in program.graph.steps) == 1


class Sums(nn.Module):
    """What may be written over and what may not."""

    def __init__(self, what):
        super().__init__()
        self.a, self.b, self.what = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), what

    def forward(self, x):
        y = self.a(x)
        if self.what == "read again":
            return F.relu6(y) * y
        if self.what == "a view is read":
            z = y[:, :2]
            return F.relu6(y)[:, :2] * z
        if self.what == "returned":
            return F.relu6(y), y
        if self.what == "input":
            return F.relu6(x) + y
        if self.what == "broadcast":
            return y.mean((2, 3), keepdim=True) + y * 0.5 + self.b(y)
        if self.what == "twice":
            return F.relu6(y + self.b(x) * self.b(y))
        return torch.add(y, y)


@torch.no_grad()
@pytest.mark.parametrize("what", ["read again", "a view is read", "returned", "input", "broadcast", "twice", "double"])
def test_memory_is_written_over_only_where_nothing_reads_it(what):
    model = randomise(Sums(what))
    fast, x = pk.optimize(model), image(2, 4, 6, 6)
    expected, kept = model(x), x.clone()
    for _ in range(3):
        got = fast(x)
        for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (got, expected)), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        assert torch.equal(x, kept)


class Repeats(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        _ = x.sum() + 1
        a, b = x.mean((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)
        return self.conv(x * a) + F.softplus(x * b), x.mean((2, 3), keepdim=True)


@torch.no_grad()
def test_dead_and_duplicate_steps_are_gone():
    model, x = Repeats().eval(), image(2, 4, 6, 6)
    fast = pk.optimize(model)
    for _ in range(3):
        got = fast(x)
        for a, b in zip(got, model(x), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert steps(fast).count("mean") == 2
    assert steps(fast).count("mul") == 1
    assert "sum" not in steps(fast)


@pytest.mark.parametrize(
    "dropout", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout(inplace=True)]
)
def test_dropout_is_no_step(dropout):
    fast = same(nn.Sequential(nn.Conv2d(3, 4, 3), dropout, nn.BatchNorm2d(4), dropout, nn.ReLU()), image())
    assert steps(fast) == ["conv+bn+relu"]


class InPlace(nn.Module):
    """As in most residual networks: the sum and the activation in place, and what comes after takes it apart."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.n(self.a(x))
        y += x
        y = self.act(y)
        first, second = y.chunk(2, 1)
        first.add_(1)
        return self.b(second), y


def test_sums_and_activations_in_place_are_fused_whatever_follows():
    model = randomise(InPlace())
    fast = pk.optimize(model)
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(3):
            for got, expected in zip(fast(x), model(x), strict=True):
                assert relative_l2(got, expected) < 1e-5
    assert "conv+bn+add+relu" in kinds(fast)
