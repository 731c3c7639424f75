"""Group and instance norms as our steps: the numbers, shapes and strides of eager's, and which stay torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import FORMATS, native, normal
from tests.optimize.models import called, checked, kinds, programs

pytestmark = native


class Normed(nn.Module):
    """A norm behind a convolution, with a sum and an activation, and one of the input."""

    def __init__(self, norm, act=F.relu, adds=True):
        super().__init__()
        self.norm, self.act, self.adds = norm, act, adds
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.a(x)
        z = self.norm(self.b(y))
        return (self.a(self.act(z + y if self.adds else z)[:, :4]),)


def affine(norm):
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * normal(*norm.weight.shape))
        norm.bias.copy_(normal(*norm.bias.shape, seed=1))
    return norm


OURS = {
    "group": lambda: affine(nn.GroupNorm(4, 8)),
    "plain group": lambda: nn.GroupNorm(2, 8, affine=False),
    "one group": lambda: affine(nn.GroupNorm(1, 8, eps=1e-3)),
    "instance": lambda: nn.InstanceNorm2d(8),
    "affine instance": lambda: affine(nn.InstanceNorm2d(8, affine=True)),
    "torch.group_norm": lambda: lambda t: torch.group_norm(t, 4),
}  # fmt: skip


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_ours(name, layout):
    instance = "instance" in name
    fast = checked(Normed(OURS[name]()), normal(2, 4, 12, 13, layout=layout))
    # Eager's instance norm of channels_last images is contiguous.
    if instance and layout == torch.channels_last:
        return
    assert ("instance_norm" if instance else "group_norm") + "+add+relu" in kinds(fast)
    assert "pk.ops.group_norm_act" in {r.by for r in fast.report().replaced}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("act", "what"),
    [
        (F.silu, "silu"),
        (nn.LeakyReLU(0.3), "leaky_relu"),
        (F.gelu, "gelu"),
        (nn.PReLU(), ""),
        (lambda t: F.elu(t, 0.5), ""),
        (lambda t: t, ""),
    ],
)
def test_activations_without_constants_of_their_own_are_fused(act, what, layout):
    fast = checked(Normed(OURS["group"](), act, adds=False), normal(2, 4, 12, 13, layout=layout))
    assert "+".join(filter(None, ("group_norm", what))) in kinds(fast)


def test_no_batch_norm_is_taken():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.ReLU()).eval()
    with torch.no_grad():
        model[2].running_mean.copy_(normal(8))
    fast = pk.optimize(model)
    x = normal(1, 3, 12, 12)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert kinds(fast) == ["conv", "group_norm", "bn+relu"]


class Alone(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.conv = norm, nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        return (self.norm(self.conv(x)) * 2,)


@pytest.mark.parametrize(
    ("norm", "dtype"),
    [
        (nn.InstanceNorm2d(8, track_running_stats=True), torch.float32),
        (nn.GroupNorm(2, 8), torch.float64),
        (lambda t: F.group_norm(t.repeat(1, 128, 1, 1), 32)[:, :8], torch.float32),
    ],
    ids=["running statistics", "float64", "few pixels"],
)
def test_torchs(norm, dtype):
    fast = checked(Alone(norm).to(dtype), normal(2, 4, 7, 7, dtype=dtype))
    assert "pk.ops.group_norm_act" not in {r.by for r in fast.report().replaced}


def test_other_sizes():
    for name in ("group", "instance"):
        checked(Normed(OURS[name]()), normal(2, 4, 12, 13), normal(1, 4, 9, 8), normal(3, 4, 12, 13))


@pytest.mark.parametrize("name", ["instance", "single"])
def test_one_value_is_refused_by_torch(name):
    norm = nn.InstanceNorm2d(8) if name == "instance" else nn.GroupNorm(8, 8)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), norm).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for x in (normal(1, 4, 6, 6), normal(1, 4, 3, 3)):
            torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="Expected more than 1"):
            fast(normal(1, 4, 1, 1))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(32, 8, 1), nn.GroupNorm(4, 16)

    def forward(self, x):
        y = self.a(x)
        return (self.b(torch.cat((F.silu(self.norm(y)), y), 1)),)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_norm_writes_into_what_cat_joins(layout):
    fast = checked(Joined(), normal(1, 3, 20, 20, layout=layout), normal(2, 3, 12, 16, layout=layout))
    (program, *_) = programs(fast)
    assert "cat" not in called(program)
    assert ".copy_" not in program.text()


def test_weights_that_change_are_followed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()).eval()
    fast, x = pk.optimize(model), normal(1, 3, 12, 12)
    with torch.no_grad():
        for i in range(4):
            torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
            model[1].weight.mul_(1 + i)
            model[1].bias.add_(i)


def test_gradients_of_the_image_pass_through():
    model = Normed(OURS["group"]()).eval()
    fast = pk.optimize(model)
    for _ in range(3):
        x = normal(1, 4, 8, 8).requires_grad_()
        got, expected = (torch.autograd.grad(sum(t.square().sum() for t in f(x)), x)[0] for f in (fast, model))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
