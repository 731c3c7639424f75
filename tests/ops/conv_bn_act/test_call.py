"""conv_bn_act: oracle against torch, kernels against the oracle, what is not finite, repeatable to the bit."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings

import pykernels as pk
from pykernels.ops import ACTIVATIONS, conv_bn_act
from pykernels.ops._activation import apply_activation
from pykernels.ops._spec import lay_out
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import packed_shape
from pykernels.ops.conv_bn_act.spec import conv_bn_act_reference
from tests.harness import (
    FORMATS,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    inputs_of,
    map_tensors,
    native,
    normal,
    on_cpu_and_triton,
    relative_l2,
    to_double,
)
from tests.ops.conv_bn_act.cases import SAMPLES, bound, each_sample


def torchs_own(x, weight, bias, mean, var, bn_weight, bn_bias, *, eps, residual, activation, negative_slope, **conv):
    z = (F.conv1d if weight.dim() == 3 else F.conv2d)(x, weight, bias, **conv)
    if mean is not None:
        batched = x.dim() == weight.dim()
        z = F.batch_norm(z if batched else z[None], mean, var, bn_weight, bn_bias, False, 0.0, eps)
        z = z if batched else z[0]
    return apply_activation(z if residual is None else z + residual, activation, negative_slope)


@each_sample
def test_reference_is_torchs_own_functions(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.float64)
    if name == "no-channels":
        pytest.skip("F.conv2d gives a tensor without channels for it")
    got = conv_bn_act_reference(*args, **kwargs)
    padded = (*args, *[None] * (7 - len(args)))
    with warnings.catch_warnings(action="ignore"):
        expected = torchs_own(*padded, **{"eps": 1e-5, "residual": None, **kwargs})
    assert got.shape == expected.shape
    assert relative_l2(got, expected) < 1e-14


def error_bound(y, x, weight, bias, mean, var, bn_weight, bn_bias, residual, conv):
    """What rounding may do to each element of the float64 result ``y``, worst case, for float32 sums.

    A sum of n products errs by at most (n + 4) u of the sum of their magnitudes, here with the folded scale and shift;
    no activation steepens that by more than 1.5, and each adds a few roundings of its own result.
    """
    scale, shift = fold_batch_norm(bias, mean, var, bn_weight, bn_bias, 1e-5)
    magnitude = F.conv2d(x.abs(), weight.abs(), **conv)
    magnitude = magnitude if scale is None else magnitude * scale.double().abs()[:, None, None]
    magnitude = magnitude if shift is None else magnitude + shift.double().abs()[:, None, None]
    # The rounding of the scale multiplies what is normalised, which bn_bias is not part of, and may cancel.
    magnitude = magnitude if bn_bias is None else magnitude + bn_bias.abs()[:, None, None]
    magnitude = magnitude if residual is None else magnitude + residual.abs()
    u = 2.0**-24
    return 1.5 * (weight[0].numel() + 4) * u * magnitude + 8 * u * y.abs() + 1e-38


@st.composite
def calls(draw):
    """A call of conv_bn_act as (shapes, options), small but of any kind."""
    integers = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 16]))
    depthwise = groups > 1 and draw(st.booleans())
    c = groups * (1 if depthwise else integers(1, 20 // groups + 1))
    k = groups * integers(1, 40 // groups + 1)
    r, s = integers(1, 5), integers(1, 5)
    stride, dilation = (integers(1, 3), integers(1, 3)), (integers(1, 3), integers(1, 2))
    padding = draw(st.one_of(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else stride
    pads = padding if isinstance(padding, tuple) else (0, 0)
    smallest = [1, 1]
    if padding != "same":
        spans = [d * (e - 1) + 1 for d, e in zip(dilation, (r, s), strict=True)]
        smallest = [max(1, span - 2 * p) for span, p in zip(spans, pads, strict=True)]
    h, w = integers(smallest[0], smallest[0] + 12), integers(smallest[1], smallest[1] + 18)
    return {
        "x": (draw(st.sampled_from([0, 1, 1, 2, 3])), c, h, w),
        "weight": (k, c // groups, r, s),
        "conv": {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        "bias": draw(st.booleans()),
        "bn": draw(st.sampled_from(["none", "plain", "affine"])),
        "residual": draw(st.booleans()),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "expanded"])),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "seed": integers(0, 1000),
    }


@native
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls(), isa=st.sampled_from(host_isas()))
def test_kernels_stay_within_the_worst_case_of_rounding(call, isa):
    generator = torch.Generator().manual_seed(call["seed"])
    dtype, conv, k = call["dtype"], call["conv"], call["weight"][0]

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(dtype)

    x, weight = lay_out(normal(*call["x"]), call["layout"]), normal(*call["weight"])
    bias = normal(k) if call["bias"] else None
    mean = var = bn_weight = bn_bias = None
    if call["bn"] != "none":
        mean, var = normal(k, dtype=torch.float32), normal(k, dtype=torch.float32).square() + 0.1
    if call["bn"] == "affine":
        bn_weight, bn_bias = normal(k), normal(k)
    vectors = (bias, mean, var, bn_weight, bn_bias)
    wide = to_double((x, weight, *vectors))
    plain = conv_bn_act_reference(*wide, activation="none", **conv)
    residual = lay_out(normal(*plain.shape), call["layout"]) if call["residual"] else None
    wide_residual = None if residual is None else residual.double()
    options = {"activation": call["activation"], **conv}
    with forced_isa(isa):
        y = conv_bn_act(x, weight, *vectors, residual=residual, backend="cpu", **options)
    expected = conv_bn_act_reference(*wide, residual=wide_residual, **options)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    with warnings.catch_warnings(action="ignore"):
        torchs = F.conv2d(x, weight, **conv)
        bound = error_bound(expected, *wide, wide_residual, conv)
    # A stride over one element says nothing, and over none F.conv2d gives 0. An x that is contiguous in both formats,
    # of one pixel or one channel, has none to keep.
    in_both = x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    strides = [(a, b) for a, b, n in zip(y.stride(), torchs.stride(), y.shape, strict=True) if n > 1]
    assert y.numel() == 0 or in_both or all(a == b for a, b in strides)
    if dtype == torch.bfloat16:
        bound = bound + 2.0**-8 * (expected.abs() + bound) + 1e-38
    assert torch.all((y.double() - expected).abs() <= bound)


@on_cpu_and_triton
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_what_is_not_finite_reaches_its_own_window_only(value, layout, groups, backend, device):
    x, w = normal(2, 16, 12, 13, layout=layout), normal(48, 16 // groups, 3, 3, seed=1)
    x[1, 5, 4, 6] = value
    options = {"padding": 1, "groups": groups, "activation": "none"}
    y = conv_bn_act(x.to(device), w.to(device), backend=backend, **options).cpu()
    assert relative_l2(y, conv_bn_act_reference(x.double(), w.double(), **options)) <= bound(w)


@on_cpu_and_triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, by Triton's interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_extremes(activation, dtype, backend, device):
    extremes = [0.0, 3e38, 1e30, 1e-40, 100.0, 88.0, 104.0, float("inf"), float("nan")]
    x = torch.tensor([s * v for v in extremes for s in (1, -1)] * 2, dtype=dtype).reshape(1, 1, 6, 6)
    weight = torch.ones(1, 1, 1, 1, dtype=dtype)
    y = conv_bn_act(x.to(device), weight.to(device), activation=activation, backend=backend).cpu()
    # torch's own GELU of float32 overflows at 3e38, and makes inf NaN, with AVX-512.
    expected = apply_activation(x.double() if activation == "gelu" else x, activation).to(dtype)
    near = {"rtol": 1e-6, "atol": 1e-37} if (backend, dtype) == ("triton", torch.float32) else {}
    torch.testing.assert_close(y, expected, equal_nan=True, **near)


@native
@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e18, 1e36])
def test_tiny_and_huge_values(size):
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)) * size
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    y = conv_bn_act(x, weight, padding=1, backend="cpu")
    expected = F.conv2d(x.double(), weight.double(), padding=1).relu()
    # Denormals are spaced 2^-149 apart whatever their size.
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max() + 16 * 9 * 2.0**-149


def test_fold_does_not_lose_a_large_mean():
    # Sums near 1000 with a deviation of 1/100: the rounding of the scale must not multiply the 1000.
    generator = torch.Generator().manual_seed(0)
    k = 512
    mean = 1000 + torch.randn(k, generator=generator)
    var = 1e-4 * (1 + torch.rand(k, generator=generator))
    weight, bias = torch.randn(k, generator=generator), torch.randn(k, generator=generator)
    c = mean + 0.01 * torch.randn(k, generator=generator)  # exact in float32: what the sums may come to
    scale, shift = fold_batch_norm(None, mean, var, weight, bias, 0.0)
    got = torch.addcmul(shift.double(), c.double(), scale.double())  # an fma does not round the product
    exact = (c.double() - mean.double()) / var.double().sqrt() * weight.double() + bias.double()
    # Left is the rounding of the shift itself, half a unit in its last place.
    assert torch.all((got - exact).abs() <= 2.0**-24 * (shift.double().abs() + 4 * exact.abs()))


@native
@each_sample
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_again_and_with_other_thread_counts(name, dtype):
    args, kwargs = inputs_of(SAMPLES[name], dtype)
    assert_threads_change_nothing(lambda: conv_bn_act(*args, backend="cpu", **kwargs), (torch.get_num_threads(), 1, 3))


@on_cpu_and_triton
def test_threads_at_once(backend, device):
    names = ["3x3-residual", "7x7-stem", "depthwise", "channels-last", "1x1"] * (8 if backend == "cpu" else 1)

    def call(name):
        args, kwargs = map_tensors(inputs_of(SAMPLES[name], torch.float32), lambda t: t.to(device))
        return conv_bn_act(*args, **kwargs, backend=backend)

    expected = {name: call(name) for name in names[:5]}
    with ThreadPoolExecutor(8) as pool:
        for name, y in zip(names, pool.map(call, names), strict=True):
            assert torch.equal(y, expected[name])


def test_everything_conv2d_takes_for_its_geometry():
    x, weight = torch.randn(1, 2, 6, 7), torch.randn(3, 2, 2, 3)
    for stride, padding, dilation in ((2, 1, 1), ((1, 2), [0, 2], (1,)), ([2], (1,), [2, 1]), (1, "valid", 2)):
        y = conv_bn_act(x, weight, stride=stride, padding=padding, dilation=dilation, activation="none")
        expected = F.conv2d(x, weight, None, stride, padding, dilation)
        torch.testing.assert_close(y, expected)


def test_backend_block():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3)
    with pk.backend("reference"):
        y = conv_bn_act(x, weight)
    assert torch.equal(y, F.conv2d(x, weight).relu())
    assert torch.equal(conv_bn_act(x, weight, backend="reference"), y)


@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "packed"),
    [  # as in tests/native/cuda/conv_bn_act_test.cpp
        ((64, 3, 7, 7), 1, torch.float16, (64, 200)),
        ((64, 3, 7, 7), 1, torch.float32, (64, 196)),
        ((8, 12, 3, 3), 1, torch.bfloat16, (8, 112)),
        ((8, 13, 3, 3), 2, torch.float16, (8, 144)),
        ((20, 1, 3, 3), 20, torch.float16, (9, 24)),
        ((8, 3, 3, 3), 1, torch.int8, (8, 80)),
    ],
)
def test_packed_shape_on_cuda(shape, groups, dtype, packed):
    assert packed_shape(shape, torch.empty(0, dtype=dtype).element_size(), groups) == packed


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("channels_last", [False, True])
def test_dilated_taps_far_in_the_padding(isa, channels_last):
    """On both sides every tap comes in and goes out within the image's columns: as many bands as there can be."""
    for padding, dilation, size in ((36, 12, 5), (36, 12, 11), (9, 3, 4), ((2, 40), (1, 9), 7)):
        x, weight = normal(2, 16, size, size), normal(16, 16, 3, 3, seed=1)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        with forced_isa(isa):
            y = conv_bn_act(x, weight, padding=padding, dilation=dilation, activation="none")
        expected = F.conv2d(x.double(), weight.double(), None, 1, padding, dilation)
        assert relative_l2(y, expected) <= bound(weight)
