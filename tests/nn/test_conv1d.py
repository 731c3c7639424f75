"""ConvBNAct1d against torch's own modules; what it shares with ConvBNAct2d is tested there."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import pykernels as pk
from tests.harness import native, strided
from tests.nn import blocks
from tests.nn.blocks import TRAINED, assert_near, assert_same, check_training
from tests.optimize.models import agree

OPTIONS = [
    {},
    {"bias": True},
    {"batch_norm": False, "bias": True},
    {"affine": False},
    {"track_running_stats": False},
    {"stride": 2, "padding": 0},
    {"kernel_size": (5,), "stride": (2,), "padding": (3,)},
    {"dilation": 2, "padding": "same"},
    {"kernel_size": 4, "padding": "valid"},
    {"groups": 4, "activation": "silu"},
    {"groups": 8, "out_channels": 8, "dilation": 3},
    {"padding_mode": "reflect"},
    {"padding_mode": "replicate", "padding": 2},
    {"padding_mode": "circular", "padding": "same"},
]


make = partial(blocks.make, kind=pk.nn.ConvBNAct1d)


@pytest.fixture
def x():
    return torch.randn(2, 8, 21, generator=torch.Generator().manual_seed(1))


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
    block = make()
    with torch.no_grad():
        assert_same(block, x)
        pack = block._pack
        assert pack is not None
        assert_same(block, x[:1, :, :9])
        assert block._pack is pack
        block.conv.weight.mul_(2)
        assert_same(block, x)
        assert block._pack is not pack


def test_strides_unbatched_and_empty(x):
    block = make()
    with torch.no_grad():
        for t in strided(x):
            assert_same(block, t)
        turned = block(x.transpose(1, 2).contiguous().transpose(1, 2))
        assert turned.transpose(1, 2).is_contiguous()
        assert block(x[0]).shape == (16, 21)
        assert_same(block, x[0])
        assert_same(block, x[0], torch.ones(16, 21))
        assert block(x[:0]).shape == (0, 16, 21)


@pytest.mark.parametrize("options", TRAINED, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_training_is_torchs_modules(options, residual, x):
    block = check_training(lambda block, x, r: block(x, r), options, residual, kind=pk.nn.ConvBNAct1d)
    assert_same(block.eval(), x, growth=4)


def test_from_torch_shares_parameters(x):
    conv, bn = nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16)
    block = pk.nn.ConvBNAct1d.from_torch(conv, bn, "relu").eval()
    assert block.conv is conv
    assert block.bn is bn
    keys = nn.ModuleDict({"conv": conv, "bn": bn}).state_dict().keys()
    assert block.state_dict().keys() == keys
    assert_same(block, x)
    assert repr(block).startswith("ConvBNAct1d(\n  activation='relu'")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Conv2d(3, 4, 3),), TypeError, "ConvBNAct1d: conv: expected a torch.nn.Conv1d"),
        ((nn.Conv1d(3, 4, 3), nn.BatchNorm2d(4)), TypeError, "ConvBNAct1d: bn: expected a torch.nn.BatchNorm1d"),
        ((nn.Conv1d(3, 4, 3), nn.BatchNorm1d(5)), ValueError, "bn: expected 4 features"),
        ((nn.Conv1d(3, 4, 3), None, "nonsense"), ValueError, "ConvBNAct1d: activation"),
    ],
)
def test_from_torch_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        pk.nn.ConvBNAct1d.from_torch(*arguments)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 5, 5), (2, 7, 21), (2, 8, 0), (2, 8, 1)], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_wrong_shapes_are_told(shape, grad):
    block = make(padding=0)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"pykernels.conv_bn_act: x: expected"):
        block(torch.randn(shape))


def test_a_residual_of_another_rank_is_told(x):
    with pytest.raises(ValueError, match="residual: expected 3 dimensions, as x has"):
        make()(x, torch.ones(16, 21))


def test_compile(x):
    block = make()
    with torch.no_grad():
        assert_near(block, torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x), growth=2)


def test_optimised(x):
    model = nn.Sequential(make(), nn.ReLU(), make(in_channels=16))
    with torch.no_grad():
        agree(pk.optimize(model), model, x)
