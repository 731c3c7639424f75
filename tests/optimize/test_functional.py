"""What a model writes in place is fused where nobody can tell, and seen by whoever sees it in eager mode."""

from __future__ import annotations

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import normal, relative_l2
from tests.optimize.models import kinds


class Model(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.e, self.norm, self.body = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), body

    def forward(self, x):
        return self.body(self, x)


def made(body):
    torch.manual_seed(0)
    model = Model(body).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


def branches(m, x):
    y = 0
    for branch in (m.norm, m.c, m.d):
        y += branch(x)
    return F.relu(y, inplace=True)


def zeros_first(m, x):
    y = torch.zeros_like(x)
    y += m.c(x)
    y += m.d(x)
    return y


def of_a_slice(m, x):
    y = torch.cat([m.c(x), m.d(x)], 1)[:, :16]
    y += torch.cat([x, x], 1)
    return m.e(y)


def of_half_a_sum(m, x):
    y = torch.cat([m.c(x), m.d(x)], 1)[:, :8]
    y += x
    return y


def activations(m, x):
    y = F.hardtanh(m.c(x), -1.0, 1.0, True)
    y = F.leaky_relu_(m.d(y), 0.2)
    y = m.c(y).clamp_(min=-0.5).mul_(2.0)
    return m.d(F.elu(y, 1.0, True)).tanh_()


def scaled_elu(m, x):
    return torch._C._nn.elu_(m.c(x), 1.0, 3.0, 2.0)


def integers(m, x):
    y = torch.arange(8) * 2
    y.clamp_(min=3)
    y *= True
    return m.c(x) * y[:, None, None]


def returned_before(m, x):
    y = m.c(x)
    y2 = y
    y += m.d(x)
    return y2, y


def a_view_is_returned(m, x):
    y = m.c(x)
    rows = y.flatten(2)
    y.mul_(2.0)
    return rows


def a_view_is_read(m, x):
    y = m.c(x)
    part = y[:, 2:4]
    y += m.d(x)
    return m.d(y) + part.sum()


def a_view_is_written(m, x):
    y = m.c(x)
    part = y[:, 2:4]
    part += 1.0
    return m.d(y)


def the_input(m, x):
    x += 1.0
    return m.c(x)


def a_view_of_the_input(m, x):
    y = x.view(x.shape)
    y += m.c(x)
    return y


def itself(m, x):
    y = m.c(x)
    y += y
    y *= y
    return y


def other_layout(m, x):
    y = m.c(x).contiguous()
    y += m.d(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return y


def broadcast(m, x):
    y = m.c(x)
    y *= torch.sigmoid(y.mean((2, 3), keepdim=True))
    return m.d(y)


def twice(m, x):
    y = m.c(x)
    y += m.d(x)
    z = y[:, :4]
    y += x
    return z.sum(1), y


def kept_by_reshape(m, x):
    y = m.c(x)
    rows = y[..., -5:].flatten(2)  # a copy, but for images of five columns
    y += x
    return rows * 1.0, y


BODIES = [
    branches, zeros_first, of_a_slice, of_half_a_sum, activations, scaled_elu, integers, returned_before,
    a_view_is_returned, a_view_is_read, a_view_is_written, the_input, a_view_of_the_input, itself, other_layout,
    broadcast, twice, kept_by_reshape,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@torch.no_grad()
def test_writes_are_seen_where_eager_shows_them(body, layout):
    model = made(body)
    fast = pk.optimize(model)
    for size in ((2, 8, 6, 6), (2, 8, 6, 6), (3, 8, 5, 5), (1, 8, 6, 6), (3, 8, 1, 1)):
        x = normal(*size).to(memory_format=layout)
        given, given64 = x.clone(), x.double()
        exact, found, mine = copy.deepcopy(model).double()(given64), fast(x), model(given)
        for e, f, m in zip(*(y if isinstance(y, tuple) else (y,) for y in (exact, found, mine)), strict=True):
            assert relative_l2(f, e) <= max(2 * relative_l2(m, e), 1e-6)
            assert f.stride() == m.stride()
        assert relative_l2(x, given64) <= max(2 * relative_l2(given, given64), 1e-6)  # it may be written to


class Keeper(nn.Module):
    """Keeps what it returns, and can't be recorded."""

    def forward(self, x):
        self.last = x * 2 if time.time() > 0 else x
        return self.last


@torch.no_grad()
def test_what_a_module_keeps_is_written_to():
    model = made(lambda m, x: m.keeper(x).add_(m.c(x)))
    model.keeper = Keeper()
    fast = pk.optimize(model)
    for _ in range(3):
        y = fast(normal(2, 8, 5, 5))
        assert torch.equal(y, fast.keeper.last)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (branches, ["conv+relu"]),
        (zeros_first, ["conv+add"]),
        (of_a_slice, ["conv", "conv", "conv"]),
        (the_input, ["conv"]),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
@torch.no_grad()
def test_sums_in_place_are_fused(body, expected):
    fast = pk.optimize(made(body))
    fast(normal(2, 8, 6, 6))
    assert [k for k in kinds(fast) if k.startswith("conv")] == expected


@torch.no_grad()
def test_sums_in_place_are_quantised():
    model, x = made(of_a_slice), normal(2, 8, 6, 6)
    quantised = pk.quantize(model, [x])
    quantised(x)
    assert [layer.why for layer in quantised.report().layers] == ["", "", ""]
    assert relative_l2(quantised(x), model(x)) < 0.05
