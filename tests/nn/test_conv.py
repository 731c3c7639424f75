"""ConvBNAct2d against torch's own modules: values, dtypes, training, state_dict, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.nn._replaceable import is_replaceable
from pykernels.ops import ACTIVATIONS
from tests.harness import native
from tests.nn.blocks import (
    OPTIONS,
    TRAINED,
    assert_near,
    assert_same,
    check_training,
    make,
    plain,
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_eval_is_torchs_modules(options, grad, x):
    block = make(**options)
    with torch.set_grad_enabled(grad):
        assert_same(block, x)
        residual = torch.randn_like(block(x))
        assert_same(block, x, residual)
        assert block(x).requires_grad == grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, x):
    with torch.no_grad():
        assert_same(make(activation=activation, negative_slope=0.3), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, x):
    block = make().to(dtype)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert block(x.to(dtype)).dtype == dtype
            assert_same(block, x.to(dtype), torch.randn(2, 16, 9, 10).to(dtype))
    assert_same(block.float(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast(dtype, grad, x):
    block = make()
    with torch.set_grad_enabled(grad):
        exact = block(x, torch.ones(2, 16, 9, 10))
        with torch.autocast("cpu", dtype):
            assert block(x).dtype == dtype
            rounded = block(x, torch.ones(2, 16, 9, 10))
            assert rounded.dtype == dtype
        assert_near(block, rounded, exact)
        assert_same(block, x)


@pytest.mark.parametrize("grad", [False, True])
def test_memory_format_and_unbatched(grad, x):
    block = make()
    with torch.set_grad_enabled(grad):
        y = block(x)
        assert y.is_contiguous()
        last = block(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert_near(block, last, y)
        assert_same(block, x[0])
        assert_same(block, x[0], torch.ones(16, 9, 10))
        assert_same(block, x.mT.contiguous().mT)
        assert block(x[:0]).shape == (0, 16, 9, 10)


def test_backends(x):
    block = make()
    with torch.no_grad():
        with pk.backend("reference"):
            y = block(x)
        assert block._pack is None
        assert_near(block, block(x), y)
        with pytest.raises(RuntimeError, match="backend='cuda' cannot run"), pk.backend("cuda"):
            block(x)


TRAINING = [
    *TRAINED,
    {"momentum": 0.7, "eps": 0.01},
    {"groups": 4, "stride": 2},
    {"padding": "same", "kernel_size": (2, 4)},
    {"activation": "silu"},
]


@pytest.mark.parametrize("options", TRAINING, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_training_is_torchs_modules(options, residual, x):
    block = check_training(lambda block, x, residual: block(x, residual), options, residual)
    assert_same(block.eval(), x, growth=4)


def test_frozen_batch_norm_in_training(x):
    block = make().train()
    block.bn.eval()
    mean = block.bn.running_mean.clone()
    assert_same(block, x)
    assert torch.equal(block.bn.running_mean, mean)
    block(x).sum().backward()
    assert block.bn.weight.grad is not None


def test_training_without_gradients_still_takes_the_batch(x):
    block = make().train()
    twin = copy.deepcopy(block)
    with torch.no_grad():
        assert_near(block, block(x), plain(twin, x))
    assert torch.allclose(block.bn.running_mean, twin.bn.running_mean)


@pytest.mark.parametrize("options", TRAINED[:4], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_training_on_cuda_normalises_as_the_batch_norm_itself_would(options, with_residual, x):
    # What CUDA runs after its convolution, here on the reference.
    def run(block, x, residual):
        return block._normalise(block.bn, block._convolve(x, 1), residual)

    block = check_training(run, options, with_residual)
    assert_near(block, run(block, x[0], None), plain(block, x[:1])[0])
    block.eval()
    if block.bn.running_mean is None:
        assert_near(block, run(block, x, None), plain(block, x))


def test_training_on_cuda_leaves_a_batch_norm_with_hooks_alone():
    block = make()
    assert is_replaceable(block.bn, nn.BatchNorm2d)
    block.bn.register_forward_hook(lambda *_: None)
    assert not is_replaceable(block.bn, nn.BatchNorm2d)
    assert not is_replaceable(nn.SyncBatchNorm(16), nn.BatchNorm2d)


def test_state_dict_keys_are_torchs():
    torch_block = nn.Module()
    torch_block.conv, torch_block.bn = nn.Conv2d(8, 16, 3, bias=True), nn.BatchNorm2d(16)
    ours = make(bias=True)
    assert list(ours.state_dict()) == list(torch_block.state_dict())
    torch_block.load_state_dict(ours.state_dict())
    ours.load_state_dict(torch_block.state_dict())
    assert list(make(batch_norm=False).state_dict()) == ["conv.weight"]


def test_from_torch_shares_parameters(x):
    conv, bn = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    block = pk.nn.ConvBNAct2d.from_torch(conv, bn, "tanh")
    assert block.training
    assert block.conv.weight is conv.weight
    assert block.bn.running_mean is bn.running_mean
    block.eval()
    assert_same(block, x)
    assert pk.nn.ConvBNAct2d.from_torch(conv.eval(), bn.eval()).activation == "none"
    assert not pk.nn.ConvBNAct2d.from_torch(conv).training
    assert_same(pk.nn.ConvBNAct2d.from_torch(conv), x)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(1, 1),), TypeError, r"conv: expected a torch.nn.Conv2d with its own forward, got Linear"),
        ((OwnForward(1, 1, 1),), TypeError, r"conv: expected a torch.nn.Conv2d with its own forward, got OwnForward"),
        ((nn.Conv2d(1, 1, 1), nn.BatchNorm1d(1)), TypeError, r"bn: expected a torch.nn.BatchNorm2d .* got BatchNorm1d"),
        ((nn.Conv2d(1, 2, 1), nn.BatchNorm2d(3)), ValueError, r"bn: expected 2 features .*, got 3"),
        ((nn.Conv2d(1, 2, 1), None, "swish"), ValueError, r"ConvBNAct2d: activation: expected one of .*; got 'swish'"),
    ],
)
def test_from_torch_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        pk.nn.ConvBNAct2d.from_torch(*arguments)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_from_torch_refuses_hooks(hook):
    conv, bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
    getattr(bn, f"register_{hook}")(lambda *_: None)
    with pytest.raises(ValueError, match="bn: expected a module without hooks"):
        pk.nn.ConvBNAct2d.from_torch(conv, bn)
    getattr(conv, f"register_{hook}")(lambda *_: None)
    with pytest.raises(ValueError, match="conv: expected a module without hooks"):
        pk.nn.ConvBNAct2d.from_torch(conv)


@native
def test_an_error_of_the_kernels_is_not_hidden(x, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("not enough memory")

    block = make()
    with torch.no_grad():
        block(x)
        monkeypatch.setattr(block._pack, "op", out_of_memory)
        with pytest.raises(RuntimeError, match="not enough memory"):
            block(x)


def test_constructor_refuses():
    with pytest.raises(ValueError, match="ConvBNAct2d: activation: expected one of"):
        pk.nn.ConvBNAct2d(1, 1, 1, activation="swish")
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        pk.nn.ConvBNAct2d(3, 4, 1, groups=2)


def test_repr():
    assert "activation='leaky_relu', negative_slope=0.3" in repr(make(activation="leaky_relu", negative_slope=0.3))
