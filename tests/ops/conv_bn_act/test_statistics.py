"""conv_statistics and training's conv + batch norm + activation through the ops (plain PyTorch on a CPU)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import pykernels as pk
from pykernels.nn import conv as module
from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from tests.harness import FORMATS, native, normal, relative_l2
from tests.nn.blocks import TRAINED, check_training
from tests.nn.blocks import bound as block_bound
from tests.ops.conv_bn_act.cases import bound, gradient_bound

pytestmark = native

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
    wide = torch.promote_types(dtype, torch.float32)
    b = normal(weight[0], seed=2, dtype=wide) if bias else None
    return [normal(*x, dtype=dtype, layout=layout), normal(*weight, seed=1, dtype=dtype), b, *geometry]


def plainly(x, weight, bias, stride, padding, dilation, groups):
    top, left, bottom, right = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_values_and_gradients(name, dtype, bias, layout):
    args = make(name, dtype, bias, layout)
    theirs = [t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
    args = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
    z, mean, var = torch.ops.pykernels.conv_statistics(*args)
    expected = plainly(*theirs)
    assert z.dtype == dtype
    assert z.is_contiguous(memory_format=layout)
    stored = 0 if dtype == torch.float32 else ROUNDOFF[dtype]
    assert relative_l2(z, expected) <= bound(args[1], torch.float32) + stored
    assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
    assert not mean.requires_grad
    assert not var.requires_grad
    sums = CONV_BN_ACT_SPEC.bound(torch.float32, z.numel() // z.shape[1])
    expected_var, expected_mean = torch.var_mean(z.detach().double(), (0, 2, 3), correction=0)
    assert relative_l2(mean, expected_mean) <= sums
    assert relative_l2(var, expected_var) <= sums
    gz = normal(*z.shape, seed=3, dtype=dtype)
    z.backward(gz)
    expected.backward(gz.double())
    for mine, other in zip(args[:3], theirs[:3], strict=True):
        assert mine is None or relative_l2(mine.grad, other.grad) <= gradient_bound(args[1], z)


@each_shape
def test_gradients_twice(name):
    tensors = make(name, torch.float64)
    inputs = [t.requires_grad_() for t in tensors[:3]]

    def f(*inputs):
        return torch.ops.pykernels.conv_statistics(*inputs, *tensors[3:])[0]

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@each_shape
@pytest.mark.parametrize("layout", FORMATS, ids=str)
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


@pytest.mark.parametrize("options", TRAINED, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_module_trains_as_torchs_own_modules(options, with_residual):
    """What CUDA runs, here on the CPU's form of the ops."""

    def run(block, x, residual):
        padded, padding = module._pad(block.conv, x)
        return block._train(block.bn, padded, padding, residual)

    check_training(run, options, with_residual)


def test_an_unbatched_image_and_autocast():
    block = pk.nn.ConvBNAct2d(8, 16, 3, padding=1).train()
    x, residual = torch.randn(8, 6, 5), torch.randn(16, 6, 5)
    y = block._train(block.bn, x, 1, residual)
    assert relative_l2(y, copy.deepcopy(block)(x[None], residual[None])[0]) <= block_bound(block, y[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert block._train(block.bn, x, 1, residual).dtype == torch.bfloat16


def test_one_value_per_channel_is_refused():
    block = pk.nn.ConvBNAct2d(8, 16, 3).train()
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        block._train(block.bn, torch.randn(1, 8, 3, 3), 0, None)
