"""conv_bn_act: oracle against torch, kernels against the oracle, gradients, torch's machinery, bad arguments."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import pykernels as pk
from pykernels import _native
from pykernels.ops import ACTIVATIONS, conv_bn_act
from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import packed_shape
from pykernels.ops.conv_bn_act.reference import conv_bn_act_reference
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from tests.harness import forced_isa, host_isas, inputs_of, map_tensors, relative_l2, tensors_of, to_double

native = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))
SAMPLES = {s.name: s for s in CONV_BN_ACT_SPEC.samples if not s.bench}
each_sample = pytest.mark.parametrize("name", SAMPLES)


def torchs_own(x, weight, bias, mean, var, bn_weight, bn_bias, *, eps, residual, activation, negative_slope, **conv):
    z = F.conv2d(x, weight, bias, **conv)
    if mean is not None:
        z = F.batch_norm(z if x.dim() == 4 else z[None], mean, var, bn_weight, bn_bias, False, 0.0, eps)
        z = z if x.dim() == 4 else z[0]
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


# The kernels.


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


def lay_out(t, layout):
    if layout == "channels_last":
        return t.to(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((t.shape[0], t.shape[1] + 2, t.shape[2] + 1, 2 * t.shape[3]), torch.nan, dtype=t.dtype)
        wide[:, 1:-1, 1:, ::2] = t
        return wide[:, 1:-1, 1:, ::2]
    if layout == "transposed":
        return t.transpose(0, 3).contiguous().transpose(0, 3)
    if layout == "expanded":
        return t[:, :, :1].expand(t.shape)
    return t


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


@native
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_non_finite_input_reaches_its_own_window_only(value, layout, groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 12, 13, generator=generator)
    weight = torch.randn(24, 8 // groups, 3, 3, generator=generator)
    x[1, 3, 5, 6] = value
    y = conv_bn_act(lay_out(x, layout), weight, padding=1, groups=groups, activation="none", backend="cpu")
    expected = F.conv2d(x, weight, padding=1, groups=groups)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_extremes(activation, dtype):
    extremes = [float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 1e-40, -1e-40, 0.0, -0.0, 88.0, -88.0, -104.0]
    x = torch.tensor(extremes * 3, dtype=dtype).reshape(1, 1, 6, 6)
    y = conv_bn_act(x, torch.ones(1, 1, 1, 1, dtype=dtype), activation=activation, backend="cpu")
    expected = apply_activation(x, activation)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True)


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
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (threads, threads, 1, 3):
            torch.set_num_threads(n)
            results.append(conv_bn_act(*args, backend="cpu", **kwargs))
    finally:
        torch.set_num_threads(threads)
    for y in results[1:]:
        assert torch.equal(y, results[0])


@native
def test_eight_threads_at_once():
    names = ["3x3-residual", "7x7-stem", "depthwise", "channels-last", "1x1"] * 8
    inputs = {name: inputs_of(SAMPLES[name], torch.float32) for name in names}
    expected = {name: conv_bn_act(*args, **kwargs) for name, (args, kwargs) in inputs.items()}

    def call(name):
        args, kwargs = inputs[name]
        return conv_bn_act(*args, **kwargs)

    with ThreadPoolExecutor(8) as pool:
        for name, y in zip(names, pool.map(call, names), strict=True):
            assert torch.equal(y, expected[name])


def test_everything_conv2d_takes_for_its_geometry():
    x, weight = torch.randn(1, 2, 6, 7), torch.randn(3, 2, 2, 3)
    for stride, padding, dilation in ((2, 1, 1), ((1, 2), [0, 2], (1,)), ([2], (1,), [2, 1]), (1, "valid", 2)):
        y = conv_bn_act(x, weight, stride=stride, padding=padding, dilation=dilation, activation="none")
        expected = F.conv2d(x, weight, None, stride, padding, dilation)
        torch.testing.assert_close(y, expected)


# Gradients.


def leaves(args, kwargs):
    args = map_tensors(args, lambda t: t.detach().clone().requires_grad_())
    kwargs = map_tensors(kwargs, lambda t: t.detach().clone().requires_grad_())
    return args, kwargs, tensors_of((args, kwargs))


@pytest.mark.parametrize(
    ("activation", "geometry"),
    [
        *((a, {"padding": "same", "groups": 2}) for a in ACTIVATIONS),
        ("silu", {"stride": 2, "padding": 1}),
        ("relu", {"dilation": 2}),
    ],
)
def test_reference_gradients(activation, geometry):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight = normal(2, 2, 5, 6), normal(2, 2 // geometry.get("groups", 1), 3, 2)
    vectors = [normal(2) for _ in range(5)]
    vectors[2] = (vectors[2].detach().square() + 0.5).requires_grad_()
    residual = normal(*conv_bn_act(x, weight, *vectors, **geometry).shape)

    def f(x, weight, residual, *vectors):
        options = {"activation": activation, "negative_slope": 0.2, **geometry}
        return conv_bn_act(x, weight, *vectors, residual=residual, **options)

    assert torch.autograd.gradcheck(f, (x, weight, residual, *vectors), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, weight, residual, *vectors), fast_mode=True)


@native
@each_sample
def test_native_gradients_of_every_order_are_the_references(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.float32)
    generator = torch.Generator().manual_seed(1)
    args1, kwargs1, inputs = leaves(args, kwargs)
    args2, kwargs2, wide = leaves(to_double(args), to_double(kwargs))
    y, expected = conv_bn_act(*args1, backend="cpu", **kwargs1), conv_bn_act_reference(*args2, **kwargs2)
    gy = torch.randn(y.shape, generator=generator)
    first = torch.autograd.grad(y, inputs, gy, create_graph=True)
    first_wide = torch.autograd.grad(expected, wide, gy.double(), create_graph=True)
    for got, want in zip(first, first_wide, strict=True):
        assert got.dtype == torch.float32
        assert relative_l2(got, want) < 1e-5
    directions = [torch.randn(g.shape, generator=generator) for g in first]

    def second_order(gradients, inputs, directions):
        # Without an activation the residual's gradient is the incoming one, and depends on nothing.
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        return torch.autograd.grad([g for g, _ in pairs], inputs, [d for _, d in pairs], allow_unused=True)

    second = second_order(first, inputs, directions)
    second_wide = second_order(first_wide, wide, to_double(directions))
    for got, want, t in zip(second, second_wide, inputs, strict=True):
        got = torch.zeros_like(t) if got is None else got
        assert relative_l2(got, torch.zeros_like(t) if want is None else want) < 1e-5


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_gradients(activation):
    sample = SAMPLES[activation]
    args, kwargs, inputs = leaves(*inputs_of(sample, torch.bfloat16))
    args2, kwargs2, wide = leaves(to_double(args), to_double(kwargs))
    got = torch.autograd.grad(conv_bn_act(*args, **kwargs).sum(), inputs)
    want = torch.autograd.grad(conv_bn_act_reference(*args2, **kwargs2).sum(), wide)
    for g, w, t in zip(got, want, inputs, strict=True):
        assert g.dtype == t.dtype
        assert relative_l2(g, w) < 3e-2


@native
@pytest.mark.parametrize("needed", range(4))
def test_only_the_gradients_that_are_asked_for(needed):
    x, weight, scale = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3), torch.rand(8)
    tensors = [x, weight, scale, torch.randn(8)]
    tensors[needed].requires_grad_()
    y = torch.ops.pykernels.conv_bn_act(*tensors, None, [1, 1], [1, 0, 2, 1], [1, 1], 1, 6, 0.0)
    y.sum().backward()
    assert [t.grad is not None for t in tensors] == [i == needed for i in range(4)]


def test_torch_func_and_forward_mode():
    x, weight = torch.randn(3, 2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    y = torch.stack([conv_bn_act(v, weight) for v in x])
    assert relative_l2(torch.func.vmap(lambda v: conv_bn_act(v, weight))(x), y) < 1e-6
    got = torch.func.grad(lambda w: conv_bn_act(x[0], w).square().sum())(weight)
    want = torch.func.grad(lambda w: F.conv2d(x[0], w).relu().square().sum())(weight)
    assert relative_l2(got, want) < 1e-6
    _, got = torch.func.jvp(lambda v: conv_bn_act(v, weight), (x[0],), (x[1],))
    _, want = torch.func.jvp(lambda v: F.conv2d(v, weight).relu(), (x[0],), (x[1],))
    assert relative_l2(got, want) < 1e-6
    assert got.abs().max() > 0


# PyTorch's machinery.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_conv2d_does(dtype):
    args, kwargs, inputs = leaves(*inputs_of(SAMPLES["3x3-residual"], torch.float32))
    with torch.autocast("cpu", dtype):
        y = conv_bn_act(*args, **kwargs)
        mixed = conv_bn_act(args[0].to(dtype), *args[1:], **kwargs)
        wide = conv_bn_act(*to_double(args), **to_double(kwargs))
    assert y.dtype == mixed.dtype == dtype
    assert wide.dtype == torch.float64
    assert torch.equal(y, mixed)
    assert relative_l2(y, wide) < 2e-2
    gradients = torch.autograd.grad(y.float().sum(), inputs)
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]


@native
def test_autocast_of_the_native_op():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3)
    rest = (None, None, None, [1, 1], [0, 0, 0, 0], [1, 1], 1, 1, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.ops.pykernels.conv_bn_act(x, weight, *rest)
    assert torch.equal(y, torch.ops.pykernels.conv_bn_act(x.bfloat16(), weight.bfloat16(), *rest))


@native
@pytest.mark.parametrize(("requires_grad", "layout"), [(False, "contiguous"), (True, "channels_last")])
def test_opcheck(requires_grad, layout):
    ops = torch.ops.pykernels
    x, residual = (lay_out(torch.randn(2, c, 9, 8), layout).requires_grad_(requires_grad) for c in (8, 16))
    weight = torch.randn(16, 4, 3, 3, requires_grad=requires_grad)
    scale, shift = (torch.rand(16, requires_grad=requires_grad) for _ in range(2))
    for code in (1, 6):  # its gradient comes from the output; from what went before it
        geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 2, code, 0.01)
        opcheck(ops.conv_bn_act.default, (x, weight, scale, shift, residual, *geometry))
    opcheck(ops.conv_bn_act.default, (x, weight, None, None, None, [2, 1], [0, 1, 2, 3], [1, 2], 2, 2, 0.2))
    if not requires_grad:
        packed = ops.conv_pack(weight, 2, 0)
        opcheck(ops.conv_pack.default, (weight, 2, 0))
        opcheck(ops.conv_bn_act_packed.default, (x, packed, [16, 4, 3, 3], scale, shift, residual, *geometry))


@pytest.mark.parametrize(
    ("backend", "layout"), [("aot_eager", "contiguous"), ("aot_eager", "channels_last"), ("inductor", "channels_last")]
)
def test_compile_is_whole_and_takes_any_batch(backend, layout):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator, requires_grad=True)
    vectors = [torch.rand(8, generator=generator) + 0.5 for _ in range(5)]

    def f(x):
        y = conv_bn_act(x, weight, *vectors, padding="same", activation="silu")
        return conv_bn_act(y, weight.mT.transpose(0, 1)[:, :8].contiguous(), residual=x, padding=1) * 2

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    compilations = []
    for n in (4, 2, 3, 7):
        x = lay_out(torch.randn(n, 4, 6, 6, generator=generator), layout).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x), f(x)
        assert relative_l2(y, expected) < 1e-6
        assert y.stride() == expected.stride()
        got, want = (torch.autograd.grad(v.sum(), (x, weight)) for v in (y, expected))
        for g, w in zip(got, want, strict=True):
            assert relative_l2(g, w) < 1e-5
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


def test_export():
    class Block(torch.nn.Module):
        def forward(self, x, weight, mean, var):
            return conv_bn_act(x, weight, None, mean, var, stride=2, padding=1)

    inputs = (torch.randn(2, 4, 8, 8), torch.randn(8, 4, 3, 3), torch.randn(8), torch.rand(8))
    batch = torch.export.Dim("n", min=1)
    program = torch.export.export(Block(), inputs, dynamic_shapes=({0: batch}, None, None, None))
    assert relative_l2(program.module()(*inputs), Block()(*inputs)) < 1e-6
    more = (torch.randn(5, 4, 8, 8), *inputs[1:])
    assert relative_l2(program.module()(*more), Block()(*more)) < 1e-6


@each_sample
def test_fake_tensors_have_shape_strides_and_dtype(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.bfloat16)
    y = conv_bn_act(*args, **kwargs)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = conv_bn_act(*map_tensors(args, mode.from_tensor), **map_tensors(kwargs, mode.from_tensor))
    assert (fake.shape, fake.dtype) == (y.shape, y.dtype)
    assert fake.numel() == 0 or fake.stride() == y.stride()
    meta = conv_bn_act(*map_tensors(args, lambda t: t.to("meta")), **map_tensors(kwargs, lambda t: t.to("meta")))
    assert meta.shape == y.shape


# Bad arguments, one test a message.

X, W, V = torch.zeros(2, 6, 8, 8), torch.zeros(4, 6, 3, 3), torch.ones(4)
BAD = {
    "x no tensor": (([1.0], W), {}, TypeError, r"x: expected a tensor, got list"),
    "weight no tensor": ((X, None), {}, TypeError, r"weight: expected a tensor, got NoneType"),
    "residual no tensor": ((X, W), {"residual": 1}, TypeError, r"residual: expected a tensor, got int"),
    "bias no tensor": ((X, W, 1.0), {}, TypeError, r"bias: expected a tensor, got float"),
    "x integer": ((X.int(), W.int()), {}, TypeError, r"x: expected a floating dtype, got torch.int32"),
    "x 2-d": ((X[0, 0], W), {}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\), got shape \(8, 8\)"),
    "x no height": ((X[:, :, :0], W), {"padding": 3}, ValueError, r"x: expected H and W of at least 1, got shape"),
    "weight 3-d": ((X, W[0]), {}, ValueError, r"weight: expected \(K, C/groups, R, S\), got shape \(6, 3, 3\)"),
    "weight empty": ((X, W[:0]), {}, ValueError, r"weight: expected K, R and S of at least 1, got .*\(0, 6, 3, 3\)"),
    "weight no columns": ((X, W[..., :0]), {}, ValueError, r"weight: expected K, R and S of at least 1"),
    "channels": ((X[:, :5], W), {}, ValueError, r"x: expected 6 channels .* got 5 in shape \(2, 5, 8, 8\)"),
    "filters by groups": ((X, W[:, :2]), {"groups": 3}, ValueError, r"weight: expected K divisible by .* got K = 4"),
    "weight dtype": ((X, W.double()), {}, TypeError, r"weight: expected x's dtype torch.float32, got torch.float64"),
    "weight device": ((X, W.to("meta")), {}, ValueError, r"weight: expected x's device cpu, got meta"),
    "bias shape": ((X, W, V[:3]), {}, ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
    "bias dtype": ((X, W, V.int()), {}, TypeError, r"bias: expected a floating dtype, got torch.int32"),
    "bias device": ((X, W, V.to("meta")), {}, ValueError, r"bias: expected x's device cpu, got meta"),
    "mean shape": ((X, W, None, V[None], V), {}, ValueError, r"running_mean: expected shape \(4,\), got \(1, 4\)"),
    "var missing": ((X, W, None, V), {}, ValueError, r"running_var: expected a tensor, because running_mean is given"),
    "mean missing": ((X, W, None, None, V), {}, ValueError, r"running_mean: expected a tensor, because running_var is"),
    "statistics missing": ((X, W, None, None, None, V), {}, ValueError, r"running_mean: .* because bn_weight is given"),
    "shift alone": ((X, W), {"bn_bias": V}, ValueError, r"running_mean: .* because bn_bias is given, got None"),
    "eps": ((X, W, None, V, V), {"eps": -1.0}, ValueError, r"eps: expected a number >= 0, got -1.0"),
    "residual shape": ((X, W), {"residual": X}, ValueError, r"residual: .* \(2, 4, 6, 6\), got \(2, 6, 8, 8\)"),
    "residual dtype": ((X, W), {"residual": X.double()}, TypeError, r"residual: expected x's dtype torch.float32, got"),
    "stride 0": ((X, W), {"stride": 0}, ValueError, r"stride: expected an int or two ints >= 1, got 0"),
    "stride 3": ((X, W), {"stride": (1, 2, 3)}, ValueError, r"stride: expected .* two ints >= 1, got \(1, 2, 3\)"),
    "stride float": ((X, W), {"stride": 1.5}, TypeError, r"stride: expected an int or two ints, got 1.5"),
    "padding negative": ((X, W), {"padding": (0, -1)}, ValueError, r"padding: expected an int or two ints >= 0"),
    "padding word": ((X, W), {"padding": "full"}, ValueError, r"padding: expected .* 'same' or 'valid', got 'full'"),
    "same with stride": ((X, W), {"padding": "same", "stride": 2}, ValueError, r"stride: expected 1, because padding"),
    "dilation 0": ((X, W), {"dilation": (1, 0)}, ValueError, r"dilation: expected .* >= 1, got \(1, 0\)"),
    "groups 0": ((X, W), {"groups": 0}, ValueError, r"groups: expected an int >= 1, got 0"),
    "kernel too large": ((X, W), {"dilation": 5}, ValueError, r"x: expected .* \(11 x 11\), got \(8 x 8\)"),
    "activation": ((X, W), {"activation": "mish"}, ValueError, r"activation: expected one of none, .* got 'mish'"),
    "backend": ((X, W), {"backend": "tpu"}, ValueError, r"backend: expected one of auto, .* got 'tpu'"),
    "cuda": ((X, W), {"backend": "cuda"}, RuntimeError, r"backend='cuda' cannot run: its tensors are on 'cpu'"),
    "float64 on cpu": ((X.double(), W.double()), {"backend": "cpu"}, RuntimeError, r"cannot run: .* not torch.float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    args, kwargs, error, message = BAD[name]
    if name == "float64 on cpu" and _native.error is not None:
        pytest.skip(_native.error)
    with pytest.raises(error, match=rf"pykernels\S*: {message}|{message}"):
        conv_bn_act(*args, **kwargs)


RAW = {
    "stride": [1, 1],
    "padding": [0, 0, 0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "activation": 1,
    "negative_slope": 0.0,
}
RAW_BAD = {
    "x 3-d": ({"x": X[0]}, "x: expected 4 dimensions"),
    "x double": ({"x": X.double()}, "expected torch.float"),
    "weight double": ({"weight": W.double()}, "weight: expected torch.float32"),
    "weight 3-d": ({"weight": W[0]}, "weight: expected 4"),
    "channels": ({"x": X[:, :5]}, "x: expected 6 channels"),
    "scale shape": ({"scale": V[:2]}, r"scale: expected shape \(4\)"),
    "shift dtype": ({"shift": V.double()}, "shift: expected torch.float32"),
    "residual shape": ({"residual": X}, r"residual: expected shape \(2, 4, 6, 6\)"),
    "residual dtype": ({"residual": torch.zeros(2, 4, 6, 6).bfloat16()}, "residual: expected torch.float32"),
    "stride length": ({"stride": [1]}, "stride: expected 2 values, got 1"),
    "stride zero": ({"stride": [1, 0]}, "stride: expected at least 1"),
    "padding length": ({"padding": [1, 1]}, "padding: expected 4 values, got 2"),
    "padding negative": ({"padding": [0, 0, 0, -1]}, "padding: expected at least 0"),
    "dilation zero": ({"dilation": [0, 1]}, "dilation: expected at least 1"),
    "kernel too large": ({"dilation": [9, 9]}, "larger than the padded input"),
    "huge padding": ({"padding": [2**62, 0, 0, 0]}, "above 2"),
    "groups zero": ({"groups": 0}, "groups: expected at least 1"),
    "groups": ({"weight": W[:3, :3], "groups": 2}, "groups: expected a divisor of weight's output channels"),
    "activation": ({"activation": 9}, r"activation: expected a code in \[0, 9\), got 9"),
}


@native
@pytest.mark.parametrize("name", RAW_BAD)
def test_bad_arguments_of_the_native_op_itself(name):
    change, message = RAW_BAD[name]
    arguments = {"x": X, "weight": W, "scale": None, "shift": None, "residual": None, **RAW, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pykernels.conv_bn_act(**arguments)


@native
@pytest.mark.parametrize("harm", ["short", "empty", "magic", "shape", "groups", "dtype", "2-d", "another ISA"])
def test_a_malformed_packed_weight_is_refused(harm):
    packed = torch.ops.pykernels.conv_pack(W, 1, 0)
    shape, raw = list(W.shape), dict(RAW)
    if harm == "short":
        packed = packed[:-4]
    elif harm == "empty":
        packed = packed[:0]
    elif harm == "magic":
        packed[:8] = 0
    elif harm == "shape":
        shape[2] = 1
    elif harm == "groups":
        shape[1], raw["groups"] = 3, 2
    elif harm == "dtype":
        packed = packed.view(torch.int8)
    elif harm == "2-d":
        packed = packed[None]
    else:
        other = next(isa for isa in host_isas() if isa != _native.introspect().active_isa())
        with forced_isa(other):
            packed = torch.ops.pykernels.conv_pack(W, 1, 0)
    with pytest.raises(RuntimeError, match="packed: "):
        torch.ops.pykernels.conv_bn_act_packed(X, packed, shape, None, None, None, **raw)


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
