"""conv_bn_act in Triton beyond the spec's samples: gradients, tiles, split sums, layouts, int8, torch.compile."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.conv_bn_act import conv_bn_act
from pykernels.ops.conv_bn_act.reference import conv_bn_act_reference
from tests.harness import relative_l2, triton_reason

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
if triton_reason() is None:
    from pykernels.ops import _triton
    from pykernels.ops.conv_bn_act import triton
    from pykernels.ops.conv_bn_act.triton.config import Config, config, depthwise_tiles, is_depthwise


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_the_device():
    with torch.device(DEVICE):
        yield


@pytest.fixture
def tiles(monkeypatch):
    """Forces the tiles of the matrix product."""

    def force(**fields: int) -> None:
        chosen = {"block_m": 16, "block_n": 16, "block_k": 16, "warps": 4, "stages": 2, **fields}
        monkeypatch.setattr(triton, "config", lambda *shape: Config(**chosen))

    return force


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)


def integers(*shape, low=-128, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(low, 128, shape, generator=generator, dtype=torch.int8, device="cpu").to(DEVICE)


# Gradients.


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "leaky_relu"])
def test_gradients_are_the_references(activation):
    x, w, bn = randn(2, 6, 7, 8), randn(9, 6, 3, 3, seed=1), [randn(9, seed=i).abs() + 0.5 for i in range(2, 6)]
    residual = randn(2, 9, 4, 4, seed=7)
    found = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        inputs = [t.to(dtype).requires_grad_() for t in (x, w, *bn, residual)]
        y = conv_bn_act(
            inputs[0], inputs[1], None, *inputs[2:6], residual=inputs[6], stride=2, padding=1, activation=activation,
            negative_slope=-0.5, backend=backend,
        )  # fmt: skip
        found[backend] = torch.autograd.grad(y.square().sum(), inputs)
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert relative_l2(got, expected) < 2e-6


def test_second_gradients():
    x, w = randn(1, 4, 5, 5, dtype=torch.float64), randn(4, 4, 3, 3, dtype=torch.float64, seed=1)
    found = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        inputs = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = conv_bn_act(*inputs, padding=1, activation="tanh", backend=backend)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        found[backend] = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert relative_l2(got, expected) < 5e-6


# Tiles.


SHAPES = [
    (n * size * size, k, c, taps, groups)
    for n, size in ((1, 7), (1, 56), (64, 14), (64, 112), (1, 1))
    for k, c, taps, groups in (
        (64, 3, 49, 1), (64, 64, 9, 1), (256, 64, 1, 1), (2048, 512, 1, 1), (512, 512, 9, 1), (37, 13, 9, 1),
        (1, 9, 9, 1), (16, 8, 9, 4), (4, 4, 9, 32), (1000, 2048, 1, 1),
    )
]  # fmt: skip


@pytest.mark.parametrize("element", [1, 2, 4])
@pytest.mark.parametrize("vec", [1, 8])
def test_config_is_pure_and_fits_every_target(element, vec):
    for device in (_triton.AMPERE, _triton.HOPPER, _triton.CDNA3, _triton.INTERPRETER):
        for shape in SHAPES:
            c = config(*shape, element, vec, device)
            assert c == config(*shape, element, vec, device)
            for block in (c.block_m, c.block_n, c.block_k):
                assert block >= 16
                assert block & (block - 1) == 0
            assert element > 1 or c.block_k >= 32
            assert c.splits in (1, 2, 4, 8, 16)
            # Each of the stages but the one that is being multiplied waits in shared memory.
            assert (c.stages - 1) * (c.block_m + c.block_n) * c.block_k * element <= device.shared
            # Sums, a thread's.
            assert c.block_m * c.block_n <= 64 * 32 * c.warps


def test_config_fills_the_gpu():
    for device in (_triton.AMPERE, _triton.HOPPER):
        small = config(49, 512, 512, 9, 1, 2, 8, device)
        assert small.splits > 1
        tiles = -(-49 // small.block_m) * -(-512 // small.block_n)
        assert 2 * tiles * small.splits > device.multiprocessors
        assert config(64 * 56 * 56, 64, 64, 9, 1, 2, 8, device).splits == 1


def test_depthwise_is_for_few_channels_a_group():
    assert is_depthwise(1, 1, 40)
    assert is_depthwise(4, 4, 32)
    assert not is_depthwise(1, 64, 1)
    assert not is_depthwise(8, 8, 4)
    for m, width, planes in itertools.product((1, 100, 10**6), (3, 64, 1000), (False, True)):
        block_m, block_n = depthwise_tiles(m, width, planes)
        assert block_m * block_n <= 4096
        assert block_m & (block_m - 1) == block_n & (block_n - 1) == 0


# The kernels' own paths, where the spec's small samples do not choose them.


def check(x, w, *, tolerance=1e-6, **options):
    y = conv_bn_act(x, w, backend="triton", **options)
    given = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = conv_bn_act_reference(x.double(), w.double(), **given)
    assert y.dtype == x.dtype
    assert relative_l2(y, expected) < tolerance
    return y


@pytest.mark.parametrize(("splits", "flat"), [(2, False), (4, True), (16, False)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_split_sums(tiles, splits, flat, layout):
    tiles(block_k=32, block_n=32, block_m=128, splits=splits, flat=flat)
    x, w = randn(3, 20, 5, 6).to(memory_format=layout), randn(24, 20, 3, 3, seed=1)
    bias, residual = randn(24, seed=2), randn(3, 24, 5, 6, seed=3).to(memory_format=layout)
    y = check(x, w, bias=bias, residual=residual, padding=1)
    assert y.is_contiguous(memory_format=layout)
    again = conv_bn_act(x, w, bias=bias, residual=residual, padding=1, backend="triton")
    assert torch.equal(y, again)


def test_split_sums_of_groups(tiles):
    tiles(block_m=64, block_n=32, block_k=32, splits=4)
    check(randn(2, 36, 5, 6), randn(40, 18, 3, 3, seed=1), groups=2, padding=1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "padding": (2, 0)}, {"dilation": 2}])
def test_both_ways_of_stepping(tiles, flat, options):
    tiles(flat=flat, block_k=32, block_m=64, block_n=32)
    for channels in (32, 20):
        check(randn(2, channels, 7, 6), randn(40, channels, 3, 2, seed=1), **options)


def test_offsets_of_64_bits(monkeypatch):
    """Images are too large for 32 bits only where they are gigabytes: so the arithmetic is asked for on small ones."""
    monkeypatch.setattr(triton, "_extent", lambda strides, sizes: 2**31)
    for c, k, groups in ((20, 24, 1), (3, 24, 1), (8, 8, 8)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, w = randn(2, c, 7, 6).to(memory_format=layout), randn(k, c // groups, 3, 3, seed=1)
            check(x, w, groups=groups, padding=1, stride=2, residual=randn(2, k, 4, 3, seed=2))


@pytest.mark.parametrize(("c", "groups"), [(4, 1), (16, 1), (16, 16)])
def test_an_image_further_away_than_32_bits(c, groups):
    """The second image begins 2^31 elements after the first; no memory is taken for what lies between them."""
    x = torch.empty(2**31 + 16 * c, dtype=torch.float16, device=DEVICE)
    x = x.as_strided((2, c, 4, 4), (2**31, 1, 4 * c, c)).copy_(randn(2, c, 4, 4))
    check(x, randn(16, c // groups, 3, 3, dtype=torch.float16, seed=1), padding=1, groups=groups, tolerance=1e-3)


STRIDES = {
    "expanded over the batch": lambda t: t[:1].expand_as(t),
    "expanded over the filters": lambda t: t[:, :1].expand_as(t),
    "expanded over the pixels": lambda t: t[:, :, :1, :1].expand_as(t),
    "expanded over the rows": lambda t: t[:, :, :1].expand_as(t),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
    "channels first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("groups", [1, 16])
def test_strides(strides, layout, groups):
    lay = STRIDES[strides]
    x, w = randn(2, 16, 6, 5), randn(16, 16 // groups, 3, 3, seed=1)
    residual = randn(2, 16, 6, 5, seed=2)
    check(x.to(memory_format=layout), w, residual=lay(residual), padding=1, groups=groups)
    check(lay(x), w.to(memory_format=layout), residual=residual, padding=1, groups=groups)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_not_finite_reaches_its_own_window_only(value, groups, layout):
    x, w = randn(2, 16, 9, 9).to(memory_format=layout), randn(16, 16 // groups, 3, 3, seed=1)
    x[1, 5, 4, 3] = value
    y = conv_bn_act(x, w, padding=1, groups=groups, activation="none", backend="triton")
    expected = conv_bn_act_reference(x.double(), w.double(), padding=1, groups=groups, activation="none")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    assert torch.equal(y.isfinite(), expected.isfinite())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_extremes(activation):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, 1e30, -1e30, 100.0, -100.0])[:, None, None, None]
    y = conv_bn_act(x, torch.ones(1, 1, 1, 1), activation=activation, backend="triton")
    expected = apply_activation(x.double(), activation).float()
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True, atol=1e-37, rtol=1e-6)


# The int8 form.


def int8_reference(x, w, scale, shift, residual, residual_scale, conv, activation, y_scale, dtype):
    sums = F.conv2d(x.double(), w.double(), **conv)
    if dtype == torch.int32:
        return sums.to(dtype)
    z = sums
    z = z if scale is None else z * scale.double()[:, None, None]
    z = z if shift is None else z + shift.double()[:, None, None]
    z = z if residual is None else z + residual_scale * residual.double()
    z = apply_activation(z, activation, 0.1) * y_scale
    return z.nan_to_num(0, posinf=1e9, neginf=-1e9).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else z


def int8_call(x, w, scale, shift, residual, residual_scale, conv, activation, y_scale, dtype):
    pad = conv.get("padding", 0)
    stride, dilation = conv.get("stride", 1), conv.get("dilation", 1)
    return triton.int8_conv2d(
        x, w, scale, shift, residual, residual_scale, (stride, stride), (pad,) * 4, (dilation, dilation),
        conv.get("groups", 1), ACTIVATIONS.index(activation), 0.1, y_scale, dtype,
    )  # fmt: skip


INT8 = {
    "3x3": ((2, 40, 7, 6), (24, 40, 3, 3), {"padding": 1}),
    "1x1": ((2, 70, 5, 5), (33, 70, 1, 1), {}),
    "stem": ((1, 3, 13, 12), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "groups": ((2, 32, 6, 6), (32, 16, 3, 3), {"groups": 2, "dilation": 2, "padding": 2}),
    "depthwise": ((2, 24, 6, 6), (24, 1, 3, 3), {"groups": 24, "padding": 1}),
    "few channels a group": ((2, 24, 6, 6), (24, 3, 3, 3), {"groups": 8, "padding": 1}),
}


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_int8_sums_are_exact(name, layout):
    x_shape, w_shape, conv = INT8[name]
    x, w = integers(*x_shape).to(memory_format=layout), integers(*w_shape, seed=1)
    y = int8_call(x, w, None, None, None, 0.0, conv, "none", 1.0, torch.int32)
    assert y.dtype == torch.int32
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(y, int8_reference(x, w, None, None, None, 0.0, conv, "none", 1.0, torch.int32))


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("residual_dtype", [None, torch.int8, torch.float32])
def test_int8_epilogue(name, dtype, residual_dtype):
    x_shape, w_shape, conv = INT8[name]
    x, w = integers(*x_shape), integers(*w_shape, seed=1)
    k = w_shape[0]
    # Powers of two: then the float arithmetic is exact, and so is its rounding.
    scale, shift = torch.exp2(-torch.randint(8, 11, (k,)).float()), torch.randint(-8, 9, (k,)).float()
    residual = None
    if residual_dtype is not None:
        y_shape = F.conv2d(x.float(), w.float(), **conv).shape
        residual = integers(*y_shape, seed=2).to(residual_dtype)
    given = (x, w, scale, shift, residual, 0.25, conv, "relu", 0.5, dtype)
    y, expected = int8_call(*given), int8_reference(*given)
    assert y.dtype == dtype
    if dtype in (torch.int8, torch.float32):
        assert torch.equal(y.double(), expected.double())
    else:  # one rounding, which the interpreter does towards 0 for bfloat16
        torch.testing.assert_close(y.double(), expected, atol=0, rtol=2 * ROUNDOFF[dtype])


def test_int8_split_sums_are_exact(tiles):
    tiles(block_n=32, block_k=64, splits=8)
    x, w = integers(1, 100, 4, 4), integers(20, 100, 3, 3, seed=1)
    given = (x, w, None, None, None, 0.0, {"padding": 1}, "none", 1.0, torch.int32)
    assert torch.equal(int8_call(*given), int8_reference(*given))


def test_int8_saturates_rounds_to_even_and_drops_nan():
    x, w = integers(1, 32, 2, 3), torch.zeros(6, 32, 1, 1, dtype=torch.int8)
    shift = torch.tensor([1000.0, -1000.0, 0.5, 1.5, float("nan"), float("inf")])
    y = int8_call(x, w, None, shift, None, 0.0, {}, "none", 1.0, torch.int8)
    assert y[0, :, 0, 0].tolist() == [127, -128, 0, 2, 0, 127]


# A citizen of PyTorch.


@pytest.mark.parametrize(("groups", "layout"), [(1, torch.contiguous_format), (8, torch.channels_last)])
def test_opcheck(groups, layout):
    x = randn(2, 8, 6, 5).to(memory_format=layout).requires_grad_()
    w = randn(8, 8 // groups, 3, 3, seed=1).requires_grad_()
    vectors = [randn(8, seed=i).requires_grad_() for i in (2, 3)]
    residual = randn(2, 8, 3, 3, seed=4).to(memory_format=layout).requires_grad_()
    given = (x, w, *vectors, residual, [2, 2], [1, 1, 1, 1], [1, 1], groups, 6, 0.0, False)
    opcheck(torch.ops.pykernels.conv_bn_act_triton.default, given)


def test_opcheck_of_int8():
    x, w = integers(2, 8, 6, 5), integers(8, 8, 3, 3, seed=1)
    scale = randn(8).abs() / 1000
    given = (x, w, scale, None, None, 0.0, [1, 1], [1, 1, 1, 1], [1, 1], 1, 1, 0.0, 1.0, torch.int8)
    opcheck(torch.ops.pykernels.int8_conv2d_triton.default, given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compile_is_whole(layout):
    torch._dynamo.reset()
    x, w = randn(2, 8, 6, 5).to(memory_format=layout), randn(12, 8, 3, 3, seed=1)

    def call(x, w):
        return conv_bn_act(x, w, padding=1, backend="triton")

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, w), call(x, w))
    y = compiled(x.requires_grad_(), w.requires_grad_())
    got = torch.autograd.grad(y.sum(), (x, w))
    for a, b in zip(got, torch.autograd.grad(call(x, w).sum(), (x, w)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [1, 8])
def test_one_graph_serves_every_batch(groups):
    torch._dynamo.reset()
    counter = CompileCounter()
    w = randn(8, 8 // groups, 3, 3, seed=1)
    compiled = torch.compile(
        lambda x: conv_bn_act(x, w, padding=1, groups=groups, backend="triton"), backend=counter, fullgraph=True
    )
    for n in (2, 3, 40):  # on both sides of a tile
        x = randn(n, 8, 6, 6).to(memory_format=torch.channels_last)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        compiled(x)
    assert counter.frame_count == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_one_tap_reads_few_channels_from_any_strides(channels, layout):
    x, w = randn(2, channels, 5, 6), randn(7, channels, 1, 1, seed=1)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = randn(2, 2 * channels, 5, 12)[:, ::2, :, ::2]
    elif layout == "expanded":
        x = x[:, :1].expand(2, channels, 5, 6)
    y = conv_bn_act(x, w, activation="none", backend="triton")
    assert relative_l2(y, F.conv2d(x.double(), w.double())) < 1e-6


@pytest.mark.parametrize("groups", [1, 6])
def test_an_open_batch_stays_open(groups):
    """Tiles are chosen by the batch that was traced; the graph must not be bound to it."""

    class Block(torch.nn.Module):
        def forward(self, x, w):
            return conv_bn_act(x, w, padding=1, groups=groups, backend="triton")

    x, w = randn(3, 6, 5, 5), randn(6, 6 // groups, 3, 3, seed=1)
    shapes = ({0: torch.export.Dim("n", min=2)}, None)
    exported = torch.export.export(Block(), (x, w), dynamic_shapes=shapes).module()
    other = randn(9, 6, 5, 5, seed=2)
    assert torch.equal(exported(other, w), Block()(other, w))


def test_two_threads_interpret_by_turns():
    x, w = randn(1, 3, 4, 4), randn(2, 3, 3, 3, seed=1)
    expected = conv_bn_act(x, w, backend="triton")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: conv_bn_act(x, w, backend="triton"), range(6)))
    assert all(torch.equal(y, expected) for y in found)
