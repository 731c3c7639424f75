"""The blocks of convolutions beside torch's own modules, and how near they have to come to them."""

from __future__ import annotations

import copy

import torch

import pykernels as pk
from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from tests.harness import normal, relative_l2, to_double

#: Options of blocks that train.
TRAINED = [
    {},
    {"momentum": None},
    {"track_running_stats": False},
    {"affine": False},
    {"bias": True},
    {"padding": "same", "groups": 4, "activation": "silu"},
    {"padding_mode": "reflect"},
]


#: Options of blocks whose values are those of torch's modules.
OPTIONS = [
    {},
    {"bias": True},
    {"batch_norm": False},
    {"batch_norm": False, "bias": True},
    {"affine": False},
    {"track_running_stats": False},
    {"stride": 2, "padding": 0},
    {"kernel_size": (1, 5), "stride": (1, 2), "padding": (0, 3)},
    {"dilation": 2, "padding": "same"},
    {"kernel_size": 2, "padding": "valid"},
    {"groups": 4},
    {"groups": 8, "out_channels": 8},
    {"padding_mode": "reflect"},
    {"padding_mode": "replicate", "padding": (2, 1)},
    {"padding_mode": "circular", "padding": "same"},
    {"eps": 0.1},
]


def make(seed=0, kind=pk.nn.ConvBNAct2d, **options):
    """An eval-mode block (8 -> 16 channels, 3 or 3x3 taps, padding 1) with statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {"in_channels": 8, "out_channels": 16, "kernel_size": 3, "padding": 1, **options}
    block = kind(**arguments).eval()
    with torch.no_grad():
        for name, t in (*block.named_parameters(), *block.named_buffers()):
            if name == "bn.running_var":
                t.uniform_(0.5, 2, generator=generator)
            elif t.is_floating_point():
                t.normal_(std=0.3, generator=generator)
    return block


def plain(block, x, residual=None):
    """The same by torch's modules, in their own mode."""
    z = block.conv(x)
    z = z if block.bn is None else block.bn(z)
    z = z if residual is None else z + residual
    return apply_activation(z, block.activation, block.negative_slope)


def _terms(block, gradient=False):
    """How many products a sum has at most: of the result, or of x's gradient."""
    by_result, by_input = block.conv.weight[0].numel(), block.conv.weight[:, 0].numel()
    if isinstance(block, pk.nn.ConvTransposeBNAct2d):
        by_result, by_input = by_input, by_result
    return by_input if gradient else by_result


def bound(block, y, dtype=torch.float32):
    """Of y: a sum over a filter; in training, those over a channel as well."""
    terms = _terms(block) + (y.numel() // y.shape[1] if block.training else 0)
    return CONV_BN_ACT_SPEC.bound(dtype, terms + 4)


def assert_near(block, got, expected, growth=1):
    """Within what rounding may do to the block's y."""
    assert got.shape == expected.shape
    assert relative_l2(got, expected) <= growth * bound(
        block, got if got.dim() == block.conv.weight.dim() else got[None], got.dtype
    )


def assert_same(block, x, residual=None, growth=1):
    """The block against torch's own modules in float64."""
    got, is_batch = block(x, residual), x.dim() == block.conv.weight.dim()
    with torch.no_grad():
        twin = copy.deepcopy(block).double()
        batch, rest = (x, residual) if is_batch else (x[None], None if residual is None else residual[None])
        expected = plain(twin, batch.double(), to_double(rest))
    assert_near(block, got, expected if is_batch else expected[0], growth)


def gradient_bound(block, y, dtype=torch.float32):
    """Of gradients: the sums of y, those over all filters and over all pixels.

    Eight times that, as batch_norm_act's: a batch norm takes the mean and the slope out of a gradient, and what is left
    of it is small beside what is rounded.
    """
    terms = _terms(block, gradient=True) + y.numel() // y.shape[1]
    return 8 * CONV_BN_ACT_SPEC.bound(dtype, terms + 4)


def check_training(run, options, with_residual, device="cpu", kind=pk.nn.ConvBNAct2d):
    """``run(block, x, residual)`` in training mode against torch's own modules in float64, two steps of it."""
    block = make(kind=kind, **options).to(device).train()
    size = (30,) if kind is pk.nn.ConvBNAct1d else (6, 5)
    twin = copy.deepcopy(block).double()
    for step in range(2):
        x = (normal(2, 8, *size, seed=step, device=device) + step).requires_grad_()
        shape = block.conv(x).shape
        residual = normal(*shape, seed=7, device=device).requires_grad_() if with_residual else None
        x64, residual64 = (None if t is None else t.detach().double().requires_grad_() for t in (x, residual))
        y, expected = run(block, x, residual), plain(twin, x64, residual64)
        assert_near(block, y, expected)
        dy = normal(*shape, seed=3, device=device)
        y.backward(dy)
        expected.backward(dy.double())
        for mine, theirs in ((x, x64), (residual, residual64)):
            assert mine is None or relative_l2(mine.grad, theirs.grad) <= gradient_bound(block, y)
    for (name, mine), theirs in zip(block.named_parameters(), twin.parameters(), strict=True):
        if name == "conv.bias" and block.bn is not None:
            # The batch's mean takes the bias out again: its gradient is zero, and what is left is rounding.
            assert mine.grad.abs().max() < 1e-4
        else:
            assert relative_l2(mine.grad, theirs.grad) <= gradient_bound(block, y), name
    for (name, mine), theirs in zip(block.named_buffers(), twin.buffers(), strict=True):
        assert relative_l2(mine, theirs) <= bound(block, y), name
    return block
