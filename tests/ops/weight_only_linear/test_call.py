"""`weight_only_linear` beside its spec, which tests/ops/test_specs.py runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import ACTIVATIONS
from pykernels.ops._activation import apply_activation
from pykernels.ops.weight_only_linear.spec import ROUNDINGS, SPEC
from tests.harness import (
    assert_one_graph,
    assert_threads_change_nothing,
    eight_threads,
    forced_isa,
    host_isas,
    integers,
    native,
    normal,
    relative_l2,
    strided,
)

OPS = torch.ops.pykernels
isas = pytest.mark.parametrize("isa", host_isas())


def problem(m=3, n=70, k=50, dtype=torch.float32, seed=0):
    q, scale = integers(n, k, seed=seed), normal(n, seed=seed + 1).abs() / 500
    return normal(m, k, seed=seed + 2, dtype=dtype), q, scale, normal(n, seed=seed + 3)


def bound(dtype, k):
    return SPEC.bound(dtype, k + ROUNDINGS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_is_a_linear_layer(activation):
    x, q, scale, bias = problem(dtype=torch.float64)
    expected = apply_activation(F.linear(x, q.double() * scale.double()[:, None], bias.double()), activation)
    got = pk.ops.weight_only_linear(x, q, scale, bias, activation, backend="reference")
    assert got.dtype == torch.float64
    assert relative_l2(got, expected) <= bound(torch.float64, 50)


@native
@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 60), st.integers(0, 150), st.integers(0, 300)), has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), isa=st.sampled_from(host_isas()), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(sizes, has_bias, dtype, isa, seed):
    x, q, scale, bias = problem(*sizes, dtype=dtype, seed=seed)
    bias = bias if has_bias else None
    with forced_isa(isa):
        got = pk.ops.weight_only_linear(x, q, scale, bias, "relu", backend="cpu")
        packed = OPS.weight_only_linear_packed(x, OPS.weight_only_linear_pack(q, scale, bias), sizes[1], 1)
    expected = F.linear(x.double(), q.double() * scale.double()[:, None], None if bias is None else bias.double())
    for y in (got, packed):
        assert (y.shape, y.dtype) == (expected.shape, dtype)
        assert relative_l2(y, expected.relu()) <= bound(dtype, sizes[2])


@native
@isas
@pytest.mark.parametrize("m", [1, 3, 6, 60])
def test_strides_and_threads_change_no_bit(m, isa):
    x, q, scale, bias = problem(m, 700, 300)
    with forced_isa(isa):
        expected = pk.ops.weight_only_linear(x, q, scale, bias)
        assert_threads_change_nothing(lambda: pk.ops.weight_only_linear(x, q, scale, bias), (1, 3))
        for other in strided(x):
            assert torch.equal(pk.ops.weight_only_linear(other, q, scale, bias), expected)
        turned = q.t().contiguous().t()
        assert torch.equal(pk.ops.weight_only_linear(x, turned, scale[:, None], bias), expected)


@native
@isas
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("m", [6, 60])
def test_rows_of_any_size(m, size, isa):
    x, q, scale, _ = problem(m)
    x = x * size
    x[1], x[2, 3] = 0, 2e5 * size
    with forced_isa(isa):
        y = pk.ops.weight_only_linear(x, q, scale, None)
    expected = x.double() @ (q.double() * scale.double()[:, None]).t()
    assert not y[1].any()
    for got, e in ((y[2], expected[2]), (y[3:], expected[3:])):
        # Of denormal numbers the last bit counts.
        assert float((got - e).abs().max()) <= max(bound(torch.float32, 50) * float(e.abs().max()), 2e-45)


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_special_numbers(backend):
    x, q, scale, bias = problem(4)
    clean = pk.ops.weight_only_linear(x, q, scale, bias, backend=backend)
    x[1, 3], x[2, 0], scale[5], bias[7] = torch.nan, torch.inf, 0, -torch.inf
    q[:, 0] = -128
    y = pk.ops.weight_only_linear(x, q, scale, bias, backend=backend)
    assert y[1, [i for i in range(70) if i != 7]].isnan().all()
    assert y[2, 6] == -torch.inf
    assert y[0, 5] == bias[5]
    assert y[0, 7] == -torch.inf
    assert clean.isfinite().all()


@native
def test_opcheck():
    x, q, scale, bias = problem()
    opcheck(OPS.weight_only_linear.default, (x, q, scale, bias, 7))
    opcheck(OPS.weight_only_linear.default, (x, q, scale, None, 0))
    packed = OPS.weight_only_linear_pack(q, scale, bias)
    opcheck(OPS.weight_only_linear_packed.default, (x, packed, 70, 1))


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    def run(x, q, scale, bias):
        return pk.ops.weight_only_linear(x, q, scale, bias, "silu")

    assert_one_graph(run, [problem(m) for m in (5, 6, 9)], compiler)


@native
def test_autocast_casts_x():
    x, q, scale, bias = problem()
    with torch.autocast("cpu", torch.bfloat16):
        got = pk.ops.weight_only_linear(x, q, scale, bias)
        native_op = OPS.weight_only_linear(x, q, scale, bias, 0)
    expected = pk.ops.weight_only_linear(x.bfloat16(), q, scale, bias)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    assert torch.equal(native_op, expected)


@native
def test_eight_python_threads_at_once():
    args = problem(20, 300, 200)
    expected = pk.ops.weight_only_linear(*args)
    eight_threads(lambda _: [torch.testing.assert_close(pk.ops.weight_only_linear(*args), expected, rtol=0, atol=0)])


# Refusals; tests/ops/test_dialect.py has those of every op


@pytest.mark.parametrize("name", ["x", "weight_scale", "bias"])
def test_no_gradient(name):
    x, q, scale, bias = problem()
    {"x": x, "weight_scale": scale, "bias": bias}[name].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"^pykernels\.weight_only_linear: {name}: expected a tensor that requires"):
        pk.ops.weight_only_linear(x, q, scale, bias)
    with torch.no_grad():
        pk.ops.weight_only_linear(x, q, scale, bias)


@native
def test_the_native_op_has_no_gradient():
    x, q, scale, bias = problem()
    y = OPS.weight_only_linear(x.requires_grad_(), q, scale, bias, 0)
    with pytest.raises(RuntimeError, match=r"^pykernels.weight_only_linear: quantisation has no gradient"):
        y.sum().backward()


def test_bad_arguments():
    x, q, scale, bias = problem()
    for bad, error, says in (
        ((x, q[:, 1:], scale, bias), ValueError, r"weight: expected shape \(N, 50\), got \(70, 49\)"),
        ((x, q.float(), scale, bias), TypeError, "weight: expected torch.int8"),
        ((x, q, scale[1:], bias), ValueError, r"weight_scale: expected one element, \(70,\) or \(70, 1\)"),
        ((x, q, scale, bias[1:]), ValueError, r"bias: expected shape \(70,\)"),
        ((x.long(), q, scale, bias), TypeError, "x: expected a floating dtype"),
        ((x[0, 0], q, scale, bias), ValueError, "x: expected at least 1 dimension"),
        ((x, q, scale, bias, "swish"), ValueError, "activation: expected one of none"),
    ):
        with pytest.raises(error, match=f"^pykernels.weight_only_linear: {says}"):
            pk.ops.weight_only_linear(*bad)
    wide = torch.zeros(1, 131072, dtype=torch.int8)
    with pytest.raises(ValueError, match="weight: expected at most 131071 columns, beyond which int32 sums may wrap"):
        pk.ops.weight_only_linear(torch.zeros(1, 131072), wide, torch.ones(1))
    for backend in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match="kernels for CPUs only"):
            pk.ops.weight_only_linear(x, q, scale, bias, backend=backend)


@native
def test_bad_arguments_of_the_native_ops():
    x, q, scale, bias = problem()
    with pytest.raises(RuntimeError, match="weight_only_linear: weight: expected 50 columns, as x has"):
        OPS.weight_only_linear(x, q[:, 1:], scale, bias, 0)
    with pytest.raises(RuntimeError, match="weight_only_linear_pack: scale: expected"):
        OPS.weight_only_linear_pack(q, scale[1:], bias)
    packed = OPS.weight_only_linear_pack(q, scale, bias)
    for bad, n, says in (
        (packed[:-1], 70, "its size is wrong"),
        (packed[:5], 70, "too short"),
        (packed.flip(0), 70, "the first bytes are others"),
        (packed, 71, "its number of rows is not n"),
        (packed.float(), 70, "expected"),
    ):
        with pytest.raises(RuntimeError, match=f"weight_only_linear_packed: packed: .*{says}"):
            OPS.weight_only_linear_packed(x, bad, n, 0)
    with pytest.raises(RuntimeError, match="packed: its number of columns is not that of x"):
        OPS.weight_only_linear_packed(x[:, 1:], packed, 70, 0)
