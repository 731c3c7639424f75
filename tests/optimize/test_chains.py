"""Convolutions that follow each other: one call, and memory that nobody else takes meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.optimize import _program
from tests.harness import native

pytestmark = native

OP = torch.ops.pykernels.conv_bn_act_chain_out


def conv(c, k, size, *, stride=1, groups=1, act=True):
    layers = [nn.Conv2d(c, k, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(k)]
    return nn.Sequential(*layers, *[nn.ReLU6()] * act)


class Block(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.adds = stride == 1 and c == k
        self.body = nn.Sequential(
            conv(c, 6 * c, 1), conv(6 * c, 6 * c, 3, stride=stride, groups=6 * c), conv(6 * c, k, 1, act=False)
        )

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


def network():
    torch.manual_seed(0)
    blocks = conv(3, 16, 3, stride=2), Block(16, 24, 2), Block(24, 24, 1), Block(24, 32, 2)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1)).eval()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_result_and_the_memory_in_between(batch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, x = network(), torch.randn(batch, 3, 192, 192)
        fast = pk.optimize(model)
        with torch.inference_mode():
            expected = model.double()(x.double())
            model.float()
            for _ in range(3):
                y = fast(x)
                assert torch.linalg.norm(y - expected) <= 1e-5 * torch.linalg.norm(expected)
    finally:
        torch.set_num_threads(before)


def calls(fast, x=None):
    """How often each op is called once a program runs."""
    with torch.inference_mode(), torch.profiler.profile() as profile:
        fast(torch.randn(1, 3, 192, 192) if x is None else x)
    return {e.key: e.count for e in profile.key_averages()}


def test_is_one_call():
    fast = pk.optimize(network())
    with torch.inference_mode():
        for _ in range(2):
            fast(torch.randn(1, 3, 192, 192))
    found = calls(fast)
    assert found["pykernels::conv_bn_act_chain_out"] == 1
    assert "pykernels::conv_bn_act_bound_out" not in found


def test_int8_is_one_call():
    model, x = network(), torch.randn(1, 3, 192, 192)
    quantised = pk.quantize(model, [x])
    with torch.inference_mode():
        expected = quantised(x)  # step by step: this call records
        for _ in range(2):
            assert torch.equal(quantised(x), expected)
    found = calls(quantised, x)
    assert found["pykernels::int8_conv2d_chain_out"] == 1
    assert "pykernels::int8_conv2d_bound_out" not in found


class Gated(nn.Module):
    """A block with squeeze-and-excitation."""

    def __init__(self, c):
        super().__init__()
        self.a, self.b, self.d = conv(c, 4 * c, 1), conv(4 * c, 4 * c, 3, groups=4 * c), conv(4 * c, c, 1, act=False)
        self.reduce, self.expand = nn.Conv2d(4 * c, c, 1), nn.Conv2d(c, 4 * c, 1)

    def forward(self, x):
        y = self.b(self.a(x))
        return x + self.d(y * torch.sigmoid(self.expand(torch.relu(self.reduce(y.mean((2, 3), keepdim=True))))))


def test_gates_are_part_of_the_call():
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(3, 16, 3), Gated(16), Gated(16), nn.AvgPool2d(2)).eval(), torch.randn(2, 3, 64, 64)
    fast = pk.optimize(model)
    with torch.inference_mode():
        expected = model(x)
        for _ in range(3):
            torch.testing.assert_close(fast(x), expected)
    found = calls(fast, x)
    assert found["pykernels::conv_bn_act_chain_out"] == 1
    assert "pykernels::squeeze_excite_out" not in found


class Read(nn.Module):
    """The depthwise convolution's result is read by two."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(16, 96, 1), conv(96, 96, 3, groups=96), conv(96, 96, 1, act=False)

    def forward(self, x):
        y = self.b(self.a(x))
        return (self.c(y) + y).mean((2, 3))


def test_what_others_read_is_kept():
    torch.manual_seed(0)
    model, x = Read().eval(), torch.randn(1, 16, 120, 120).to(memory_format=torch.channels_last)
    fast = pk.optimize(model)
    with torch.inference_mode():
        expected = model(x)
        for _ in range(3):
            torch.testing.assert_close(fast(x), expected)


def test_the_arena_leaves_the_kernels_room_for_bands(monkeypatch):
    """By bands they never write all of what lies between; without room they would run the convolutions one by one."""
    real, name, written = OP.default, _program._Writer._name, []

    def spy(x, bound, residual, out, *rest):
        for y in out:
            y.fill_(7)
        real(x, bound, residual, out, *rest)
        written.append([not torch.any(y == 7) for y in out])

    monkeypatch.setattr(_program._Writer, "_name", lambda self, f: name(self, spy if f is real else f))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the strips of many threads are too small
    try:
        fast = pk.optimize(network())
        with torch.inference_mode():
            for _ in range(3):
                fast(torch.randn(1, 3, 192, 192))
    finally:
        torch.set_num_threads(before)
    assert written[-1].count(False) >= 4
    assert written[-1][-1]
