"""int8_conv2d with a bound weight: into memory that is there, and for the rows of tensors of any rank."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from pykernels.ops import int8_conv2d
from pykernels.ops.conv_bn_act.arguments import geometry
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from tests.harness import FORMATS, forced_isa, host_isas, integers, native, strided
from tests.ops.conv_bn_act.test_bound import others, places

pytestmark = native

OPS = torch.ops.pykernels
NO_ROOM = torch.empty(0, dtype=torch.uint8)
DTYPES = (torch.int8, torch.float32, torch.bfloat16)
ROWS = ((), (1,), (2,), (13,), (100,), (2, 5), (1, 4, 1), (2, 3, 4, 5))


def bind(weight, *, padding=0, groups=1, out=torch.int8, table=None):
    """With zero points, a residual's scale and relu; what there is of these for floats."""
    zeros = (3, 0, 5) if out is torch.int8 else (3, 0, 0)
    g = geometry(weight.shape[2:], 1, padding, 1, groups)
    k = len(weight)
    scale, shift = torch.exp2(torch.arange(k) % 3 - 12.0), torch.arange(k) % 7 - 3.0
    return OPS.int8_conv_bind(weight, scale, shift, table, *Int8ConvCall(0.5, g, 1, 0.0, 0.25, out, *zeros).flat())


def bind_rows(k, c, out=torch.int8):
    return bind(integers(k, c, 1, 1, seed=1), out=out)


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("isa", host_isas())
def test_writes_into_any_place(isa, groups, memory_format, dtype, room):
    x = integers(2, 16, 7, 9).contiguous(memory_format=memory_format)
    with forced_isa(isa):
        bound = bind(integers(16, 16 // groups, 3, 3, seed=1), padding=1, groups=groups, out=dtype)
        for residual in (None, integers(2, 16, 7, 9, seed=2), integers(2, 16, 7, 9, seed=2).float()):
            expected = OPS.int8_conv2d_bound(x, bound, residual, dtype)
            for out in places(expected.shape, dtype):
                assert OPS.int8_conv2d_bound_workspace(x, bound, out) >= 0
                OPS.int8_conv2d_bound_out(x, bound, residual, out, torch.empty(room, dtype=torch.uint8))
                assert torch.equal(out, expected)
                assert torch.all(others(out) == 7)


#: Channels in and out and the size of the image, on both sides of what Winograd's tiles and blocks hold.
WINOGRAD = ((32, 32, 12, 12), (33, 17, 13, 9), (64, 96, 10, 30), (100, 40, 8, 8), (3, 64, 24, 24), (256, 256, 14, 14))


@pytest.mark.parametrize("kind", ["any", "largest", "alternating"])
@pytest.mark.parametrize("isa", host_isas())
def test_3x3_has_the_references_bits(isa, kind):
    for c, k, h, w in WINOGRAD:
        weight = integers(k, c, 3, 3, seed=k)
        if kind != "any":
            weight.fill_(127)
            weight[::2, 1::2, :, ::2] = -127 if kind == "alternating" else 127
        x, residual = integers(2, c, h, w, seed=c), integers(2, k, h, w, seed=h)
        if kind != "any":
            x[0] = -128
        given = {"residual": residual, "residual_scale": 0.5, "padding": 1, "activation": "relu", "out_scale": 0.25}
        zeros = {"x_zero_point": 3, "residual_zero_point": 0, "out_zero_point": 5}
        scale, shift = torch.exp2(torch.arange(k) % 3 - 12.0), torch.arange(k) % 7 - 3.0
        expected = int8_conv2d(
            x, weight, scale, shift, **given, **zeros, out_dtype=torch.int8, backend="reference"
        )  # fmt: skip
        with forced_isa(isa):
            found = OPS.int8_conv2d_bound(x, bind(weight, padding=1), residual, torch.int8)
        assert torch.equal(found, expected), (c, k, h, w)


def test_a_workspace_of_its_size_is_used():
    x = integers(1, 64, 20, 20)
    bound, out = bind(integers(64, 64, 3, 3, seed=1), padding=1), torch.empty(1, 64, 20, 20, dtype=torch.int8)
    workspace = torch.zeros(OPS.int8_conv2d_bound_workspace(x, bound, out), dtype=torch.uint8)
    OPS.int8_conv2d_bound_out(x, bound, None, out, workspace)
    assert workspace.any()
    assert torch.equal(out, OPS.int8_conv2d_bound(x, bound, None, torch.int8))


def test_out_is_checked():
    x, weight = integers(1, 4, 5, 5), integers(6, 4, 3, 3, seed=1)
    bound, y = bind(weight), torch.empty(1, 6, 3, 3, dtype=torch.int8)
    for out, workspace, message in (
        (y[:, :5], NO_ROOM, "out: expected shape"),
        (y[0], NO_ROOM, "out: expected shape"),
        (y.float(), NO_ROOM, "out: expected the dtype that was bound, got torch.float32"),
        (y[:, :1].expand_as(y), NO_ROOM, "out: expected elements that do not overlap"),
        (y, NO_ROOM.float(), "workspace: expected the contiguous 1-D torch.uint8"),
    ):
        with pytest.raises(RuntimeError, match=f"int8_conv2d_bound_out: {message}"):
            OPS.int8_conv2d_bound_out(x, bound, None, out, workspace)
    with pytest.raises(RuntimeError, match="int8_conv2d_bound_workspace: out: expected the dtype"):
        OPS.int8_conv2d_bound_workspace(x, bound, y.float())
    with pytest.raises(RuntimeError, match="int8_conv2d_bound_out: bound_conv: expected the contiguous 1-D"):
        OPS.int8_conv2d_bound_out(x, bound[::2], None, y, NO_ROOM)
    for residual, message in ((y[..., :2], "expected shape"), (y.long(), "the CPU kernels take")):
        with pytest.raises(RuntimeError, match=f"int8_conv2d_bound_out: residual: {message}"):
            OPS.int8_conv2d_bound_out(x, bound, residual, y, NO_ROOM)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("sizes", [(19, 21), (1, 5), (33, 1), (700, 40), (64, 64)], ids=str)
def test_is_a_convolution_of_the_rows_of_any_rank(sizes, rows, dtype):
    c, k = sizes
    x, bound = integers(*rows, c), bind_rows(k, c, dtype)
    added = integers(*rows, k, seed=4)
    for residual in (None, added, added.float(), added.bfloat16()):
        y = OPS.int8_linear_bound(x, bound, residual, dtype)
        image = None if residual is None else residual.reshape(-1, k, 1, 1)
        expected = OPS.int8_conv2d_bound(x.reshape(-1, c, 1, 1), bound, image, dtype).reshape(*rows, k)
        assert y.is_contiguous()
        assert torch.equal(y, expected)
        out = torch.full_like(y, 7)
        OPS.int8_linear_bound_out(x, bound, residual, out, NO_ROOM)
        assert torch.equal(out, y)
        assert OPS.int8_linear_bound_workspace(x, bound, out) >= 0


def test_rows_have_any_strides():
    x, bound, residual = integers(3, 4, 5, 19), bind_rows(21, 19), integers(3, 4, 5, 21, seed=4)
    expected = OPS.int8_linear_bound(x, bound, residual, torch.int8)
    for t in strided(x):
        for r in (residual, *strided(residual)):
            assert torch.equal(OPS.int8_linear_bound(t, bound, r, torch.int8), expected)
    wide = torch.full((3, 4, 5, 30), 7, dtype=torch.int8)
    OPS.int8_linear_bound_out(x, bound, residual, wide[..., 4:25], NO_ROOM)
    assert torch.equal(wide[..., 4:25], expected)
    assert torch.all(wide[..., :4] == 7)
    assert torch.all(wide[..., 25:] == 7)


@pytest.mark.parametrize("rows", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_no_rows(rows):
    y = OPS.int8_linear_bound(integers(*rows, 19), bind_rows(21, 19), integers(*rows, 21), torch.int8)
    assert y.shape == (*rows, 21)


def test_rows_are_checked():
    x, bound, y = integers(2, 5, 19), bind_rows(21, 19), torch.empty(2, 5, 21, dtype=torch.int8)
    for args, message in (
        ((torch.tensor(1, dtype=torch.int8), bound, None, torch.int8), "x: expected at least 1 dimension"),
        ((x[..., :4], bound, None, torch.int8), "x: expected 19 channels"),
        ((x.float(), bound, None, torch.int8), "x: expected torch.int8"),
        ((x, bound, y[0], torch.int8), "residual: expected the shape of x except for"),
        ((x, bound, y[..., :20], torch.int8), "residual: expected shape"),
        ((x, bound[:100], None, torch.int8), "bound_conv: too short"),
        ((x, bound.float(), None, torch.int8), "bound_conv: expected the contiguous"),
        ((x, bound, None, torch.float32), "out_dtype: expected the dtype that was bound"),
    ):
        with pytest.raises(RuntimeError, match=f"int8_linear_bound: {message}"):
            OPS.int8_linear_bound(*args)
    for out, message in (
        (y[0], "out: expected the shape of x except for"),
        (torch.empty(5, 2, 21, dtype=torch.int8).transpose(0, 1), "out: expected rows at equal distances"),
        (y[:, :1].expand_as(y), "out: expected"),
        (y[..., :20], "out: expected shape"),
        (y.float(), "out: expected the dtype that was bound"),
    ):
        with pytest.raises(RuntimeError, match=f"int8_linear_bound_out: {message}"):
            OPS.int8_linear_bound_out(x, bound, None, out, NO_ROOM)


def test_opcheck():
    x, weight = integers(1, 4, 5, 5), integers(6, 4, 3, 3, seed=1)
    out = torch.empty(1, 6, 3, 3, dtype=torch.int8)
    opcheck(OPS.int8_conv2d_bound_out.default, (x, bind(weight), None, out, NO_ROOM))
    x, bound = integers(2, 5, 19), bind_rows(21, 19)
    opcheck(OPS.int8_linear_bound.default, (x, bound, None, torch.int8))
    opcheck(OPS.int8_linear_bound_out.default, (x, bound, None, torch.empty(2, 5, 21, dtype=torch.int8), NO_ROOM))


@pytest.mark.parametrize("isa", host_isas())
def test_a_row_is_the_same_among_any_others(isa):
    with forced_isa(isa):
        x, bound = integers(40, 700), bind_rows(72, 700)
        whole = OPS.int8_linear_bound(x, bound, None, torch.int8)
        for n in range(1, 9):
            assert torch.equal(OPS.int8_linear_bound(x[:n], bound, None, torch.int8), whole[:n])
