"""Layer norms and what stands between two permutations as our steps: eager's numbers, shapes and strides."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import FORMATS, native, normal, relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import checked, functions, kinds, near

pytestmark = native


def shaken(module):
    """With weights that a wrong fold or order would show."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * normal(*p.shape, seed=i))
    return module.eval()


def replaced(fast):
    return {r.what: r.by for r in fast.report().replaced}


class Block(nn.Module):
    """ConvNeXt's, as timm, torchvision and the authors write it."""

    def __init__(self, way, c=16):
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.gamma = nn.Parameter(torch.ones((c, 1, 1) if way == "torchvision" else c))

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y))))
        if self.way == "authors":
            y = self.gamma * y
        y = torch.permute(y, (0, 3, 1, -2)) if self.way != "timm" else y.permute(0, 3, 1, 2)
        if self.way == "timm":
            y = y.mul(self.gamma.reshape(1, -1, 1, 1))
        if self.way == "torchvision":
            y = self.gamma * y
            y += x
            return y
        return y + x


class Blocks(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 16, 4, 4), nn.Sequential(*blocks)

    def forward(self, x):
        return (self.blocks(self.stem(x)),)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("way", ["timm", "torchvision", "authors"])
def test_a_block_of_convnext_is_four_steps(way, layout):
    model = shaken(Blocks(Block(way), Block(way)))
    fast = checked(model, normal(2, 3, 36, 40, layout=layout), normal(1, 3, 28, 32, layout=layout))
    assert kinds(fast)[1:5] == ["conv", "layer_norm", "linear+gelu", "linear+scale+add"]
    assert replaced(fast)["layer_norm"] == "pk.ops.layer_norm"
    assert not [s for s in kinds(fast) if "permute" in s]


class Norm2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.LayerNorm(8)

    def forward(self, x):
        y = self.a(x)
        z = F.relu(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.b(z), z.contiguous()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_norm_of_channels_between_convolutions(layout):
    fast = checked(shaken(Norm2d()), normal(2, 3, 16, 17, layout=layout))
    assert "layer_norm" in kinds(fast)
    assert "permute" not in kinds(fast)


class Rows(nn.Module):
    """Before and after attention, over one and two dimensions, of what has other strides, with a scale and a sum."""

    def __init__(self):
        super().__init__()
        self.norm, self.two, self.bare = nn.LayerNorm(24), nn.LayerNorm((9, 24)), nn.LayerNorm(24, bias=False)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.gamma, self.beta = nn.Parameter(torch.ones(24)), nn.Parameter(torch.ones(1, 1, 24))

    def forward(self, x):
        y = self.norm(x)
        y = x + self.gamma * self.first(y)
        y = y + self.second(self.bare(y)) * self.beta
        return self.two(y), F.layer_norm(y.transpose(0, 1), (24,)), self.norm(y[:, 1:])


def test_rows():
    fast = checked(shaken(Rows()), normal(2, 9, 24), normal(3, 9, 24))
    assert kinds(fast).count("layer_norm") == 5
    assert kinds(fast).count("linear+scale+add") == 2


def test_bfloat16():
    model = shaken(Rows()).bfloat16()
    fast, x = pk.optimize(model), normal(2, 9, 24).bfloat16()
    for _ in range(3):
        near(fast, model, x, model_bound(model, torch.bfloat16))
    assert kinds(fast).count("layer_norm") == 5


class Scaled(nn.Module):
    """Scales that are none of a channel's, or that come too late."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6)
        self.last, self.one = nn.Parameter(normal(6)), nn.Parameter(normal(1))
        self.channel, self.row = nn.Parameter(normal(6, 1, 1, seed=1)), nn.Parameter(normal(3, 1, 1, seed=2))

    def forward(self, x):
        return (
            self.conv(x) * self.last,  # of columns
            self.conv(x + 1) * self.one,
            F.relu(self.conv(x + 2)) * self.channel,
            self.linear(x) * x.mean(),
            self.linear(x + 3) * self.row,  # of the last dimension but two
            (self.conv(x + 4) + x.mean()) * self.channel,
        )


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_other_factors_are_left_alone(layout):
    fast = checked(shaken(Scaled()), normal(2, 3, 6, 6, layout=layout))
    assert not [k for k in kinds(fast) if "scale" in k]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 96, 3), nn.Linear(96, 96)
        self.gamma = nn.Parameter(torch.ones(96))

    def forward(self, x):
        y = self.conv(x).mul_(self.gamma[:, None, None])
        z = self.linear(y.mean((2, 3)))
        z *= self.gamma
        return y, z


def test_factors_in_place_are_taken():
    fast = checked(shaken(InPlace()), normal(2, 3, 9, 9))
    assert {"conv+scale", "linear+scale"} <= set(kinds(fast))


def test_scales_that_change_are_followed():
    model = shaken(Blocks(Block("timm")))
    fast, x = pk.optimize(model), normal(1, 3, 16, 16)
    with torch.no_grad():
        for i in range(4):
            near(fast, model, x, model_bound(model))
            model.blocks[0].gamma.mul_(1 + i)
            model.blocks[0].norm.bias.add_(i)


class Otherwise(nn.Module):
    """Permutations whose rows something else reads, or that are others."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        a = self.conv(x).permute(0, 2, 3, 1)
        b = self.norm(a)
        c = (b * torch.sigmoid(b.mean((1, 2), keepdim=True))).permute(0, 3, 1, 2)
        d = self.linear(a).permute(0, 3, 2, 1)
        e = self.norm(self.conv(x + 1).permute(0, 3, 2, 1)).permute(0, 3, 1, 2)
        f = self.norm(self.conv(x + 2).permute(0, 2, 3, 1))
        g = self.conv(x + 3).permute(0, 2, 3, 1)
        h = self.norm(g).permute(0, 3, 1, 2)
        return c, d, e, a, f.permute(0, 3, 1, 2), f, h, g


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_other_permutations_stay(layout):
    fast = checked(shaken(Otherwise()), normal(2, 3, 9, 10, layout=layout))
    assert functions(fast)["permute"] == 9
    assert sorted(kinds(fast)) == ["conv"] * 4 + ["layer_norm"] * 4


def pixel_scale(x, scale):
    """No product, though it has the name of one of ours."""
    return x * scale + 1


@torch.no_grad()
def test_a_function_of_the_name_of_ours_is_not_ours():
    torch._dynamo.allow_in_graph(pixel_scale)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x):
            return pixel_scale(self.conv(x), self.scale)

    model, x = Named().eval(), normal(1, 3, 8, 8)
    compiled = torch.compile(model, backend="pykernels")
    for _ in range(3):
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs(dtype):
    model = nn.Sequential(nn.LayerNorm(8)).to(dtype)
    fast, x = pk.optimize(model), normal(3, 8, dtype=dtype)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x))
    assert "layer_norm" not in replaced(fast)


def test_gradients_of_the_image_pass_through():
    model = shaken(Blocks(Block("timm")))
    fast, double = pk.optimize(model), copy.deepcopy(model).double()
    for _ in range(3):
        x = normal(1, 3, 16, 16).requires_grad_()
        wide = x.detach().double().requires_grad_()
        got, exact = (torch.autograd.grad(f(a)[0].square().sum(), a)[0] for f, a in ((fast, x), (double, wide)))
        assert relative_l2(got, exact) <= 2 * model_bound(model)  # as many sums again, backwards


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_an_export_has_our_ops(layout):
    model, x = shaken(Blocks(Block("timm"))), normal(1, 3, 16, 16, layout=layout)
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(x)
        program = torch.export.export(fast, (x,))
        near(program.module(), model, x, model_bound(model))
    assert any("pykernels.layer_norm" in str(n.target) for n in program.graph.nodes)


def test_dynamo_gives_the_same_steps():
    model, x = shaken(Blocks(Block("torchvision"))), normal(1, 3, 16, 16)
    fast = torch.compile(model, backend="pykernels")
    with torch.no_grad():
        for _ in range(3):
            near(fast, model, x, model_bound(model))
