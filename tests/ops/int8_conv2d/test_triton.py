"""int8_conv2d in Triton: interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.int8_conv2d import int8_conv2d
from pykernels.ops.int8_conv2d.spec import int8_conv2d_reference
from tests.harness import DEVICE, FORMATS, triton_reason
from tests.ops.int8_conv2d.checks import each_check, integers

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
if triton_reason() is None:
    from pykernels.ops.conv_bn_act import triton as conv
    from pykernels.ops.conv_bn_act.triton.config import Config

each_layout = pytest.mark.parametrize("layout", FORMATS, ids=str)


@each_check
def test_triton(check):
    check("triton")


INT8 = {
    "3x3": ((2, 40, 7, 6), (24, 40, 3, 3), {"padding": 1}),
    "1x1": ((2, 70, 5, 5), (33, 70, 1, 1), {}),
    "stem": ((1, 3, 13, 12), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "groups": ((2, 32, 6, 6), (32, 16, 3, 3), {"groups": 2, "dilation": 2, "padding": 2}),
    "depthwise": ((2, 24, 6, 6), (24, 1, 3, 3), {"groups": 24, "padding": 1}),
    "few channels a group": ((2, 24, 6, 6), (24, 3, 3, 3), {"groups": 8, "padding": 1}),
}


each_shape = pytest.mark.parametrize("name", INT8)


def make(name, layout=torch.contiguous_format):
    x_shape, w_shape, options = INT8[name]
    return integers(*x_shape).contiguous(memory_format=layout), integers(*w_shape, seed=1), options


@each_shape
@each_layout
def test_sums_are_exact(name, layout):
    x, w, options = make(name, layout)
    y = int8_conv2d(x, w, **options, out_dtype=torch.int32, backend="triton")
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(y, int8_conv2d_reference(x, w, **options, out_dtype=torch.int32))


@each_shape
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("residual_dtype", [None, torch.int8, torch.float32], ids=str)
def test_epilogue(name, dtype, residual_dtype):
    x, w, options = make(name)
    # Powers of two: then the float arithmetic is exact, and so is its rounding.
    numbers = torch.arange(len(w), device=DEVICE)
    scale, bias = torch.exp2(-8.0 - numbers % 3), numbers % 17 - 8.0
    options = options | {"activation": "relu", "out_scale": 0.5, "out_dtype": dtype}
    if residual_dtype is not None:
        shape = int8_conv2d_reference(x, w, **INT8[name][2]).shape
        options |= {"residual": integers(*shape, seed=2).to(residual_dtype), "residual_scale": 0.25}
    y, expected = (
        int8_conv2d(x, w, scale, bias, **options, backend="triton"),
        int8_conv2d_reference(x, w, scale, bias, **options),
    )
    assert y.dtype == dtype
    if dtype in (torch.int8, torch.float32):
        assert torch.equal(y, expected)
    else:  # one rounding, which the interpreter does towards 0 for bfloat16
        torch.testing.assert_close(y, expected, atol=0, rtol=2 * ROUNDOFF[dtype])


def test_split_sums_are_exact(monkeypatch):
    chosen = Config(block_m=16, block_n=32, block_k=64, warps=4, stages=2, splits=8)
    monkeypatch.setattr(conv, "config", lambda *_: chosen)
    x, w = integers(1, 100, 4, 4), integers(20, 100, 3, 3, seed=1)
    y = int8_conv2d(x, w, padding=1, out_dtype=torch.int32, backend="triton")
    assert torch.equal(y, int8_conv2d_reference(x, w, padding=1, out_dtype=torch.int32))


def test_saturates_rounds_to_even_and_drops_nan():
    x, w = integers(1, 32, 2, 3), torch.zeros(6, 32, 1, 1, dtype=torch.int8, device=DEVICE)
    bias = torch.tensor([1000.0, -1000.0, 0.5, 1.5, float("nan"), float("inf")], device=DEVICE)
    y = int8_conv2d(x, w, None, bias, out_dtype=torch.int8, backend="triton")
    assert y[0, :, 0, 0].tolist() == [127, -128, 0, 2, 0, 127]


@each_layout
def test_opcheck(layout):
    x, w = integers(2, 4, 6, 5).contiguous(memory_format=layout), integers(8, 4, 3, 3, seed=1)
    residual = torch.rand(2, 8, 6, 5, device=DEVICE).contiguous(memory_format=layout)
    scale = torch.rand(8, device=DEVICE) / 1000
    for extra, out in ((residual, torch.float16), (None, torch.int32)):
        given = (x, w, scale, None, extra, 0.5, [1, 1], [1, 1, 1, 1], [1, 1], 1, 1, 0.01, 2.0, out)
        opcheck(torch.ops.pykernels.int8_conv2d_triton.default, given)
