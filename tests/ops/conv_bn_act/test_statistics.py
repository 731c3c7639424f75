"""conv_statistics and training's conv + batch norm + activation through the ops (plain PyTorch on a CPU)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import pykernels as pk
from pykernels import _native
from pykernels.nn import conv as module
from tests.harness import relative_l2

pytestmark = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))

# x, weight, stride, (top, left, bottom, right), dilation, groups
SHAPES = {
    "3x3": ((2, 6, 7, 8), (9, 6, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "asymmetric": ((2, 4, 7, 8), (6, 4, 3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 1),
    "groups": ((3, 6, 5, 5), (4, 3, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),
}
each_shape = pytest.mark.parametrize("name", SHAPES)


def make(name, dtype, bias=True, layout=torch.contiguous_format):
    x, weight, *geometry = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (x, weight, weight[:1])]
    b = tensors[2].to(wide) if bias else None
    return [tensors[0].to(dtype).contiguous(memory_format=layout), tensors[1].to(dtype), b, *geometry]


def plainly(x, weight, bias, stride, padding, dilation, groups):
    top, left, bottom, right = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_and_gradients(name, dtype, bias, layout):
    args = make(name, dtype, bias, layout)
    theirs = [t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
    args = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
    z, mean, var = torch.ops.pykernels.conv_statistics(*args)
    expected = plainly(*theirs)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert z.dtype == dtype
    assert z.is_contiguous(memory_format=layout)
    assert relative_l2(z, expected) <= tolerance
    assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
    assert not mean.requires_grad
    assert not var.requires_grad
    expected_var, expected_mean = torch.var_mean(z.detach().double(), (0, 2, 3), correction=0)
    assert relative_l2(mean, expected_mean) <= 1e-6
    assert relative_l2(var, expected_var) <= 1e-6
    gz = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    z.backward(gz)
    expected.backward(gz.double())
    for mine, other in zip(args[:3], theirs[:3], strict=True):
        assert mine is None or relative_l2(mine.grad, other.grad) <= 4 * tolerance


@each_shape
def test_gradients_twice(name):
    tensors = make(name, torch.float64)
    inputs = [t.requires_grad_() for t in tensors[:3]]

    def f(*inputs):
        return torch.ops.pykernels.conv_statistics(*inputs, *tensors[3:])[0]

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@each_shape
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(name, layout):
    args = make(name, torch.float32, layout=layout)
    opcheck(
        torch.ops.pykernels.conv_statistics, [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
    )


def test_a_batch_without_images():
    z, mean, var = torch.ops.pykernels.conv_statistics(
        torch.randn(0, 3, 5, 5), torch.randn(4, 3, 3, 3), None, (1, 1), (1, 1, 1, 1), (1, 1), 1
    )
    assert z.shape == (0, 4, 5, 5)
    assert mean.tolist() == var.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"track_running_stats": False},
        {"affine": False},
        {"bias": True},
        {"padding": "same", "groups": 4, "activation": "silu"},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_module_trains_as_torchs_own_modules(options, with_residual):
    # What CUDA runs, here on the CPU's form of the ops.
    torch.manual_seed(0)
    block = pk.nn.ConvBNAct2d(8, 16, 3, **{"padding": 1, **options}).train()
    twin = copy.deepcopy(block).double()
    for step in range(2):
        x = torch.randn(2, 8, 6, 5) + step
        residual = torch.randn(2, 16, 6, 5) if with_residual else None
        padded, padding = module._pad(block.conv, x.requires_grad_())
        y = block._train(block.bn, padded, padding, residual)
        x64 = x.detach().double().requires_grad_()
        expected = twin(x64, None if residual is None else residual.double())
        assert relative_l2(y, expected) <= 2e-6
        dy = torch.randn(y.shape)
        y.backward(dy)
        expected.backward(dy.double())
        assert relative_l2(x.grad, x64.grad) <= 2e-5
    for (key, mine), theirs in zip(block.named_parameters(), twin.parameters(), strict=True):
        if key != "conv.bias":  # the batch norm takes it away: rounding alone is left
            assert relative_l2(mine.grad, theirs.grad) <= 2e-5, key
    for (key, mine), theirs in zip(block.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=key)


def test_an_unbatched_image_and_autocast():
    block = pk.nn.ConvBNAct2d(8, 16, 3, padding=1).train()
    x, residual = torch.randn(8, 6, 5), torch.randn(16, 6, 5)
    y = block._train(block.bn, x, 1, residual)
    assert relative_l2(y, copy.deepcopy(block)(x[None], residual[None])[0]) <= 2e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert block._train(block.bn, x, 1, residual).dtype == torch.bfloat16


def test_one_value_per_channel_is_refused():
    block = pk.nn.ConvBNAct2d(8, 16, 3).train()
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        block._train(block.bn, torch.randn(1, 8, 3, 3), 0, None)
