"""int8_matmul and quantize_int8 on the CPU: what the specs' samples do not say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.int8_matmul import int8_linear, int8_matmul, quantize_int8
from pykernels.ops.int8_matmul.arguments import MAX_K, MAX_K_WITH_ZERO_POINT
from pykernels.ops.int8_matmul.reference import quantize_int8_reference
from tests.harness import assert_threads_change_nothing, eight_threads, forced_isa, host_isas, integers, native
from tests.ops.int8_matmul.checks import (
    BACKENDS,
    LAYOUTS,
    OPS,
    assert_same_quantisation,
    check_int8_output_rounds_to_even_and_saturates,
    check_special_scales_and_biases,
    normal,
)

ISAS = pytest.mark.parametrize("isa", host_isas())

# -- exact sums


@BACKENDS
@pytest.mark.parametrize(("m", "k", "n"), [(17, 24, 32), (64, 128, 40), (32, 8, 8)])
def test_equals_torch_int_mm(backend, m, k, n):
    a, b = integers(m, k), integers(k, n, seed=1)
    assert torch.equal(int8_matmul(a, b, backend=backend), torch._int_mm(a, b))


@native
@ISAS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_strides_and_zero_points_are_exact(isa, data):
    size = st.one_of(st.integers(0, 20), st.integers(0, 140))
    m, k, n = data.draw(size), data.draw(st.one_of(size, st.integers(500, 1100))), data.draw(size)
    kinds = st.sampled_from(["rows", "columns", "sliced", "offset", "expanded"])
    values = data.draw(st.sampled_from([(-128, 128), (-128, -127), (127, 128)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    a = torch.randint(*values, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (k, n), generator=generator, dtype=torch.int8)
    if k > 0:
        a = LAYOUTS[data.draw(kinds)](a)
    if n > 0:
        b = LAYOUTS[data.draw(kinds)](b)
    zero = None
    if data.draw(st.booleans()):
        zero = torch.randint(-128, 128, (m,), generator=generator, dtype=torch.int32)
    left = a.long() if zero is None else a.long() - zero[:, None]
    with forced_isa(isa):
        got = int8_matmul(a, b, a_zero_point=zero, backend="cpu")
        packed = OPS.int8_pack(b)
        also = OPS.int8_matmul_packed(a, packed, n, None, None, zero, None, 0, torch.int32)
    assert torch.equal(got.long(), left @ b.long())
    assert torch.equal(also, got)


@BACKENDS
def test_the_longest_sums_do_not_wrap(backend):
    ones = torch.full((1, MAX_K), -128, dtype=torch.int8)
    assert int8_matmul(ones, ones.t(), backend=backend).item() == MAX_K * 2**14
    ones = ones[:, :MAX_K_WITH_ZERO_POINT]
    zero = torch.tensor(127, dtype=torch.int32)
    assert int8_matmul(ones, ones.t(), a_zero_point=zero, backend=backend).item() == MAX_K_WITH_ZERO_POINT * 255 * 128


# -- epilogue


@native
@ISAS
def test_special_scales_and_biases(isa):
    dtypes, activations = (torch.float32, torch.bfloat16, torch.int8), ("none", "relu", "hardswish")
    with forced_isa(isa):
        check_special_scales_and_biases("cpu", "cpu", dtypes, activations)


@native
@ISAS
def test_int8_output_rounds_to_even_and_saturates(isa):
    with forced_isa(isa):
        check_int8_output_rounds_to_even_and_saturates("cpu", "cpu")


def test_scale_shapes_mean_the_same():
    a, b = integers(6, 9), integers(9, 5, seed=1)
    rows, columns = torch.rand(6), torch.rand(5)
    expected = int8_matmul(a, b, a_scale=rows, b_scale=columns, out_dtype=torch.float32)
    for r in (rows, rows[:, None], rows.double().float(), torch.stack((rows, rows), 1)[:, 0]):
        for c in (columns, columns[None], torch.stack((columns, columns), 1)[:, 0]):
            assert torch.equal(int8_matmul(a, b, a_scale=r, b_scale=c, out_dtype=torch.float32), expected)
    for one in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        got = int8_matmul(a, b, a_scale=one, out_dtype=torch.float32)
        assert torch.equal(got, 0.5 * int8_matmul(a, b).float())


def test_float16_output_is_the_reference_on_a_cpu():
    a, b, scale = integers(4, 6), integers(6, 3, seed=1), torch.rand(3) / 100
    got = int8_matmul(a, b, b_scale=scale, out_dtype=torch.float16)
    assert torch.equal(got, ((a.double() @ b.double()).float() * scale).half())


def test_float64_scales_run_in_float64():
    a, b, scale = integers(4, 6), integers(6, 3, seed=1), torch.rand(3, dtype=torch.float64)
    got = int8_matmul(a, b, b_scale=scale, out_dtype=torch.float32)
    assert torch.equal(got, ((a.double() @ b.double()) * scale).float())


@native
def test_inputs_stay_as_they_are():
    a, b, x = integers(40, 70), integers(70, 33, seed=1), normal(40, 70)
    copies = a.clone(), b.clone(), x.clone()
    int8_matmul(a, b)
    quantize_int8(x, axis=0)
    int8_linear(x, b.t(), torch.rand(33))
    assert all(torch.equal(t, c) for t, c in zip((a, b, x), copies, strict=True))


# -- quantisation


@native
@ISAS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_quantisation_equals_the_reference_to_the_bit(isa, data):
    shape = data.draw(st.lists(st.integers(0, 24), max_size=4))
    axis = data.draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1))) if shape else None
    values = st.one_of(
        st.floats(width=32), st.floats(-4, 4, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38])
    )
    few = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=6)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = few[torch.randint(0, len(few), shape, generator=generator)]
    x = (x * torch.rand(shape, generator=generator)).to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    symmetric = data.draw(st.booleans())
    with forced_isa(isa):
        got = quantize_int8(x, axis=axis, symmetric=symmetric, backend="cpu")
    assert_same_quantisation(got, quantize_int8_reference(x, axis=axis, symmetric=symmetric))


@BACKENDS
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantised_is_within_half_a_step(backend, symmetric):
    x = normal(50, 333) * torch.logspace(-20, 20, 50)[:, None]
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=symmetric, backend=backend)
    back = (q.float() - zero_point[:, None]) * scale[:, None]
    assert ((back - x).abs() <= 0.5001 * scale[:, None]).all()
    assert q.abs().max() <= 127 or not symmetric


@BACKENDS
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_nan_and_infinity(backend, symmetric):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, 0.0, -0.0], [1.0, nan, 2.0], [1.0, -inf, 2.0], [inf, nan, 0.0], [1.0, -1.0, 0.0]])
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=symmetric, backend=backend)
    assert q[:4].abs().max() == 0
    assert zero_point[:4].tolist() == [0, 0, 0, 0]
    assert scale[0] == 1
    assert scale[1].isnan()
    assert scale[2] == inf
    assert scale[3].isnan()
    back = (q[4].float() - zero_point[4]) * scale[4]
    assert back[2] == 0
    torch.testing.assert_close(back, x[4], rtol=0, atol=0.5001 * scale[4].item())


def test_quantisation_of_other_dtypes():
    x = normal(5, 40)
    half = quantize_int8(x.half(), axis=0)
    assert_same_quantisation(half, quantize_int8(x.half().float(), axis=0))
    double = quantize_int8(x.double(), axis=0)
    assert double[1].dtype == torch.float64


@native
@ISAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 40, 33), (7, 515, 70), (120, 64, 300), (0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_linear_is_quantisation_and_product(isa, dtype, m, k, n):
    x, w, scale, bias = normal(m, k).to(dtype), integers(n, k), torch.rand(n) / 100, normal(n, seed=2)
    with forced_isa(isa):
        q, x_scale, _ = quantize_int8(x, axis=0)
        expected = int8_matmul(
            q, w.t(), a_scale=x_scale, b_scale=scale, bias=bias, activation="gelu", out_dtype=dtype, backend="cpu"
        )
        packed = OPS.int8_pack(w.t())
        assert torch.equal(int8_linear(x, w, scale, bias, "gelu", backend="cpu"), expected)
        assert torch.equal(
            OPS.int8_linear_packed(x, packed, w.shape[0], scale, bias, ACTIVATIONS.index("gelu")), expected
        )
        if k > 0:
            assert torch.equal(int8_linear(LAYOUTS["sliced"](x), w, scale, bias, "gelu", backend="cpu"), expected)


# -- threads


@native
def test_the_number_of_threads_changes_nothing():
    a, b, x = integers(150, 700), integers(700, 900, seed=1), normal(150, 700)
    big = normal(1 << 18)

    def call():
        return [
            int8_matmul(a, b), int8_matmul(a[:1], b), int8_linear(x, b.t(), torch.ones(900)), quantize_int8(big),
            quantize_int8(x, axis=1), OPS.int8_pack(b),
        ]  # fmt: skip

    assert_threads_change_nothing(call, (1, 2, 3, 8))
    assert torch.equal(call()[0].long(), a.long() @ b.long())


@native
def test_eight_python_threads_at_once():
    problems = [(integers(3 + 20 * i, 300, seed=i), integers(300, 40 + i, seed=9)) for i in range(8)]
    expected = [int8_matmul(a, b) for a, b in problems]

    def work(i):
        for _ in range(20):
            assert torch.equal(int8_matmul(*problems[i]), expected[i])

    eight_threads(work)
