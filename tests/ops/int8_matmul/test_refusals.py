"""What the int8 functions and their operators refuse beyond test_dialect.py, one message each."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.int8_matmul import int8_linear, int8_matmul, quantize_int8
from pykernels.ops.int8_matmul.arguments import MAX_K
from tests.harness import forced_isa, host_isas, integers, native
from tests.ops.int8_matmul.checks import OPS

A, B = integers(4, 6), integers(6, 3)
ONE = torch.ones(())


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "b: expected torch.int8, got torch.uint8", {"b": B.byte()}),
        (ValueError, r"a: expected a matrix, got shape \(4,\)", {"a": A[:, 0]}),
        (ValueError, r"b: expected 6 rows, as a has columns, got shape \(5, 3\)", {"b": B[:5]}),
        (ValueError, "b: expected a's device cpu, got meta", {"b": B.to("meta")}),
        (ValueError, "a: expected at most 131071 columns", {"a": A[:, :1].expand(4, MAX_K + 1),
                                                            "b": B[:1].expand(MAX_K + 1, 3)}),
        (ValueError, "a: expected at most 65793 columns with a zero point",
         {"a": A[:, :1].expand(4, 65794), "b": B[:1].expand(65794, 3), "a_zero_point": ONE.int()}),
        (TypeError, "b_scale: expected a floating dtype, got torch.int64", {"b_scale": ONE.long()}),
        (TypeError, "a_zero_point: expected torch.int32, got torch.int64", {"a_zero_point": ONE.long()}),
        (ValueError, r"a_scale: expected one element, \(4,\) or \(4, 1\), got shape \(3,\)",
         {"a_scale": torch.ones(3)}),
        (ValueError, r"b_scale: expected one element, \(3,\) or \(1, 3\), got shape \(3, 1\)",
         {"b_scale": torch.ones(3, 1)}),
        (ValueError, r"bias: expected shape \(3,\), got \(1,\)", {"bias": torch.ones(1)}),
        (TypeError, "bias: expected a floating dtype, got torch.int32", {"bias": torch.ones(3).int()}),
        (ValueError, "out_dtype: expected one of torch.int32, torch.float32", {"out_dtype": torch.float64}),
        (ValueError, "out_dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.int8, because",
         {"bias": torch.ones(3)}),
        (RuntimeError, "backend='cuda' cannot run", {"backend": "cuda"}),
        (RuntimeError, r"a_zero_point: expected values in \[-128, 127\]", {"a_zero_point": 128 * ONE.int()}),
        (RuntimeError, r"a_zero_point: expected values in \[-128, 127\]",
         {"a_zero_point": -129 * ONE.int(), "backend": "reference"}),
    ],
)  # fmt: skip
def test_matmul_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.*{message}"):
        int8_matmul(**{"a": A, "b": B, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x: expected a floating dtype, got torch.int8", {"x": A}),
        (ValueError, r"axis: expected None or an axis of shape \(4, 6\), got 2", {"axis": 2}),
        (ValueError, r"axis: expected None or an axis of shape \(4, 6\), got 'rows'", {"axis": "rows"}),
        (RuntimeError, "x: expected a tensor that requires no gradient", {"x": torch.ones(3, requires_grad=True)}),
        (RuntimeError, "backend='cuda' cannot run", {"backend": "cuda"}),
    ],
)
def test_quantisation_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.quantize_int8: .*{message}"):
        quantize_int8(**{"x": A.float(), **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x: expected a floating dtype, got torch.int8", {"x": A}),
        (ValueError, r"x: expected a matrix, got shape \(6,\)", {"x": torch.ones(6)}),
        (TypeError, "weight: expected torch.int8, got torch.float32", {"weight": torch.ones(3, 6)}),
        (ValueError, r"weight: expected shape \(N, 6\), got \(6, 3\)", {"weight": B}),
        (RuntimeError, "bias: expected a tensor that requires no gradient",
         {"bias": torch.ones(3, requires_grad=True)}),
    ],
)  # fmt: skip
def test_linear_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.int8_linear: {message}"):
        int8_linear(**{"x": A.float(), "weight": B.t(), "weight_scale": ONE, **arguments})


def raw(a=A, b=B, a_scale=None, b_scale=None, zero=None, bias=None, code=0, out=torch.int32):
    return OPS.int8_matmul(a, b, a_scale, b_scale, zero, bias, code, out)


def raw_packed(change, n=3):
    packed = OPS.int8_pack(B)
    return OPS.int8_matmul_packed(A, change(packed), n, None, None, None, None, 0, torch.int32)


def with_byte(i: int):
    def change(packed):
        packed[i] += 1
        return packed

    return change


@native
@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("a: expected torch.int8, got torch.float32", lambda: raw(a=A.float())),
        ("b: expected a matrix", lambda: raw(b=B[0])),
        ("b: expected 6 rows", lambda: raw(b=B[:4])),
        ("a_scale: expected torch.float32, got torch.float64", lambda: raw(a_scale=ONE.double(), out=torch.float32)),
        ("b_scale: expected one element, or shape", lambda: raw(b_scale=torch.ones(2), out=torch.float32)),
        ("a_zero_point: expected torch.int32", lambda: raw(zero=ONE)),
        ("bias: expected shape", lambda: raw(bias=torch.ones(2), out=torch.float32)),
        ("activation: expected a code in", lambda: raw(code=len(ACTIVATIONS), out=torch.float32)),
        ("out_dtype: the CPU kernels take", lambda: raw(out=torch.float64)),
        ("out_dtype: int32 is the plain sum", lambda: raw(code=1)),
        ("k: expected at most 131071", lambda: raw(a=A[:, :1].expand(4, 131072), b=B[:1].expand(131072, 3))),
        ("packed: too short", lambda: raw_packed(lambda p: p[:10])),
        ("packed: too short", lambda: raw_packed(lambda p: p[:0])),
        ("packed: no weight of int8_pack", lambda: raw_packed(with_byte(0))),
        ("packed: made by another version", lambda: raw_packed(with_byte(8))),
        ("packed: made for another instruction set", lambda: raw_packed(with_byte(12))),
        ("packed: its number of rows", lambda: raw_packed(with_byte(16))),
        ("packed: its number of columns", lambda: raw_packed(lambda p: p, n=4)),
        ("packed: cut short or extended", lambda: raw_packed(lambda p: p[:-1])),
        ("packed: cut short or extended", lambda: raw_packed(lambda p: torch.cat((p, p)))),
        ("packed: expected torch.uint8", lambda: raw_packed(lambda p: p.view(torch.int8))),
        ("packed: expected the contiguous 1-d tensor", lambda: raw_packed(lambda p: p[None])),
        ("n: expected at least 0", lambda: raw_packed(lambda p: p, n=-1)),
        ("b: expected at most 131071 rows", lambda: OPS.int8_pack(B[:1].expand(131072, 3))),
        ("x: expected torch.float32 or torch.bfloat16", lambda: OPS.quantize_int8(A.double(), 0, True)),
        ("axis: expected less than 2", lambda: OPS.quantize_int8(A.float(), 2, True)),
        ("x: expected torch.float32 or torch.bfloat16", lambda: OPS.int8_linear(A, B, ONE, None, 0)),
    ],
)
def test_the_operators_check_for_themselves(message, call):
    with pytest.raises(RuntimeError, match=message):
        call()


@native
def test_a_weight_packed_for_another_instruction_set_is_refused():
    isas = host_isas()
    if len(isas) < 2:
        pytest.skip("one instruction set only")
    with forced_isa(isas[0]):
        packed = OPS.int8_pack(B)
    with forced_isa(isas[1]), pytest.raises(RuntimeError, match="another instruction set"):
        OPS.int8_matmul_packed(A, packed, 3, None, None, None, None, 0, torch.int32)
