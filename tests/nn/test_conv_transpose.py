"""ConvTransposeBNAct2d against torch's own modules; what it shares with ConvBNAct2d is tested there."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import pykernels as pk
from tests.harness import native, strided
from tests.nn import blocks
from tests.nn.blocks import assert_near, assert_same, check_training
from tests.optimize.models import agree

OPTIONS = [
    {},
    {"stride": 2, "output_padding": 1},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 2, "stride": 2, "padding": 0, "bias": True},
    {"kernel_size": (3, 5), "stride": (2, 3), "padding": (0, 2), "output_padding": (1, 0)},
    {"kernel_size": 2, "stride": 3, "padding": 0},  # rows that no tap leads to
    {"dilation": (2, 1), "stride": 2},
    {"groups": 4, "kernel_size": 4, "stride": 2, "activation": "silu"},
    {"groups": 8, "out_channels": 8, "stride": 2},
    {"batch_norm": False, "bias": True},
    {"affine": False, "eps": 0.1},
    {"track_running_stats": False, "stride": 2},
]

make = partial(blocks.make, kind=pk.nn.ConvTransposeBNAct2d)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_eval_is_torchs_modules(options, grad, x):
    block = make(**options)
    with torch.set_grad_enabled(grad):
        assert_same(block, x)
        residual = torch.randn_like(block(x))
        assert_same(block, x, residual)
        assert block(x).requires_grad == grad


@native
def test_packed_once_and_never_stale(x):
    block = make(stride=2)
    with torch.no_grad():
        assert_same(block, x)
        pack = block._pack
        assert pack is not None
        assert_same(block, x[:1, :, :7])
        assert block._pack is pack
        for change in (
            lambda: block.conv.weight.mul_(2),
            lambda: block.bn.running_mean.add_(1),
            lambda: setattr(block.conv, "output_padding", (1, 1)),
            lambda: setattr(block.conv, "stride", (3, 2)),
            lambda: setattr(block.bn, "eps", 0.5),
            lambda: setattr(block, "activation", "silu"),
        ):
            change()
            assert_same(block, x)
            assert block._pack is not pack
            pack = block._pack
        copied = pickle.loads(pickle.dumps(copy.deepcopy(block)))
        assert copied._pack is None
        assert torch.equal(copied(x), block(x))


@native
def test_images_of_which_a_phase_reads_nothing():
    block = make(kernel_size=2, stride=2, dilation=3)
    with torch.no_grad():
        for height, reads in ((4, True), (1, False)):
            assert_same(block, torch.randn(2, 8, height, 6))
            assert (block._pack.by_shape[2, 8, height, 6] is not None) == reads  # or the plain op runs


@native
def test_what_is_the_plain_ops_is_found_out_once(x):
    block = make(kernel_size=2, stride=3, padding=0)
    with torch.no_grad():
        assert_same(block, x)
        pack = block._pack
        assert pack is not None
        assert pack.value is None
        assert_same(block, x)
        assert block._pack is pack


def test_strides_unbatched_and_empty(x):
    block = make(kernel_size=4, stride=2)
    with torch.no_grad():
        for t in strided(x):
            assert_same(block, t)
        last = block(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert_same(block, x[0])
        assert_same(block, x[0], torch.ones_like(block(x[0])))
        assert block(x[:0]).shape == (0, 16, 18, 20)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_training_is_torchs_modules(options, residual, x):
    run = lambda block, x, r: block(x, r)  # noqa: E731
    block = check_training(run, options, residual, kind=pk.nn.ConvTransposeBNAct2d)
    assert_same(block.eval(), x, growth=4)


def test_from_torch_shares_parameters(x):
    conv, bn = nn.ConvTranspose2d(8, 16, 3), nn.BatchNorm2d(16)
    block = pk.nn.ConvTransposeBNAct2d.from_torch(conv, bn, "relu").eval()
    assert block.conv is conv
    assert block.bn is bn
    assert block.state_dict().keys() == nn.ModuleDict({"conv": conv, "bn": bn}).state_dict().keys()
    assert_same(block, x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Conv2d(3, 4, 3),), TypeError, "ConvTransposeBNAct2d: conv: expected a torch.nn.ConvTranspose2d"),
        ((nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm1d(4)), TypeError, "bn: expected a torch.nn.BatchNorm2d"),
        ((nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(5)), ValueError, "bn: expected 4 features"),
        ((nn.ConvTranspose2d(3, 4, 3), None, "nonsense"), ValueError, "ConvTransposeBNAct2d: activation"),
    ],
)
def test_from_torch_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        pk.nn.ConvTransposeBNAct2d.from_torch(*arguments)


@pytest.mark.parametrize("shape", [(8,), (2, 7, 5, 5), (2, 8, 0, 3)], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_wrong_shapes_are_told(shape, grad):
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"pykernels.conv_transpose_bn_act: x: expected"):
        make()(torch.randn(shape))


@pytest.mark.parametrize("grad", [False, True])
def test_a_wrong_residual_is_told(grad, x):
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"residual: expected the output's shape"):
        make()(x, torch.ones(2, 16, 9, 1))


def test_bfloat16_and_autocast(x):
    block = make(stride=2)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(block, block(x), expected.bfloat16(), growth=4)
        narrow = copy.deepcopy(block)
        narrow.conv.bfloat16()
        assert_near(block, narrow(x.bfloat16()), expected.bfloat16(), growth=4)


def test_compile(x):
    block = make(stride=2, output_padding=1)
    with torch.no_grad():
        assert_near(block, torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x), growth=2)


def test_optimised(x):
    model = nn.Sequential(make(stride=2), nn.ReLU(), make(in_channels=16))
    with torch.no_grad():
        agree(pk.optimize(model), model, x)
