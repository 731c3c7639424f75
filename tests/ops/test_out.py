"""What every op with an ``out`` asks of it, beside what its own tests show: a place of its own for each element."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pykernels.ops.conv_bn_act.arguments import ConvCall, geometry
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from pykernels.ops.pool2d.arguments import PoolCall
from tests.harness import native, normal

OPS = torch.ops.pykernels
SHAPE = (2, 3, 4, 5)
NOTHING = torch.empty(0, dtype=torch.uint8)


def _bound(*kernel: int) -> Tensor:
    call = ConvCall(geometry(kernel, 1, 0, 1, 1), 0, 0.0).flat()
    weight = torch.eye(3)[:, :, None, None]
    return OPS.conv_bind(OPS.conv_pack(weight, 1, 0), weight.shape, None, None, *call)


def _bound_int8() -> Tensor:
    call = Int8ConvCall(1.0, geometry((1, 1), 1, 0, 1, 1), 0, 0.0, 1.0, torch.float32).flat()
    return OPS.int8_conv_bind(torch.eye(3, dtype=torch.int8)[:, :, None, None], None, None, None, *call)


def _squeeze(x: Tensor, out: Tensor) -> None:
    OPS.squeeze_excite_out(x, torch.ones(2, 3), None, torch.ones(3, 2), None, 0, 0, out)


#: Of x and out, both of `SHAPE`; linear layers have the features last.
CALLS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "pool2d": lambda x, out: OPS.pool2d_out(x, torch.tensor(PoolCall(False, (1, 1), (1, 1)).numbers()), out),
    "int8_dequantize": lambda x, out: OPS.int8_dequantize_out((x * 9).to(torch.int8), 0.1, 0, out),
    "upsample2d": lambda x, out: OPS.upsample2d_out(x, torch.zeros(3).double(), out),
    "squeeze_excite": _squeeze,
    "group_norm_act": lambda x, out: OPS.group_norm_act_out(
        x, None, None, None, torch.tensor([1, 1e-5, 0, 0]).double(), out
    ),
    "layer_norm": lambda x, out: OPS.layer_norm_out(x, None, None, torch.tensor([0, 1e-5]).double(), out),
    "layer_norm of rows": lambda x, out: OPS.layer_norm_out(x, None, None, torch.tensor([2, 1e-5]).double(), out),
    "shuffle": lambda x, out: OPS.shuffle_out([x], torch.tensor([0, 3]), out),
    "batch_norm_act": lambda x, out: OPS.batch_norm_act_bound_out(
        [x], OPS.batch_norm_act_bind(3, None, None, None, 0, 0.0), None, out
    ),
    "conv_bn_act": lambda x, out: OPS.conv_bn_act_bound_out(x, _bound(1, 1), None, out, NOTHING),
    "linear": lambda x, out: OPS.linear_bound_out(x.movedim(1, -1), _bound(1, 1), None, out.movedim(1, -1), NOTHING),
    "int8_conv2d": lambda x, out: OPS.int8_conv2d_bound_out(x.char(), _bound_int8(), None, out, NOTHING),
    "int8_linear": lambda x, out: OPS.int8_linear_bound_out(
        x.char().movedim(1, -1), _bound_int8(), None, out.movedim(1, -1), NOTHING
    ),
}

OVERLAPPING = {
    "expanded": torch.empty(2, 1, 4, 5).expand(SHAPE),
    "rows that share an element": torch.empty(200).as_strided(SHAPE, (60, 20, 4, 1)),
    "channels between pixels": torch.empty(200).as_strided(SHAPE, (60, 1, 10, 2)),
    "images that share channels": torch.empty(200).as_strided(SHAPE, (40, 20, 5, 1)),
    "all in a diagonal": torch.empty(200).as_strided(SHAPE, (1, 1, 1, 1)),
}

APART = {
    "another order": torch.empty(5, 3, 2, 4).permute(2, 1, 3, 0),
    "every second": torch.empty(4, 6, 8, 10)[::2, ::2, ::2, ::2],
}


@native
@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("out", OVERLAPPING)
def test_no_two_elements_lie_in_one_place(op, out):
    with pytest.raises(
        RuntimeError, match=r"pykernels\.\w+_out: out: expected (elements that do not overlap|rows at equal)"
    ):
        CALLS[op](normal(*SHAPE), OVERLAPPING[out])


@native
@pytest.mark.parametrize("op", [op for op in CALLS if "linear" not in op])
@pytest.mark.parametrize("out", APART)
def test_any_strides_that_keep_them_apart_will_do(op, out):
    x, expected = normal(*SHAPE), torch.empty(SHAPE)
    CALLS[op](x, expected)
    CALLS[op](x, APART[out])
    torch.testing.assert_close(APART[out], expected, atol=1e-6, rtol=0)


@native
@pytest.mark.parametrize("op", [op for op in CALLS if "linear" not in op])
def test_the_stride_of_one_image_does_not_matter(op):
    out = torch.full((3, 4, 5), torch.nan).as_strided((1, 3, 4, 5), (0, 20, 5, 1))
    CALLS[op](normal(1, 3, 4, 5), out)
    assert out.isfinite().all()


def test_tensors_of_any_rank():
    """The look for overlaps once had room for four dimensions, and wrote behind it."""
    x = normal(*([2] * 12), 3)
    for out, fits in ((torch.empty_like(x), True), (torch.empty(1, *x.shape[1:]).expand_as(x), False)):
        numbers = torch.tensor([1, 1e-5]).double()
        if fits:
            OPS.layer_norm_out(x, None, None, numbers, out)
            torch.testing.assert_close(out, torch.nn.functional.layer_norm(x, (3,)))
        else:
            with pytest.raises(RuntimeError, match="expected elements that do not overlap"):
                OPS.layer_norm_out(x, None, None, numbers, out)
