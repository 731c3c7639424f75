"""The rows of tensors of any rank as the pixels of a bound 1x1 convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.harness import native, normal, relative_l2, strided

pytestmark = native

OPS = torch.ops.pykernels
NO_ROOM = torch.empty(0, dtype=torch.uint8)


def bind(weight, bias, activation=0):
    """For ``act(x @ weight.t() + bias)``."""
    filters = weight[:, :, None, None]
    packed = OPS.conv_pack(filters, 1, 0)
    return OPS.conv_bind(packed, filters.shape, None, bias, [1, 1], [0, 0, 0, 0], [1, 1], 1, activation, 0.0)


def tensors(*rows, c=19, k=21, dtype=torch.float32):
    weight, bias = normal(k, c, seed=1, dtype=dtype), normal(k, seed=2)
    return normal(*rows, c, dtype=dtype), weight, bias


def exact(x, weight, bias, residual=None):
    y = F.linear(x.double(), weight.double(), bias.double())
    return torch.relu(y if residual is None else y + residual.double())


def bound_of(dtype):
    return 1e-6 if dtype is torch.float32 else 4e-3


ROWS = ((), (1,), (2,), (3,), (7,), (13,), (100,), (2, 5), (1, 4, 1), (2, 3, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("sizes", [(19, 21), (1, 5), (33, 1), (700, 40), (64, 64)], ids=str)
def test_is_linear_for_any_rank(sizes, rows, dtype):
    x, weight, bias = tensors(*rows, c=sizes[0], k=sizes[1], dtype=dtype)
    bound = bind(weight, bias, 1)
    for residual in (None, normal(*rows, sizes[1], seed=4, dtype=dtype)):
        y = OPS.linear_bound(x, bound, residual)
        expected = exact(x, weight, bias, residual)
        assert (y.shape, y.dtype, y.is_contiguous()) == (expected.shape, dtype, True)
        assert relative_l2(y, expected) < bound_of(dtype)
        out = torch.full_like(y, 7.0)
        OPS.linear_bound_out(x, bound, residual, out, NO_ROOM)
        assert torch.equal(out, y)
        assert OPS.linear_bound_workspace(x, bound, out) >= 0


def test_reads_any_strides():
    x, weight, bias = tensors(3, 4, 5)
    bound, residual = bind(weight, bias), normal(3, 4, 5, 21, seed=4)
    expected = OPS.linear_bound(x, bound, residual)
    assert expected.is_contiguous()
    for t in strided(x):
        assert torch.equal(t, x)
        for r in (residual, *strided(residual)):
            assert torch.equal(OPS.linear_bound(t, bound, r), expected)
    one = x[:1, :1]
    assert torch.equal(
        OPS.linear_bound(one.expand_as(x), bound, None), OPS.linear_bound(one, bound, None).expand_as(expected)
    )


@pytest.mark.parametrize("rows", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 2, 3)], ids=str)
def test_no_rows(rows):
    x, weight, bias = tensors(*rows)
    expected = F.linear(x, weight, bias)
    y = OPS.linear_bound(x, bind(weight, bias), expected)
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())
    y = OPS.linear_bound(torch.empty(5, *rows, 19).transpose(0, -2), bind(weight, bias), None)
    assert y.numel() == 0


def test_writes_into_rows_of_others():
    x, weight, bias = tensors(2, 5)
    wide = torch.full((2, 5, 30), 7.0)
    out = wide[..., 4:25]
    bound = bind(weight, bias)
    OPS.linear_bound_out(x, bound, None, out, NO_ROOM)
    assert torch.equal(out, OPS.linear_bound(x, bound, None))
    assert torch.all(wide[..., :4] == 7)
    assert torch.all(wide[..., 25:] == 7)


def test_what_is_refused():
    x, weight, bias = tensors(2, 5)
    bound, y = bind(weight, bias), torch.empty(2, 5, 21)
    for args, message in (
        ((torch.tensor(1.0), bound, None), "linear_bound: x: expected at least 1 dimension"),
        ((x[..., :4], bound, None), "linear_bound: x: expected 19 channels"),
        ((x.double(), bound, None), "linear_bound: x: expected torch.float32 or torch.bfloat16"),
        ((x, bound, y[0]), "linear_bound: residual: expected the shape of x except for"),
        ((x, bound, y[..., :20]), "linear_bound: residual: expected shape"),
        ((x, bound[:100], None), "linear_bound: bound_conv: "),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.linear_bound(*args)
    uneven = torch.empty(5, 2, 21).transpose(0, 1)
    for out, message in (
        (y[0], "linear_bound_out: out: expected the shape of x except for"),
        (uneven, "linear_bound_out: out: expected rows at equal distances"),
        (y[:1].expand_as(y), "out: expected"),
        (y[..., :20], "out: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.linear_bound_out(x, bound, None, out, NO_ROOM)


def test_opcheck():
    x, weight, bias = tensors(2, 5)
    bound = bind(weight, bias)
    torch.library.opcheck(OPS.linear_bound.default, (x, bound, None))
    torch.library.opcheck(OPS.linear_bound_out.default, (x, bound, None, torch.empty(2, 5, 21), NO_ROOM))


def test_a_row_is_the_same_among_any_others():
    x, weight, bias = tensors(40, c=700, k=72)
    bound = bind(weight, bias, 2)
    whole = OPS.linear_bound(x, bound, None)
    for n in range(1, 9):
        assert torch.equal(OPS.linear_bound(x[:n], bound, None), whole[:n])
