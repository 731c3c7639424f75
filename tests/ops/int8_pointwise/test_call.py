"""The ops on each element of int8: values at the edges, memory formats, `_out` forms, traces, what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import opcheck

from pykernels.ops import int8_add, int8_affine, int8_dequantize, int8_lookup, int8_quantize
from pykernels.ops.int8_pointwise.arguments import AddCall, AffineCall
from tests.harness import (
    FORMATS,
    assert_one_graph,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    integers,
    native,
    normal,
)

OPS = torch.ops.pykernels
EVERY = torch.arange(-128, 128, dtype=torch.int8)
TABLE = torch.randint(-128, 128, (256,), generator=torch.Generator().manual_seed(3)).to(torch.int8)


@native
@pytest.mark.parametrize("isa", host_isas())
def test_what_lies_between_two_numbers_goes_to_the_even_one(isa):
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    expected = torch.tensor([-2, -2, 0, 0, 2, 2, 126, 127, 127, -128, 127, -128, 0])
    with forced_isa(isa):
        assert int8_quantize(x, 1.0).tolist() == expected.tolist()
        # By the zero point after the rounding, and then saturated.
        assert int8_quantize(x, 1.0, 3).tolist() == (expected[:6] + 3).tolist() + [127] * 3 + [-128, 127, -128, 3]
        assert int8_quantize(x.repeat(20), 1.0, -128).tolist()[:6] == [-128, -128, -128, -128, -126, -126]


@native
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 2.0**-100, 1e10])
def test_a_grid_comes_back(scale):
    for zero_point in (-128, -3, 0, 127):
        for dtype in (torch.float32, torch.bfloat16):
            x = int8_dequantize(EVERY, scale, zero_point, dtype)
            assert x.dtype == dtype
            if dtype == torch.float32:
                assert torch.equal(int8_quantize(x, scale, zero_point), EVERY)
                assert torch.equal(x, (EVERY.float() - zero_point) * scale)


@native
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 15, 16, 17, 35, 64])
def test_out_may_have_another_memory_format(channels):
    x = normal(2, channels, 21, 33)
    for isa in host_isas():
        with forced_isa(isa):
            for source in FORMATS:
                for target in FORMATS:
                    given, expected = x.contiguous(memory_format=source), int8_quantize(x, 0.02, 5, backend="reference")
                    q = torch.empty_like(expected, memory_format=target)
                    OPS.int8_quantize_out(given, 0.02, 5, q)
                    assert torch.equal(q, expected)
                    y = torch.empty_like(x, memory_format=source)
                    OPS.int8_dequantize_out(q, 0.02, 5, y)
                    assert torch.equal(y, int8_dequantize(expected, 0.02, 5, backend="reference"))


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_out_may_be_a_slice_of_a_concatenation(layout):
    a, b = integers(2, 5, 6, 7, layout=layout), integers(2, 5, 6, 7, layout=layout, seed=1)
    call = torch.tensor(AddCall(0.1, 0.2, 0.3, 1, 2, 3, 1)).double()
    x = int8_dequantize(a, 0.1)
    for target in FORMATS:
        for run, expected in (
            (lambda out: OPS.int8_quantize_out(x, 0.1, 0, out), a),
            (lambda out: OPS.int8_lookup_out(a, TABLE, out), TABLE[a.long() + 128]),
            (lambda out: OPS.int8_add_out(a, b, call, out), int8_add(a, b, 0.1, 0.2, 0.3, 1, 2, 3, "relu")),
        ):
            wide = torch.full((2, 9, 6, 7), 77, dtype=torch.int8).contiguous(memory_format=target)
            run(wide[:, 2:7])
            assert torch.equal(wide[:, 2:7], expected)
            assert (wide[:, :2] == 77).all()
            assert (wide[:, 7:] == 77).all()


@native
def test_out_may_be_what_is_read():
    a, b = integers(3, 77), integers(3, 77, seed=1)
    expected = int8_add(a, b, 0.1, 0.2, 0.3)
    for place in (0, 1):
        operands = [a.clone(), b.clone()]
        OPS.int8_add_out(*operands, torch.tensor(AddCall(0.1, 0.2, 0.3)).double(), operands[place])
        assert torch.equal(operands[place], expected)
    q = a.clone()
    OPS.int8_lookup_out(q, TABLE, q)
    assert torch.equal(q, TABLE[a.long() + 128])


@native
def test_any_number_of_dimensions_and_any_strides():
    for q in (
        integers(),
        integers(7),
        integers(2, 3, 2, 1, 2, 2, 1, 2, 3, 2),
        integers(2, 3, 2, 1, 2, 2, 1, 2, 3, 2).transpose(0, 8),
        integers(4, 6, 8).permute(2, 0, 1),
        integers(1, 9).expand(5, 9),
        integers(5, 40)[::2, ::3],
    ):
        x = int8_dequantize(q, 0.5, 3)
        assert torch.equal(x, (q.float() - 3) * 0.5)
        assert torch.equal(int8_quantize(x.as_strided(x.shape, x.stride()), 0.5, 3), q)
        assert torch.equal(int8_lookup(q, TABLE), TABLE[q.long() + 128])
        assert torch.equal(int8_add(q, q, 1.0, 1.0, 2.0), q)


@native
def test_a_table_is_a_function_between_two_grids():
    q = integers(2, 19, 9, 9, layout=torch.channels_last)
    table = int8_quantize(torch.nn.functional.silu(int8_dequantize(EVERY, 0.05, 7)), 0.03, -90)
    expected = int8_quantize(torch.nn.functional.silu(int8_dequantize(q, 0.05, 7)), 0.03, -90)
    assert torch.equal(int8_lookup(q, table), expected)
    assert torch.equal(int8_lookup(q, table.repeat_interleave(2)[::2]), expected)


@native
@pytest.mark.parametrize("isa", host_isas())
def test_an_affine_map_is_a_batch_norm_between_two_grids(isa):
    """Within half a step of the grid, and of what float32 loses."""
    q = integers(2, 33, 9, 7, layout=torch.channels_last)
    mean, bias, (var, weight) = *torch.randn(2, 33), torch.rand(2, 33) + 0.5
    real = int8_dequantize(q, 0.05, -7)
    expected = torch.nn.functional.batch_norm(real, mean, var, weight, bias).relu()
    factor = weight * (var + 1e-5).rsqrt()
    with forced_isa(isa):
        y = int8_affine(q, 0.05 * factor, bias - mean * factor + 7 * 0.05 * factor, 0.04, -128, "relu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    error = (int8_dequantize(y, 0.04, -128) - expected.clamp(max=0.04 * 255)).abs().max()
    assert 0.01 < error < 0.02 + 1e-5


@native
@pytest.mark.parametrize("isa", host_isas())
def test_an_affine_map_joins_tensors_of_any_layout_into_any_layout(isa):
    scale, shift = torch.randn(2, 45)
    call = torch.tensor(AffineCall(0.3, 5, 1)).double()
    for formats in itertools.product(FORMATS, repeat=3):
        a, b = integers(2, 40, 6, 7, layout=formats[0]), integers(2, 5, 6, 7, layout=formats[1], seed=1)
        expected = int8_affine(torch.cat((a, b), 1), scale, shift, 0.3, 5, "relu", backend="reference")
        with forced_isa(isa):
            assert torch.equal(int8_affine([a, b], scale, shift, 0.3, 5, "relu"), expected)
            wide = torch.full((2, 49, 6, 9), 77, dtype=torch.int8).contiguous(memory_format=formats[2])
            OPS.int8_affine_out([a, b], scale, shift, call, wide[:, 2:47, :, 1:8])
        assert torch.equal(wide[:, 2:47, :, 1:8], expected)
        wide[:, 2:47, :, 1:8] = 77
        assert (wide == 77).all()


@native
@pytest.mark.parametrize("activation", ["silu", "gelu", "hardswish", "sigmoid"])
def test_the_sum_with_a_curved_activation_is_within_a_step(activation):
    a, b = integers(100, 100), integers(100, 100, seed=1)
    calls = [int8_add(a, b, 0.02, 0.03, 0.02, 1, 2, 3, activation, backend=where) for where in ("cpu", "reference")]
    difference = (calls[0].int() - calls[1].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.001
    calls = [int8_affine(a, *torch.ones(2, 100), 0.9, 3, activation, backend=where) for where in ("cpu", "reference")]
    assert (calls[0].int() - calls[1].int()).abs().max() <= 1


@native
def test_threads_change_nothing():
    x = normal(2, 67, 60, 31)
    q, last = int8_quantize(x, 0.02), torch.empty(x.shape, dtype=torch.int8).to(memory_format=torch.channels_last)

    def turned():
        OPS.int8_quantize_out(x, 0.02, 0, last)
        return last.clone()

    assert_threads_change_nothing(
        lambda: [
            int8_quantize(x, 0.02), int8_dequantize(q, 0.02), int8_add(q, q, 1.0, 2.0, 3.0), int8_lookup(q, TABLE),
            turned(), int8_affine(q, *x[:, :, 0, 0], 0.5), int8_affine([last, q], *x[:, 0].flatten(1)[:, :134], 0.5),
        ],
        (1, 2, 3),
    )  # fmt: skip


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout):
    x, q = normal(2, 3, 4, 5, layout=layout), integers(2, 3, 4, 5, layout=layout)
    opcheck(OPS.int8_quantize.default, (x, 0.1, 3))
    opcheck(OPS.int8_dequantize.default, (q, 0.1, 3, torch.bfloat16))
    opcheck(OPS.int8_add.default, (q, q, *AddCall(0.1, 0.2, 0.3)))
    opcheck(OPS.int8_lookup.default, (q, TABLE))
    opcheck(OPS.int8_affine.default, ([q, q], torch.ones(6), torch.ones(6), *AffineCall(0.3)))
    opcheck(OPS.int8_quantize_out.default, (x, 0.1, 3, torch.empty_like(q)))
    opcheck(OPS.int8_dequantize_out.default, (q, 0.1, 3, torch.empty_like(x)))
    opcheck(OPS.int8_add_out.default, (q, q, torch.tensor(AddCall(0.1, 0.2, 0.3)).double(), torch.empty_like(q)))
    opcheck(OPS.int8_lookup_out.default, (q, TABLE, torch.empty_like(q)))
    vector, call = torch.ones(3), torch.tensor(AffineCall(0.3)).double()
    opcheck(OPS.int8_affine_out.default, ([q], vector, vector, call, torch.empty_like(q)))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        q = int8_quantize(x, 0.1, 3)
        joined = int8_affine([q, q], torch.ones(8), torch.ones(8), 0.1)
        summed = int8_add(q, q, 0.1, 0.2, 0.3, activation="relu")
        return q, int8_dequantize(q, 0.1), summed, int8_lookup(q, TABLE), joined

    def calls():
        for n, h in ((2, 8), (3, 10), (5, 7)):
            x = normal(n, 4, h, 9, layout=layout)
            torch._dynamo.maybe_mark_dynamic(x, (0, 2))
            yield (x,)

    assert_one_graph(f, calls(), dynamic=None)


def test_there_is_no_gradient():
    x = normal(3, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"pykernels.int8_quantize: x: expected a tensor that requires no gradient"):
        int8_quantize(x, 0.1)
    with torch.no_grad():
        int8_quantize(x, 0.1)


Q, V = integers(2, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: int8_quantize(Q, 0.1), TypeError, "int8_quantize: x: expected a floating dtype, got torch.int8"),
        (lambda: int8_quantize(Q.float(), 0), ValueError, "int8_quantize: scale: expected a number of"),
        (lambda: int8_quantize(Q.float(), torch.nan), ValueError, "int8_quantize: scale: expected a number of"),
        (lambda: int8_quantize(Q.float(), 1e-39), ValueError, "int8_quantize: scale: expected a number of"),
        (lambda: int8_quantize(Q.float(), 0.1, 128), ValueError, "int8_quantize: zero_point: expected an int in"),
        (lambda: int8_quantize(Q.float(), 0.1, 0.5), TypeError, "int8_quantize: zero_point: expected an int"),
        (lambda: int8_dequantize(Q.float(), 0.1), TypeError, "int8_dequantize: q: expected torch.int8"),
        (lambda: int8_dequantize(Q, 0.1, -129), ValueError, "int8_dequantize: zero_point: expected an int"),
        (lambda: int8_dequantize(Q, 0.1, dtype=torch.int8), TypeError, "int8_dequantize: dtype: expected a floating"),
        (lambda: int8_dequantize(Q, 0.1, dtype="a"), TypeError, "int8_dequantize: dtype: expected a floating"),
        (lambda: int8_add(Q, Q[:1], 1, 1, 1), ValueError, "int8_add: b: expected a's shape"),
        (lambda: int8_add(Q, Q, 1, 1, 0), ValueError, "int8_add: out_scale: expected a number of"),
        (lambda: int8_add(Q, Q, 1, 1, 1, 0, 200), ValueError, "int8_add: b_zero_point: expected an int"),
        (lambda: int8_lookup(Q, TABLE[:255]), ValueError, "int8_lookup: table: expected shape"),
        (lambda: int8_lookup(Q, TABLE.int()), TypeError, "int8_lookup: table: expected torch.int8"),
        (lambda: int8_affine(Q, V, V, 0), ValueError, "int8_affine: out_scale: expected a number of"),
        (lambda: int8_affine(Q, V, V, 1, 128), ValueError, "int8_affine: out_zero_point: expected an int in"),
        (lambda: int8_affine(Q, V[:2], V, 1), ValueError, "int8_affine: scale: expected shape"),
        (lambda: int8_affine(Q, V, V.int(), 1), TypeError, "int8_affine: shift: expected a floating dtype"),
        (lambda: int8_affine(Q.float(), V, V, 1), TypeError, "int8_affine: x: expected torch.int8"),
        (lambda: int8_affine([], V, V, 1), ValueError, "int8_affine: x: expected at least one tensor"),
        (lambda: int8_affine(Q[0], V, V, 1), ValueError, r"int8_affine: x: expected \(N, C\)"),
        (lambda: int8_affine([Q, Q[:1]], V, V, 1), ValueError, r"int8_affine: x\[1\]: expected but for the channels"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=f"^pykernels.{words}"):
        call()


@native
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: OPS.int8_quantize(Q, 0.1, 0), "int8_quantize: x: expected torch.float32 or torch.bfloat16"),
        (lambda: OPS.int8_quantize(Q.float(), 0.0, 0), "int8_quantize: scale: expected a number of"),
        (lambda: OPS.int8_quantize(Q.float(), 0.1, 128), "int8_quantize: zero_point: expected an int in"),
        (lambda: OPS.int8_quantize_out(Q.float(), 0.1, 0, Q.float()), "int8_quantize_out: out: expected torch.int8"),
        (lambda: OPS.int8_quantize_out(Q.float(), 0.1, 0, Q[:1]), "int8_quantize_out: out: expected shape"),
        (lambda: OPS.int8_dequantize(Q, 0.1, 0, torch.float64), "int8_dequantize: dtype: expected torch.float32"),
        (lambda: OPS.int8_add(Q, Q[:1], *AddCall(1, 1, 1)), "int8_add: b: expected shape"),
        (lambda: OPS.int8_add(Q, Q, *AddCall(1, 1, 1, activation=99)), "int8_add: activation: expected a code"),
        (lambda: OPS.int8_add_out(Q, Q, torch.ones(3), Q), "int8_add_out: call: expected 8 float64 numbers"),
        (lambda: OPS.int8_lookup(Q, TABLE[:9]), "int8_lookup: table: expected shape"),
        (lambda: OPS.int8_affine([Q], V[:2], V, *AffineCall(1.0)), "int8_affine: scale: expected shape"),
        (lambda: OPS.int8_affine([Q], V, V, *AffineCall(0.0)), "int8_affine: out_scale: expected a number of"),
        (lambda: OPS.int8_affine([Q], V, V, *AffineCall(1.0, -129)), "int8_affine: out_zero_point: expected an int"),
        (lambda: OPS.int8_affine([Q, Q.float()], V, V, *AffineCall(1.0)), "int8_affine: x: expected torch.int8"),
        (lambda: OPS.int8_affine([Q, Q[:1]], V, V, *AffineCall(1.0)), "int8_affine: x: expected tensors that differ"),
        (lambda: OPS.int8_affine([], V, V, *AffineCall(1.0)), "int8_affine: x: expected at least one"),
        (lambda: OPS.int8_affine_out([Q], V, V, V, Q), "int8_affine_out: call: expected 4 float64 numbers"),
        (
            lambda: OPS.int8_affine_out([Q], V, V, torch.ones(4).double(), Q[:1].expand(2, 3)),
            "int8_affine_out: out: expected elements that do not overlap",
        ),
    ],
)
def test_the_native_ops_refuse_what_does_not_fit(call, words):
    with pytest.raises(RuntimeError, match=f"^pykernels.{words}"):
        call()
