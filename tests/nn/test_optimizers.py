"""Packed weights follow writes that count no version: fused optimizers, and weights made in inference mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels import _native
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from pykernels.ops.int8_matmul.spec import INT8_MATMUL_SCALED_SPEC, ROUNDINGS
from pykernels.ops.lstm.spec import LSTM_SPEC
from tests.harness import relative_l2


def allowed(spec, reduction):
    """What the kernels and the reference may differ by, as both round."""
    return 2 * spec.bound(torch.float32, reduction)


CONV, LSTM, INT8 = CONV_BN_ACT_SPEC, LSTM_SPEC, INT8_MATMUL_SCALED_SPEC

#: What makes the module and its input, and the error that is allowed: terms of a sum, and what is added to it.
MODULES = {
    "ConvBNAct2d": (lambda: pk.nn.ConvBNAct2d(3, 4, 3), lambda: torch.randn(2, 3, 8, 8), allowed(CONV, 27 + 4)),
    "LSTM": (lambda: pk.nn.LSTM(5, 7), lambda: torch.randn(3, 2, 5), allowed(LSTM, 5 + 7 + 2)),
    "LSTMCell": (lambda: pk.nn.LSTMCell(5, 7), lambda: torch.randn(2, 5), allowed(LSTM, 5 + 7 + 2)),
}
LARGE = {
    "ConvBNAct2d": (
        lambda: pk.nn.ConvBNAct2d(272, 272, 1), lambda: torch.randn(1, 272, 2, 2), allowed(CONV, 272 + 4)
    ),
    "LSTM": (lambda: pk.nn.LSTM(80, 80), lambda: torch.randn(3, 2, 80), allowed(LSTM, 80 + 80 + 2)),
    "LSTMCell": (lambda: pk.nn.LSTMCell(80, 80), lambda: torch.randn(2, 80), allowed(LSTM, 80 + 80 + 2)),
    "Int8Linear": (lambda: pk.nn.Int8Linear(80, 80), lambda: torch.randn(2, 80), allowed(INT8, ROUNDINGS)),
}  # fmt: skip


def first(y):
    return first(y[0]) if isinstance(y, tuple) else y


@pytest.mark.parametrize("optimised", [False, True], ids=["module", "optimised"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1),
    ],
    ids=["fused Adam", "fused SGD", "AdamW"],
)
def test_a_step_is_seen(name, optimizer, optimised):
    make, data, bound = MODULES[name]
    torch.manual_seed(0)
    module, x = make().eval(), data()
    caller = pk.optimize(nn.Sequential(module)) if optimised else module
    stepper = optimizer(module.parameters())
    with torch.no_grad():
        before = first(caller(x)).clone()
    first(module(x)).square().sum().backward()
    stepper.step()
    with torch.no_grad():
        after = first(caller(x))
        with pk.backend("reference"):
            expected = first(module(x))
    assert relative_l2(before, after) > 1000 * bound
    assert relative_l2(after, expected) <= bound


@pytest.mark.skipif(_native.error is not None, reason="the native library is not built")
@pytest.mark.parametrize("view", [False, True], ids=["its parameters", "a view of their memory"])
@pytest.mark.parametrize("name", MODULES)
def test_a_step_leaves_the_packs_of_others(name, view):
    make, data, bound = MODULES[name]
    mine, other, x = make().eval(), make().eval(), data()
    with torch.no_grad():
        mine(x), other(x)
    packs = mine._pack, other._pack
    parameters = list(mine.parameters())
    if view:
        parameters = [torch.nn.Parameter(p.detach().flatten()) for p in parameters]
    for p in parameters:
        p.grad = torch.ones_like(p)
    torch.optim.SGD(parameters, lr=0.1, fused=True).step()
    with torch.no_grad():
        after = first(mine(x))
        other(x)
        with pk.backend("reference"):
            assert relative_l2(after, first(mine(x))) <= bound
    assert mine._pack is not packs[0]
    assert other._pack is packs[1]


@pytest.mark.parametrize(("make", "data", "bound"), LARGE.values(), ids=LARGE)
def test_large_weights_made_in_inference_mode_are_not_packed_but_followed(make, data, bound):
    with torch.inference_mode():
        module, x = make().eval(), data()
        before = first(module(x))
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                t.mul_(2)
        after = first(module(x))
        with pk.backend("reference"):
            expected = first(module(x))
    assert module._pack is None
    assert relative_l2(before, after) > 1000 * bound
    assert relative_l2(after, expected) <= bound
