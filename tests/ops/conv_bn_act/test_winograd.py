"""Winograd by the packed op and ConvBNAct2d: exact enough, chosen where it pays, not to be told from direct."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import pykernels as pk
from pykernels import _native
from tests.harness import assert_threads_change_nothing, forced_isa, host_isas, native, normal, relative_l2
from tests.ops.conv_bn_act.cases import bound

pytestmark = native

DIRECT, WINOGRAD4, WINOGRAD2 = 0, 1, 2
WINOGRADS = pytest.mark.parametrize("algorithm", [WINOGRAD4, WINOGRAD2])
ONE = ((1, 1), (1, 1, 1, 1), (1, 1), 1)  # stride, padding, dilation, groups


def convolve(x, weight, algorithm, geometry=ONE, residual=None, activation=0):
    packed = torch.ops.pykernels.conv_pack(weight, geometry[3], algorithm)
    return torch.ops.pykernels.conv_bn_act_packed(
        x, packed, tuple(weight.shape), None, None, residual, *geometry, activation, 0.01
    )


#: Data of unit variance: F(4, 3) errs by 9 roundings in its transforms and sqrt((32 + c / 32) / 6) * 3 in its sums,
#: which are cut into slices of 32 channels, in all below this at any number of channels; F(2, 3) by a third of it.
BOUND = {WINOGRAD4: 1e-6, WINOGRAD2: 4e-7}


def chosen(x, weight, geometry=ONE, **options):
    return _native.introspect().conv_algorithm(x, weight, *geometry, **options)


@WINOGRADS
@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("channels_last", [True, False])
def test_error(algorithm, isa, channels_last):
    x, weight = normal(2, 160, 13, 10), normal(48, 160, 3, 3, seed=1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with forced_isa(isa):
        y = convolve(x, weight, algorithm)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert relative_l2(y, F.conv2d(x.double(), weight.double(), padding=1)) <= BOUND[algorithm]


@WINOGRADS
@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize(("groups", "c", "k"), [(3, 16, 16), (2, 40, 24)])
def test_groups(algorithm, isa, groups, c, k):
    x, weight = normal(2, groups * c, 13, 30), normal(groups * k, c, 3, 3, seed=1)
    geometry = (*ONE[:3], groups)
    formats = (x, x.to(memory_format=torch.channels_last))
    with forced_isa(isa):
        assert_threads_change_nothing(lambda: [convolve(v, weight, algorithm, geometry) for v in formats], (1, 2, 5))
        y, other = (convolve(v, weight, algorithm, geometry) for v in formats)
    assert torch.equal(y, other)
    assert relative_l2(y, F.conv2d(x.double(), weight.double(), padding=1, groups=groups)) <= BOUND[algorithm]


@WINOGRADS
def test_bf16(algorithm):
    x, weight = normal(1, 64, 9, 9).bfloat16(), normal(40, 64, 3, 3, seed=1).bfloat16()
    residual = normal(1, 40, 9, 9, seed=2).bfloat16()
    y = convolve(x, weight, algorithm, residual=residual, activation=1)
    expected = F.relu(F.conv2d(x.double(), weight.double(), padding=1) + residual.double())
    assert y.dtype == torch.bfloat16
    assert relative_l2(y, expected) <= bound(weight)


@WINOGRADS
def test_bits_do_not_depend_on_threads_or_memory_format(algorithm):
    x, weight = normal(2, 48, 21, 18), normal(80, 48, 3, 3, seed=1)
    formats = (x, x.to(memory_format=torch.channels_last))
    assert_threads_change_nothing(lambda: [convolve(v, weight, algorithm) for v in formats], (1, 2, 5))
    assert torch.equal(*(convolve(v, weight, algorithm) for v in formats))


@WINOGRADS
def test_nan_and_infinity_reach_what_they_reach_in_conv2d(algorithm):
    x, weight = normal(1, 32, 12, 12), normal(32, 32, 3, 3, seed=1)
    x[0, 3, 4, 5], x[0, 7, 11, 0], x[0, 9, 0, 9] = torch.nan, torch.inf, -torch.inf
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative_l2(convolve(x, weight, algorithm), expected) <= BOUND[algorithm]


@WINOGRADS
def test_padding(algorithm):
    x, weight = normal(1, 16, 6, 9), normal(16, 16, 3, 3, seed=1)
    for top, left, bottom, right in ((0, 0, 0, 0), (2, 1, 0, 2), (0, 2, 1, 0), (5, 0, 0, 6)):
        y = convolve(x, weight, algorithm, ((1, 1), (top, left, bottom, right), (1, 1), 1))
        expected = F.conv2d(F.pad(x, (left, right, top, bottom)).double(), weight.double())
        assert relative_l2(y, expected) <= BOUND[algorithm]


@WINOGRADS
def test_refused_where_it_does_not_suit(algorithm):
    for weight, groups in ((normal(8, 8, 5, 5), 1), (normal(8, 8, 3, 1), 1), (normal(8, 4, 1, 3), 2)):
        with pytest.raises(RuntimeError, match=r"pykernels\.conv_pack: algorithm: Winograd is for 3 x 3 filters"):
            torch.ops.pykernels.conv_pack(weight, groups, algorithm)
    x, weight = normal(1, 8, 9, 9), normal(8, 8, 3, 3)
    for stride, dilation in (((2, 1), (1, 1)), ((1, 1), (1, 2))):
        with pytest.raises(RuntimeError, match="packed for Winograd, which needs stride 1 and dilation 1"):
            convolve(x, weight, algorithm, (stride, (1, 1, 1, 1), dilation, 1))


def test_algorithm_out_of_range_is_refused():
    for algorithm in (-1, 3):
        with pytest.raises(RuntimeError, match=r"pykernels\.conv_pack: algorithm: expected 0 \(direct\), 1"):
            torch.ops.pykernels.conv_pack(normal(8, 8, 3, 3), 1, algorithm)


def test_choice():
    assert chosen((1, 64, 56, 56), (64, 64, 3, 3)) == WINOGRAD4
    assert chosen((1, 512, 7, 7), (512, 512, 3, 3)) == WINOGRAD2
    assert chosen((1, 512, 7, 7), (512, 512, 3, 3), packs=True) == DIRECT
    assert chosen((1, 64, 56, 56), (64, 64, 3, 3), ((2, 2), (1, 1, 1, 1), (1, 1), 1)) == DIRECT
    assert chosen((1, 320, 14, 14), (320, 16, 3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 20)) == WINOGRAD4
    assert chosen((1, 64, 56, 56), (64, 32, 3, 3)) == DIRECT  # does not go together; the op says so


def test_module_packs_for_the_shapes_that_come():
    block = pk.nn.ConvBNAct2d(192, 192, 3, padding=1, activation="silu").eval()
    double = copy.deepcopy(block).double()
    packs = []
    with torch.no_grad():
        for size, algorithms in ((3, {DIRECT}), (28, {DIRECT, WINOGRAD4}), (3, {DIRECT, WINOGRAD4})):
            x = normal(1, 192, size, size)
            y = block(x)
            assert relative_l2(y, double(x.double())) <= BOUND[WINOGRAD4] + bound(block.conv.weight)
            assert torch.equal(y, block(x))
            assert set(block._pack.by_algorithm) == algorithms
            packs.append(block._pack)
    assert len(set(packs)) == 1
    assert len(packs[0].by_shape) == 2


def test_module_remembers_a_bounded_number_of_shapes():
    block = pk.nn.ConvBNAct2d(4, 4, 1).eval()
    with torch.no_grad():
        for size in range(1, 300):
            block(torch.ones(1, 4, 1, size))
    assert len(block._pack.by_shape) <= 256


def test_plain_op_uses_it_and_meets_the_tolerance_of_direct():
    x, weight = normal(1, 64, 40, 40), normal(64, 64, 3, 3, seed=1)
    assert chosen((1, 64, 40, 40), (64, 64, 3, 3), packs=True) == WINOGRAD4
    y = pk.ops.conv_bn_act(x, weight, padding=1, activation="none", backend="cpu")
    assert torch.equal(y, convolve(x, weight, WINOGRAD4))
    assert relative_l2(y, F.conv2d(x.double(), weight.double(), padding=1)) <= BOUND[WINOGRAD4]


_LARGE = """
import torch
import pykernels as pk
generator = torch.Generator().manual_seed(0)
x = torch.randn(1, 64, 28, 28, generator=generator)
x[0, :, 14, 14] = 1e6
weight = torch.randn(64, 64, 3, 3, generator=generator)
y = pk.ops.conv_bn_act(x, weight, padding=1, activation="none").double()
exact = torch.conv2d(x.double(), weight.double(), padding=1)
far = torch.ones(28, 28, dtype=torch.bool)
far[13:16, 13:16] = False  # what the large values are a part of
print(float(((y - exact)[..., far].norm() / exact[..., far].norm())))
"""


@pytest.mark.parametrize(("value", "is_direct"), [("0", True), ("1", False), ("", False)])
def test_it_can_be_left_out_of_all(value, is_direct):
    """One large value costs a Winograd tile its small ones; direct sums don't notice."""
    done = run_python(_LARGE, PYKERNELS_WINOGRAD=value)
    assert done.returncode == 0, done.stderr
    assert (float(done.stdout) < 1e-6) is is_direct


def test_another_setting_is_refused():
    done = run_python(_LARGE, PYKERNELS_WINOGRAD="off")
    assert "RuntimeError: pykernels.conv_bn_act: PYKERNELS_WINOGRAD: expected 0 or 1, got 'off'" in done.stderr


def test_another_setting_is_refused_by_an_optimised_model():
    code = "import torch, pykernels as pk; pk.optimize(torch.nn.Conv2d(32, 32, 3))(torch.ones(1, 32, 9, 9))"
    done = run_python(f"{code}; fast = pk.optimize(torch.nn.Conv2d(32, 32, 3)); x = torch.ones(1, 32, 9, 9)\n"
                      "with torch.no_grad():\n    fast(x); fast(x)", PYKERNELS_WINOGRAD="off")  # fmt: skip
    assert done.returncode != 0
    assert "PYKERNELS_WINOGRAD: expected 0 or 1, got 'off'" in done.stderr


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
