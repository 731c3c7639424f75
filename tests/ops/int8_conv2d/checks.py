"""What int8_conv2d must do on every backend; test_call.py and test_triton.py run these `CHECKS` on theirs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pykernels.ops import int8_conv2d
from tests import harness
from tests.harness import DEVICE

integers = partial(harness.integers, device=DEVICE)


def sums_by_hand(x, weight, stride, padding):
    """In int64, one tap after the other."""
    n, c, _, _ = x.shape
    k, _, r, s = weight.shape
    x = F.pad(x.cpu().long(), (padding,) * 4)
    p, q = (x.shape[2] - r) // stride + 1, (x.shape[3] - s) // stride + 1
    y = torch.zeros(n, k, p, q, dtype=torch.int64)
    for i in range(r):
        for j in range(s):
            taken = x[:, :, i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride]
            for channel in range(c):
                y += taken[:, channel, None] * weight[:, channel, i, j].cpu().long()[:, None, None]
    return y


def sums_are_exact(backend):
    x, weight = integers(2, 5, 8, 7), integers(6, 5, 3, 3, seed=1)
    y = int8_conv2d(x, weight, stride=2, padding=1, out_dtype=torch.int32, backend=backend)
    assert y.dtype == torch.int32
    assert torch.equal(y.cpu().long(), sums_by_hand(x, weight, 2, 1))


def sums_that_float32_does_not_hold(backend):
    x = torch.full((1, 200, 3, 3), -128, dtype=torch.int8, device=DEVICE)
    weight = torch.full((2, 200, 3, 3), 127, dtype=torch.int8, device=DEVICE)
    weight[1, 0, 0, 0] = 126
    y = int8_conv2d(x, weight, out_dtype=torch.int32, backend=backend)
    exact = -128 * 127 * 1800
    assert y.flatten().tolist() == [exact, exact + 128]
    assert abs(exact) > 2**24


def rounding_saturation_and_nan(backend):
    values = [5, 7, -5, -7, 126, -126, 0]
    x = torch.tensor(values, dtype=torch.int8, device=DEVICE).reshape(1, 1, 1, -1)
    weight = torch.ones(3, 1, 1, 1, dtype=torch.int8, device=DEVICE)
    scale = torch.tensor([0.5, 2.0, torch.nan], device=DEVICE)
    y = int8_conv2d(x, weight, scale, out_dtype=torch.int8, backend=backend)
    assert y[0, :, 0].tolist() == [[2, 4, -2, -4, 63, -63, 0], [10, 14, -10, -14, 127, -128, 0], [0] * 7]


def the_whole_formula(backend):
    x, weight, residual = integers(2, 4, 5, 5), integers(3, 4, 3, 3, seed=1), integers(2, 3, 5, 5, seed=2)
    scale, bias = torch.tensor([1e-3, 2e-3, 3e-3]).to(DEVICE), torch.tensor([0.5, -1.0, 2.0]).to(DEVICE)
    y = int8_conv2d(
        x, weight, scale, bias, residual=residual, residual_scale=0.25, padding=1, activation="leaky_relu",
        negative_slope=0.5, out_scale=3.0, backend=backend,
    )  # fmt: skip
    z = sums_by_hand(x, weight, 1, 1).double() * scale.cpu()[:, None, None] + bias.cpu()[:, None, None]
    z = F.leaky_relu(z + 0.25 * residual.cpu(), 0.5) * 3
    torch.testing.assert_close(y.cpu().double(), z, rtol=2e-6, atol=2e-5)


def _keeps(layout, backend):
    x, weight = integers(2, 4, 6, 5).contiguous(memory_format=layout), integers(8, 4, 3, 3, seed=1)
    y = int8_conv2d(x, weight, out_dtype=torch.int32, backend=backend)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(int8_conv2d(x[1], weight, out_dtype=torch.int32, backend=backend), y[1])


def contiguous_and_unbatched(backend):
    _keeps(torch.contiguous_format, backend)


def channels_last_and_unbatched(backend):
    _keeps(torch.channels_last, backend)


def a_large_stride_of_the_batch_and_expanded_operands(backend):
    x, weight = integers(1, 4, 6, 5).expand(3, 4, 6, 5), integers(1, 4, 3, 3, seed=1).expand(8, 4, 3, 3)
    y = int8_conv2d(x, weight, torch.ones((), device=DEVICE), backend=backend)
    assert torch.equal(y.cpu().long(), sums_by_hand(x, weight, 1, 0))


def compiles_whole(backend):
    weight, scale = integers(8, 4, 3, 3, seed=1), torch.rand(8, device=DEVICE)

    def f(x):
        return int8_conv2d(x, weight, scale, padding=1, activation="relu", backend=backend)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for n in (2, 3):
        x = integers(n, 4, 6, 5)
        assert torch.equal(compiled(x), f(x))


CHECKS = (
    sums_are_exact,
    sums_that_float32_does_not_hold,
    rounding_saturation_and_nan,
    the_whole_formula,
    contiguous_and_unbatched,
    channels_last_and_unbatched,
    a_large_stride_of_the_batch_and_expanded_operands,
    compiles_whole,
)
each_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
