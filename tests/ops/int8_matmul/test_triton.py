"""int8_matmul and quantize_int8 in Triton: what the specs' samples do not say. Interpreted where there is no GPU."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import _tuned
from pykernels.ops.int8_matmul import int8_linear, int8_matmul, quantize_int8
from pykernels.ops.int8_matmul.reference import int8_matmul_reference, quantize_int8_reference
from tests import harness
from tests.harness import DEVICE, assert_one_graph, relative_l2, triton_reason
from tests.ops.int8_matmul import checks
from tests.ops.int8_matmul.checks import BOUND, LAYOUTS, assert_rounded, assert_same_quantisation

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")

SIZES = list(
    itertools.product(
        (1, 16, 17, 33, 64, 65, 300, 8192, 100_000), (1, 333, 4096, 128_256), (0, 16, 1024, 11008, 131_072)
    )
)


integers = partial(harness.integers, device=DEVICE)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return checks.normal(*shape, seed=seed, dtype=dtype).to(DEVICE)


def forced(**fields: int):
    """The product in one given config."""
    tiles = {"block_m": 16, "block_n": 64, "block_k": 32, "products": 1, "warps": 4, "stages": 2, "resident": 1}
    return _tuned.forced("int8_matmul", {**tiles, **fields})


def noted(monkeypatch, module) -> list[str]:
    """The names of the kernels that the module launches from now on."""
    seen: list[str] = []
    real = module.launch

    def launch(kernel, *arguments, **constants):
        seen.append(kernel.__name__)
        real(kernel, *arguments, **constants)

    monkeypatch.setattr(module, "launch", launch)
    return seen


def is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


# -- the choice of tiles


@pytest.mark.parametrize("name", ["AMPERE", "HOPPER", "CDNA3", "INTERPRETER", "small"])
def test_config_is_pure_and_fits_the_device(name):
    from pykernels.ops import _triton
    from pykernels.ops.int8_matmul.triton.config import candidates, config, shared_bytes

    small = _triton.Device("cuda", 86, 46, 101_376)  # a consumer's GPU: mma, and less shared memory
    device = small if name == "small" else getattr(_triton, name)
    for m, n, k in SIZES:
        c = config(m, n, k, device)
        assert c == config(m, n, k, device)
        assert c in candidates(m, n, k, device)
        for x in candidates(m, n, k, device):
            assert all(is_power_of_two(v) for v in (x.block_m, x.block_n, x.block_k, x.warps, x.products))
            assert x.block_m >= 16
            assert x.block_n >= 32
            assert x.block_k >= 32  # what tl.dot takes of bytes
            assert shared_bytes(x, device) <= device.shared
            assert 0 < x.block_m * x.block_n // (32 * x.warps) <= 128  # sums a thread
            # No part of K is empty, so no program has nothing to do.
            steps = math.ceil(k / (x.block_k * x.products))
            assert x.splits == 1 or (x.splits - 1) * math.ceil(steps / x.splits) < steps


def test_large_products_take_large_tiles_and_long_sums_are_split():
    from pykernels.ops._triton import AMPERE, CDNA3, HOPPER
    from pykernels.ops.int8_matmul.triton.config import config

    for device in (AMPERE, HOPPER, CDNA3):
        large = config(8192, 8192, 8192, device)
        assert large.block_m * large.block_n == 128 * 256
        assert large.splits == 1
        one = config(1, 4096, 4096, device)
        assert one.block_m == 16
        assert math.ceil(4096 / one.block_n) * one.splits >= 64  # programs


# -- exact sums


@pytest.mark.parametrize(("splits", "k", "products"), [(1, 80, 2), (2, 32, 1), (3, 80, 2), (2, 300, 1), (5, 300, 2)])
def test_any_split_of_k_is_exact(splits, k, products):
    a, b = integers(35, k), integers(70, k, seed=1)
    zero = torch.arange(35, dtype=torch.int32, device=DEVICE) - 20
    with forced(splits=splits, products=products):
        got = int8_matmul(a, b.t(), a_zero_point=zero, backend="triton")
    assert torch.equal(got.cpu(), (a.cpu().long() - zero.cpu()[:, None]).int() @ b.cpu().int().t())


@pytest.mark.parametrize("tile", [(64, 128), (128, 128), (128, 256)])
@pytest.mark.parametrize("out_dtype", [torch.int32, torch.float16, torch.int8])
def test_epilogues_in_pieces_store_every_column(tile, out_dtype):
    a, b = integers(tile[0] + 7, 64), integers(tile[1] + 37, 64, seed=1)
    scaled = {} if out_dtype == torch.int32 else {"b_scale": torch.full((len(b),), 2.0**-11, device=DEVICE)}
    with forced(block_m=tile[0], block_n=tile[1], warps=8 if tile[1] == 256 else 4):
        got = int8_matmul(a, b.t(), out_dtype=out_dtype, backend="triton", **scaled)
    assert torch.equal(got, int8_matmul_reference(a, b.t(), out_dtype=out_dtype, **scaled))


@pytest.mark.parametrize("k", [64, 67])
@pytest.mark.parametrize(
    ("of_a", "of_b"), [(x, x) for x in LAYOUTS] + [("rows", x) for x in LAYOUTS if x != "rows"] + [("offset", "wider")]
)
def test_layouts(of_a, of_b, k):
    a, b = LAYOUTS[of_a](integers(20, k)), LAYOUTS[of_b](integers(50, k, seed=1))
    got = int8_matmul(a, b.t(), backend="triton")
    assert torch.equal(got.cpu(), a.cpu().int() @ b.cpu().int().t())


def test_rows_of_k_are_read_in_place(monkeypatch):
    from pykernels.ops.int8_matmul import triton as kernels

    seen = noted(monkeypatch, kernels)
    a, b = integers(20, 64), integers(50, 64, seed=1)
    int8_matmul(a, b.t(), backend="triton")
    assert seen == ["matmul_kernel"]
    seen.clear()
    int8_matmul(a, b.t().contiguous(), backend="triton")
    assert seen == ["rows_of_k_kernel", "matmul_kernel"]


def test_a_wide_output_is_addressed_in_64_bits():
    a, b = integers(2, 16), integers(1, 16, seed=1).expand(2**22 + 5, 16)
    got = int8_matmul(a, b.t(), backend="triton") if DEVICE == "cuda" else None
    if got is None:  # interpreted it would take minutes: the same code, with a tile as large as tiles get
        from pykernels.ops.int8_matmul import triton as kernels

        with pytest.MonkeyPatch.context() as patch:
            real = kernels.launch
            patch.setattr(kernels, "launch", lambda *a, **c: real(*a, **{**c, "WIDE": True}))
            b = b[:70]
            got = int8_matmul(a, b.t(), backend="triton")
    assert torch.equal(got.cpu(), a.cpu().int() @ b.cpu().int().t())


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)])
def test_empty_products(m, n, k):
    a, b, scale = integers(m, k), integers(k, n), torch.rand(n, device=DEVICE)
    given = {"b_scale": scale, "bias": scale, "activation": "sigmoid", "out_dtype": torch.float32}
    got = int8_matmul(a, b, **given, backend="triton")
    assert_rounded(got, int8_matmul_reference(a, b, **given))


# -- epilogue


def test_special_scales_and_biases():
    dtypes = torch.float32, torch.float16, torch.int8
    checks.check_special_scales_and_biases("triton", DEVICE, dtypes, ("none", "relu"))


def test_scales_of_any_stride_and_the_slope():
    a, b = integers(6, 9), integers(9, 5, seed=1)
    rows, columns = torch.rand(6, device=DEVICE), torch.rand(5, device=DEVICE)
    given = {"activation": "leaky_relu", "out_dtype": torch.float32}
    sums = (a.cpu().int() @ b.cpu().int()).float().to(DEVICE)
    for r in (rows, torch.stack((rows, rows), 1)[:, 0], rows[:1], rows[:1].expand(6)):
        for c in (columns, torch.stack((columns, columns), 1)[:, 0], columns[:1]):
            got = int8_matmul(a, b, a_scale=r, b_scale=c, **given, backend="triton")
            expected = torch.nn.functional.leaky_relu(sums * r.reshape(-1, 1) * c, 0.01)
            assert_rounded(got, expected)


def test_int8_output_rounds_to_even_and_saturates():
    checks.check_int8_output_rounds_to_even_and_saturates("triton", DEVICE)


# -- gradients


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("zero_point", [False, True])
def test_gradients_of_scales_and_bias(activation, zero_point):
    checks.check_gradients("triton", DEVICE, activation, zero_point=zero_point)


def test_what_quantises_has_no_gradient():
    x, q = normal(4, 32).requires_grad_(), integers(5, 32)
    ops = torch.ops.pykernels
    for outputs in (
        ops.quantize_int8_triton(x, 0, True),
        (ops.int8_linear_triton(x, q.t(), torch.ones(5, device=DEVICE), None, 0),),
    ):
        loss = sum(t.float().sum() for t in outputs if t.requires_grad)
        with pytest.raises(RuntimeError, match="quantisation has no gradient"):
            loss.backward()


# -- quantisation


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 20_000), 0),  # longer than a program keeps
        ((700, 3), 0),  # many short rows a program
        ((2, 70_000), None),  # in parts
        ((300, 130), 1),
        ((6, 5, 7, 3), 1),
        ((3, 70, 2), 1),
        ((2, 3, 5000), 1),
        ((40,), 0),
    ],
)
def test_every_way_through_x_equals_the_reference(shape, axis, symmetric):
    x = normal(*shape)
    x.view(-1)[::7] *= 100
    got = quantize_int8(x, axis=axis, symmetric=symmetric, backend="triton")
    assert_same_quantisation(got, quantize_int8_reference(x, axis=axis, symmetric=symmetric))
    assert all(t.is_contiguous() for t in got)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_slices_with_nan_infinities_and_tiny_numbers(axis, symmetric):
    x = normal(9, 20)
    rows = x if axis == 0 else normal(20, 9).t()
    nan, inf = float("nan"), float("inf")
    for i, value in enumerate((nan, inf, -inf, -nan, 1e-42, 0.0, 3e38)):
        rows[i, 3] = value
    rows[4], rows[5] = rows[4] * 1e-44, 0.0
    rows[7, 2], rows[7, 9] = nan, inf
    x = rows if axis == 0 else rows.t()
    got = quantize_int8(x, axis=axis, symmetric=symmetric, backend="triton")
    assert_same_quantisation(got, quantize_int8_reference(x, axis=axis, symmetric=symmetric))


@pytest.mark.parametrize("layout", [*LAYOUTS])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_quantisation_of_any_strides(layout, axis):
    wide = LAYOUTS[layout]((normal(30, 50) * 20).to(torch.float32))
    assert_same_quantisation(quantize_int8(wide, axis=axis, backend="triton"), quantize_int8_reference(wide, axis=axis))


def test_rows_take_one_kernel(monkeypatch):
    from pykernels.ops.int8_matmul.triton import quantize as kernels

    seen = noted(monkeypatch, kernels)
    quantize_int8(normal(5, 300), axis=0, backend="triton")
    assert seen == ["rows_kernel"]


# -- int8_linear, the module, and what PyTorch asks of an op


@pytest.mark.parametrize("k", [48, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_is_its_two_ops(k, dtype):
    x, (weight, scale, _) = normal(7, k, dtype=dtype), quantize_int8_reference(normal(20, k, seed=1), axis=0)
    bias = normal(20, seed=2, dtype=dtype)
    got = int8_linear(x, weight, scale, bias, "silu", backend="triton")
    q, x_scale, _ = quantize_int8(x, axis=0, backend="triton")
    expected = int8_matmul(
        q, weight.t(), a_scale=x_scale, b_scale=scale, bias=bias, activation="silu", out_dtype=dtype, backend="triton"
    )
    assert torch.equal(got, expected)


def test_the_module_runs_on_triton():
    linear = torch.nn.Linear(40, 24)
    module = pk.nn.Int8Linear.from_torch(linear, activation="relu").to(DEVICE).eval()
    x = normal(2, 3, 40)
    with torch.no_grad(), pk.backend("reference"):
        expected = module(x)
    with torch.no_grad(), pk.backend("triton"):
        got = module(x)
    assert relative_l2(got, expected) <= 2 * BOUND


def test_opcheck():
    a, b = integers(5, 32), integers(6, 32, seed=1).t()
    one, six = torch.rand((), device=DEVICE), torch.rand(6, device=DEVICE)
    ops, tests = torch.ops.pykernels, ("test_schema", "test_faketensor", "test_autograd_registration")
    int8_matmul(a, b, backend="triton")  # registers the ops
    opcheck(ops.int8_matmul_triton, (a, b, None, None, None, None, 0, torch.int32), test_utils=tests)
    opcheck(ops.int8_matmul_triton, (a, b, one, six, None, six, 1, torch.float32), test_utils=tests)
    opcheck(ops.quantize_int8_triton, (normal(5, 32), 0, False), test_utils=tests)
    opcheck(ops.int8_linear_triton, (normal(5, 32), b, six, None, 2), test_utils=tests)


@pytest.mark.skipif(DEVICE == "cuda", reason="Inductor's own tests have it")
def test_compiles_whole_and_once_for_any_batch():
    weight, scale, _ = quantize_int8_reference(normal(24, 40, seed=1), axis=0)

    def forward(x):
        q, s, _ = quantize_int8(x, axis=0, backend="triton")
        return int8_matmul(q, weight.t(), a_scale=s, b_scale=scale, out_dtype=torch.float32, backend="triton")

    assert_one_graph(forward, [(normal(m, 40, seed=m),) for m in (5, 70, 300)])


def test_equal_inputs_give_equal_bits():
    a, b, scale = integers(40, 300), integers(300, 70, seed=1), torch.rand(70, device=DEVICE)
    given = {"b_scale": scale, "activation": "gelu", "out_dtype": torch.float32, "backend": "triton"}
    first = int8_matmul(a, b, **given)
    assert torch.equal(first, int8_matmul(a, b, **given))
    with forced(splits=3):
        assert torch.equal(first, int8_matmul(a, b, **given))
