"""Batch norms that no convolution takes: in one pass with what is around them, and the same as eager."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.optimize.models import agree, image, kinds, randomise


class Dense(nn.Module):
    """Layers that see all features before them, joined, normalised and activated first."""

    def __init__(self, act=F.relu, layers=3, dim=1):
        super().__init__()
        self.act, self.dim = act, dim
        self.stem = nn.Conv2d(3, 13, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(13 + 5 * i) for i in range(layers + 1))
        self.convs = nn.ModuleList(nn.Conv2d(13 + 5 * i, 5, 3, padding=1) for i in range(layers))

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(self.act(norm(torch.cat(features, self.dim)))))
        return self.act(self.norms[-1](torch.cat(features, self.dim))).mean((2, 3))


class Before(nn.Module):
    """Batch norm and activation before a convolution, and a sum (He et al., Identity Mappings)."""

    def __init__(self, act=F.relu, channels=12):
        super().__init__()
        self.act, c = act, channels
        self.bn1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)
        self.last = nn.BatchNorm2d(c)

    def forward(self, x):
        y = self.conv1(self.act(self.bn1(x)))
        return self.act(self.last(x + self.conv2(self.act(self.bn2(F.pad(y, (0, 1)))))[..., :-1]))


class By(nn.Module):
    def __init__(self, norm, function):
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, *x):
        return self.function(self.norm, *x)


def fused(fast):
    return [k for k in kinds(fast) if not k.startswith(("conv", "linear", "mean"))]


@torch.no_grad()
@pytest.mark.parametrize("dim", [1, -3])
def test_concatenation_batch_norm_and_activation_are_one(dim):
    model = randomise(Dense(dim=dim))
    fast = pk.optimize(model)
    for shape in ((2, 3, 9, 10), (1, 3, 33, 34), (1, 3, 1, 1), (0, 3, 5, 5)):
        agree(fast, model, image(*shape))
    assert fused(fast) == ["bn+relu"] * 4
    assert "cat" not in {step["what"] for step in fast.report().to_dict()["steps"]}


@torch.no_grad()
@pytest.mark.parametrize("act", [F.silu, F.gelu, nn.PReLU(), lambda x: x.clamp(-1, 1), F.softplus])
def test_other_activations(act):
    model = randomise(Dense(act, layers=1))
    fast = pk.optimize(model)
    agree(fast, model, image(2, 3, 9, 10))
    assert [k.split("+")[0] for k in fused(fast)] == ["bn", "bn"]


@torch.no_grad()
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_before_a_convolution(format):
    model = randomise(Before())
    fast, x = pk.optimize(model), image(2, 12, 11, 10).contiguous(memory_format=format)
    agree(fast, model, x)
    assert fused(fast) == ["bn+relu"] * 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(7), (5, 7)), (nn.BatchNorm1d(7), (3, 7, 20)), (nn.BatchNorm2d(7), (2, 7, 3, 5))]
)
def test_ranks(norm, shape, dtype):
    model = randomise(By(norm, lambda bn, x: F.relu(bn(x)))).to(dtype)
    fast, x = pk.optimize(model), torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if dtype is torch.float32:
        agree(fast, model, x)
    for _ in range(2):
        assert (fast(x).float() - model(x).float()).abs().max() < 0.05
    assert fused(fast) == ["bn+relu"]


FORMS = {
    "alone": (lambda bn, x: bn(x), ["bn"]),
    "after an activation": (lambda bn, x: bn(F.relu(x)), ["bn"]),
    "with a sum": (lambda bn, x: F.relu(bn(x) + x), ["bn+add+relu"]),
    "in place": (lambda bn, x: F.relu_(bn(x)), ["bn+relu"]),
    "and used besides": (lambda bn, x: (y := bn(x)) * F.relu(y), ["bn"]),
    "of a slice": (lambda bn, x: bn(torch.cat((x, x), 2)[:, :, 1:-1]), []),
    "of tensors joined and used besides": (lambda bn, x: bn(y := torch.cat((x[:, :3], x[:, 3:]), 1)) + y, ["bn+add"]),
    "of tensors joined along a side": (lambda bn, x: bn(torch.cat((x, x), 2)), ["bn"]),
    "of one tensor joined twice": (lambda bn, x: bn(torch.cat([z := x[:, :4] * 2, z], 1)), ["bn"]),
    "of what is changed later": (lambda bn, x: (y := x * 2, bn(y), y.add_(1))[1], ["bn"]),
    "of its own statistics": (lambda bn, x: F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3))), []),
    "training": (lambda bn, x: F.batch_norm(x, None, None, training=True), []),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    function, expected = FORMS[name]
    model = randomise(By(nn.BatchNorm2d(8), function))
    fast = pk.optimize(model)
    agree(fast, model, image(2, 8, 6, 5))
    assert fused(fast) == expected


@torch.no_grad()
def test_joined_tensors_that_are_written_to_before_they_are_read():
    """The batch norm may not move behind the write, nor read what was joined after it."""

    def function(bn, x):
        parts = [x[:, :3] * 2, x[:, 3:] * 3]
        y = torch.cat(parts, 1)
        parts[0].add_(100)
        return bn(y) + parts[0].sum()

    model = randomise(By(nn.BatchNorm2d(8), function))
    agree(pk.optimize(model), model, image(2, 8, 6, 5))


@torch.no_grad()
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_writes_are_followed(name):
    model = randomise(Dense())
    fast, x = pk.optimize(model), image(1, 3, 8, 8)
    for _ in range(2):
        agree(fast, model, x)
        getattr(model.norms[1], name).add_(0.75)
    model.norms[1].running_mean.data = torch.zeros(18)
    fast.norms[1].running_mean.data = model.norms[1].running_mean
    agree(fast, model, x)


@torch.no_grad()
def test_values_that_are_not_finite():
    model, x = randomise(Before()), image(1, 12, 9, 10)
    fast = pk.optimize(model)
    x[0, 1, 2, 3], x[0, 0, 6, 7], x[0, 2, 8, 0] = torch.nan, torch.inf, -torch.inf
    for _ in range(3):
        assert torch.equal(fast(x).isnan(), model(x).isnan())


@torch.no_grad()
def test_the_report_tells():
    fast, x = pk.optimize(randomise(Dense(layers=1))), image(1, 3, 8, 8)
    for _ in range(2):
        fast(x)
    told = fast.report(time=True).to_dict()
    step = next(s for s in told["steps"] if s["what"] == "bn+relu")
    assert step["who"] == "pykernels"
    assert step["seconds"] > 0


class AddedFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x, z):
        return z + self.bn(x)


@torch.no_grad()
@pytest.mark.parametrize("last", [(False, True), (True, False), (True, True)])
def test_a_residual_of_another_format(last):
    model = randomise(AddedFirst())
    formats = [torch.channels_last if is_last else torch.contiguous_format for is_last in last]
    x, z = (image(2, 4, 5, 6).contiguous(memory_format=f) for f in formats)
    agree(pk.optimize(model), model, x, z)
