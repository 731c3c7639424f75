"""Weights that the unpacked op keeps packed: only where nothing of them has changed, and never too many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from pykernels.ops import conv_bn_act
from tests.harness import native, normal, relative_l2

pytestmark = native


@pytest.fixture(autouse=True)
def nothing_kept():
    torch.ops.pykernels.forget_kept_weights()
    yield
    torch.ops.pykernels.forget_kept_weights()


def kept() -> int:
    return torch.ops.pykernels.kept_weight_bytes()


def run(x, weight):
    with torch.no_grad(), torch.inference_mode(False):
        return conv_bn_act(x, weight, padding=weight.shape[2] // 2, activation="none")


def assert_right(x, weight):
    assert relative_l2(run(x, weight), F.conv2d(x, weight, padding=weight.shape[2] // 2)) < 2e-6


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (24, 40, 1, 1), (64, 3, 7, 7)])
def test_a_weight_that_comes_again_is_kept(shape):
    x, weight = normal(1, shape[1], 12, 12), normal(*shape)
    first = run(x, weight)
    assert kept() == 0
    second = run(x, weight)
    assert kept() > weight.nbytes
    assert torch.equal(first, second)
    assert torch.equal(first, run(x, weight))


@pytest.mark.parametrize("at", [0, 1, 777, 32 * 16 * 9 - 1])
@pytest.mark.parametrize("write", ["numpy", "data", "in place"])
def test_every_write_is_seen(at, write):
    x, weight = normal(1, 16, 8, 8), normal(32, 16, 3, 3)
    for _ in range(3):
        run(x, weight)
    assert kept() > 0
    if write == "numpy":
        weight.numpy().reshape(-1)[at] = 100
    elif write == "data":
        weight.data.view(-1)[at] = 100
    else:
        weight.view(-1)[at] = 100
    for _ in range(3):
        assert_right(x, weight)


def test_a_large_weight_is_compared_to_its_end():
    x, weight = normal(1, 512, 2, 2), normal(512, 512, 1, 1)
    for _ in range(3):
        run(x, weight)
    weight.view(-1)[-2] = 100
    assert_right(x, weight)


def test_what_changes_at_every_call_is_not_kept():
    x, weight = normal(1, 16, 8, 8), normal(32, 16, 3, 3)
    for _ in range(4):
        assert_right(x, weight)
        weight.mul_(0.9)
    assert kept() == 0


def test_one_memory_may_hold_several_weights():
    x, memory = normal(1, 16, 8, 8), normal(16, 16, 3, 3)
    turned = memory.as_strided((16, 16, 3, 3), (144, 1, 48, 16))
    for _ in range(3):
        assert_right(x, memory)
        assert_right(x, turned)
        assert_right(x[:, :8], memory.view(32, 8, 3, 3))


def test_the_memory_is_bounded():
    x = normal(1, 1024, 1, 1)
    weights = [normal(2048, 1024, 1, 1) for _ in range(10)]
    for _ in range(3):
        for weight in weights:
            run(x, weight)
    assert 2 * weights[0].nbytes < kept() <= 128 << 20
    assert_right(x, weights[-1])


def test_threads_may_share_a_weight():
    x, weight = normal(1, 16, 8, 8), normal(32, 16, 3, 3)
    expected = run(x, weight)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: run(x, weight), range(64)):
            assert torch.equal(y, expected)
