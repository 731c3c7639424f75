"""Several bound int8 convolutions as one call."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from tests.harness import FORMATS, forced_isa, host_isas, integers, native
from tests.ops.int8_conv2d.test_bound import bind

pytestmark = native

OPS = torch.ops.pykernels
NO_ROOM = torch.empty(0, dtype=torch.uint8)


def inverted_residual(memory_format=torch.channels_last):
    """x, the convolutions, and the residual of each."""
    x = integers(2, 24, 15, 13).contiguous(memory_format=memory_format)
    bound = [
        bind(integers(96, 24, 1, 1, seed=1)),
        bind(integers(96, 1, 3, 3, seed=2), padding=1, groups=96),
        bind(integers(24, 96, 1, 1, seed=3)),
    ]
    return x, bound, [None, None, x]


def one_by_one(x, bound, residual):
    made = []
    for b, r in zip(bound, residual, strict=True):
        x = OPS.int8_conv2d_bound(x, b, r, torch.int8)
        made.append(x)
    return made


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("isa", host_isas())
def test_equals_one_by_one(isa, memory_format, room):
    with forced_isa(isa):
        x, bound, residual = inverted_residual(memory_format)
        expected = one_by_one(x, bound, residual)
        out = [torch.full_like(y, 7) for y in expected]
        OPS.int8_conv2d_chain_out([x, *out[:-1]], bound, residual, out, torch.empty(room, dtype=torch.uint8))
    assert all(map(torch.equal, out, expected))


def test_steps_may_read_what_any_before_them_wrote():
    x, (widen, depthwise, narrow), _ = inverted_residual()
    first, second, third = one_by_one(x, [widen, depthwise, narrow], [None, first_of(x, widen), x])
    out = [torch.empty_like(y) for y in (first, second, third, second)]
    reads, residual = [x, out[0], out[1], out[0]], [None, out[0], x, None]
    OPS.int8_conv2d_chain_out(reads, [widen, depthwise, narrow, depthwise], residual, out, NO_ROOM)
    assert all(map(torch.equal, out[:3], (first, second, third)))
    assert torch.equal(out[3], OPS.int8_conv2d_bound(first, depthwise, None, torch.int8))


def first_of(x, bound):
    return OPS.int8_conv2d_bound(x, bound, None, torch.int8)


def test_operations_of_a_chain():
    x, bound, residual = inverted_residual()
    out = one_by_one(x, bound, residual)
    with FlopCounterMode(display=False) as counter:
        OPS.int8_conv2d_chain_out([x, *out[:-1]], bound, residual, out, NO_ROOM)
    assert counter.get_total_flops() == 2 * 2 * 15 * 13 * (24 * 96 + 9 * 96 + 96 * 24)


def test_opcheck():
    x, bound, residual = inverted_residual()
    out = one_by_one(x, bound, residual)
    opcheck(OPS.int8_conv2d_chain_out.default, ([x, *out[:2]], bound, residual, out, NO_ROOM))


def test_arguments_are_checked():
    x, bound, residual = inverted_residual()
    out = one_by_one(x, bound, residual)
    reads = [x, *out[:2]]
    for arguments, message in (
        (([], [], [], [], NO_ROOM), "bound_convs: expected at least one"),
        ((reads[:1], bound, residual, out, NO_ROOM), "x: expected 3 tensors, got 1"),
        ((reads, bound, residual[:2], out, NO_ROOM), "residual: expected 3 of them, got 2"),
        ((reads, bound, residual, out[:2], NO_ROOM), "out: expected 3 tensors, got 2"),
        ((reads, bound, residual, [*out[:2], out[2][:, :5]], NO_ROOM), "out: expected shape"),
        ((reads, bound, residual, [*out[:2], out[2].float()], NO_ROOM), "out: expected the dtype that was bound"),
        ((reads, [bound[0], bound[0], bound[2]], residual, out, NO_ROOM), "x: expected 24 channels"),
        ((reads, [*bound[:2], bound[2].float()], residual, out, NO_ROOM), "bound_conv: expected the contiguous 1-D"),
        ((reads, bound, [None, None, x[:, :5]], out, NO_ROOM), "residual: expected shape"),
        ((reads, bound, residual, out, NO_ROOM.float()), "workspace: expected the contiguous 1-D torch.uint8"),
    ):
        with pytest.raises(RuntimeError, match=f"int8_conv2d_chain_out: {message}"):
            OPS.int8_conv2d_chain_out(*arguments)
