"""Changes that keep a tensor's identity, version and address, or an attribute's identity: a pack sees them all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pykernels.nn import LSTM, ConvBNAct2d, Int8Linear, LSTMCell
from tests.harness import native, normal

pytestmark = native  # the packs are the native kernels'


def turned(p):
    p.data = p.data.transpose(0, 1)


def spread(p):
    p.data = p.data[:1].expand(p.shape)


def first(result):
    return result if isinstance(result, torch.Tensor) else result[0]


MODULES = {
    "conv": lambda: (ConvBNAct2d(8, 8, 3), normal(1, 8, 6, 6), lambda m: m.conv.weight),
    "mean": lambda: (ConvBNAct2d(8, 8, 3), normal(1, 8, 6, 6), lambda m: m.bn.running_mean),
    "lstm": lambda: (LSTM(16, 4), normal(2, 1, 16), lambda m: m.weight_ih_l0),
    "lstm bias": lambda: (LSTM(16, 4), normal(2, 1, 16), lambda m: m.bias_ih_l0),
    "cell": lambda: (LSTMCell(16, 4), normal(3, 16), lambda m: m.weight_ih),
    "int8": lambda: (Int8Linear(16, 16), normal(3, 16), lambda m: m.weight),
    "int8 scale": lambda: (Int8Linear(16, 16), normal(3, 16), lambda m: m.weight_scale),
}


@pytest.mark.parametrize("name", MODULES)
def test_another_view_at_the_same_address(name):
    module, x, of = MODULES[name]()
    module.eval()
    with torch.no_grad():
        if name == "mean":
            module.bn.running_mean.copy_(normal(8))
        before = first(module(x))
        (turned if of(module).dim() > 1 else spread)(of(module))
        after = first(module(x))
        module.repack()
        assert torch.equal(after, first(module(x)))
        assert not torch.equal(before, after)


def test_another_dtype_at_the_same_address():
    module, x, _ = MODULES["int8"]()
    with torch.no_grad():
        module.eval()(x)
        module.weight.data = module.weight.data.view(torch.uint8)
        with pytest.raises(TypeError, match=r"weight: expected torch\.int8, got torch\.uint8"):
            module(x)


@pytest.mark.parametrize("attribute", ["stride", "padding", "dilation"])
def test_a_list_changed_in_place(attribute):
    block, x = ConvBNAct2d(8, 8, 3).eval(), normal(1, 8, 9, 9)
    setattr(block.conv, attribute, [1, 1])
    with torch.no_grad():
        before = block(x)
        getattr(block.conv, attribute)[:] = [2, 2]
        assert block(x).shape == torch.relu(block.conv(x)).shape != before.shape


@pytest.mark.parametrize("given", [("bias_ih", "bias_hh"), ("bias_ih",), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_goes_by_its_biases_not_by_its_flag(bias, given):
    cell, plain, x = LSTMCell(8, 4, bias=bias).eval(), nn.LSTMCell(8, 4), normal(3, 8)
    with torch.no_grad():
        cell(x)
        for name in ("bias_ih", "bias_hh"):
            value = nn.Parameter(normal(16)) if name in given else None
            setattr(cell, name, value)
            setattr(plain, name, nn.Parameter(torch.zeros(16)) if value is None else value)
        plain.weight_ih, plain.weight_hh = cell.weight_ih, cell.weight_hh
        torch.testing.assert_close(cell(x)[0], plain(x)[0])


def test_an_lstm_goes_by_its_weights_not_by_its_attributes():
    lstm, x = LSTM(8, 4).eval(), normal(2, 3, 8)
    with torch.no_grad():
        before = lstm(x)[0]
        lstm.bias, lstm.input_size = False, 9
        for _ in range(2):
            assert torch.equal(lstm(x)[0], before)
            lstm.repack()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: setattr(m.bn, "running_mean", torch.zeros(1)), ValueError, r"running_mean: expected shape \(4,\)"),
        (lambda m: setattr(m.bn, "weight", nn.Parameter(torch.ones(1))), ValueError, r"bn_weight: expected shape"),
        (lambda m: setattr(m.bn, "running_var", None), ValueError, "running_var: expected a tensor"),
        (lambda m: setattr(m.bn, "eps", "a"), TypeError, "eps: expected a number, got str"),
        (lambda m: setattr(m, "negative_slope", "a"), TypeError, "negative_slope: expected a number, got str"),
        (lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(4, 4, 3))), ValueError, "because weight is"),
        (lambda m: setattr(m.conv, "stride", 2**63), ValueError, "stride: expected"),
        (lambda m: setattr(m.conv, "padding", 2**20), RuntimeError, "no memory for a torch.float32 tensor of shape"),
    ],
)  # fmt: skip
def test_what_was_changed_into_nonsense_is_refused(change, error, message):
    block, x = ConvBNAct2d(4, 4, 3).eval(), normal(1, 4, 8, 8)
    with torch.no_grad():
        block(x)
        change(block)
        for _ in range(2):
            with pytest.raises(error, match=message):
                block(x)
            block.repack()
