"""In evaluation, on packed weights, the modules raise what the public ops raise; from_torch refuses overrides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels as pk


def conv_op(m, x, residual=None):
    return pk.ops.conv_bn_act(x, m.conv.weight, m.conv.bias, residual=residual, activation=m.activation)


def lstm_op(m, x, hx):
    return pk.ops.lstm(x, hx, m._flat_weights, num_layers=1)


def cell_op(m, x, hx):
    return pk.ops.lstm_cell(x, hx, m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh)


def raised(f, *args):
    with torch.no_grad(), pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
        f(*args)
    return caught.type, str(caught.value)


def conv():
    return pk.nn.ConvBNAct2d(3, 4, 3, batch_norm=False)


def lstm():
    return pk.nn.LSTM(5, 7)


def cell():
    return pk.nn.LSTMCell(5, 7)


IMAGE, ROWS, STATE = torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.randn(2, 7)
SEQUENCE, STATES = torch.randn(3, 2, 5), torch.randn(1, 2, 7)
CASES = {
    "conv: dtype": (conv, conv_op, (IMAGE,), (IMAGE.double(),)),
    "conv: integers": (conv, conv_op, (IMAGE,), (IMAGE.long(),)),
    "conv: dimensions": (conv, conv_op, (IMAGE,), (IMAGE[0, 0],)),
    "conv: channels": (conv, conv_op, (IMAGE,), (IMAGE[:, :2],)),
    "conv: too small": (conv, conv_op, (IMAGE,), (IMAGE[..., :2],)),
    "conv: device": (conv, conv_op, (IMAGE,), (IMAGE.to("meta"),)),
    "conv: not a tensor": (conv, conv_op, (IMAGE,), ([1.0],)),
    "conv: residual's shape": (conv, conv_op, (IMAGE,), (IMAGE, torch.randn(2, 4, 6, 5))),
    "conv: residual's dtype": (conv, conv_op, (IMAGE,), (IMAGE, torch.randn(2, 4, 6, 6).double())),
    "conv: residual's device": (conv, conv_op, (IMAGE,), (IMAGE, torch.empty(2, 4, 6, 6, device="meta"))),
    "lstm: state's device": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE, (STATES, STATES.to("meta")))),
    "cell: state's device": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS, (STATE.to("meta"), STATE))),
    "lstm: dtype": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE.double(), (STATES.double(),) * 2)),
    "lstm: dimensions": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE[None], (STATES,) * 2)),
    "lstm: features": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE[..., :4], (STATES,) * 2)),
    "lstm: device": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE.to("meta"), (STATES,) * 2)),
    "lstm: not a tensor": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (3, (STATES,) * 2)),
    "lstm: one state": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE, (STATES,))),
    "lstm: no pair": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE, STATES)),
    "lstm: state's shape": (lstm, lstm_op, (SEQUENCE, (STATES,) * 2), (SEQUENCE, (STATES[..., :6], STATES))),
    "cell: dtype": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS.double(), (STATE.double(),) * 2)),
    "cell: dimensions": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS[None], (STATE,) * 2)),
    "cell: features": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS[:, :4], (STATE,) * 2)),
    "cell: not a tensor": (cell, cell_op, (ROWS, (STATE,) * 2), ("x", (STATE,) * 2)),
    "cell: one state": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS, (STATE,))),
    "cell: no pair": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS, STATE)),
    "cell: state's dtype": (cell, cell_op, (ROWS, (STATE,) * 2), (ROWS, (STATE, STATE.double()))),
}


@pytest.mark.parametrize(("make", "op", "right", "wrong"), CASES.values(), ids=CASES)
def test_modules_raise_what_the_op_raises(make, op, right, wrong):
    module = make().eval()
    with torch.no_grad():
        module(*right)
    assert raised(module, *wrong) == raised(op, module, *wrong)


@pytest.mark.parametrize("make", [lstm, cell])
def test_without_states_what_is_no_tensor_is_refused_by_name(make):
    module = make().eval()
    assert raised(module, 3) == raised(lambda: (lstm_op if make is lstm else cell_op)(module, 3, (3, 3)))


def test_int8_linear_refuses_what_is_no_tensor_as_its_op():
    module = pk.nn.Int8Linear(5, 7).eval()
    kind, message = raised(module, "x")
    assert kind is TypeError
    assert "x: expected a tensor, got str" in message


OVERRIDDEN = {
    "ConvBNAct2d": (lambda m: pk.nn.ConvBNAct2d.from_torch(m), lambda: nn.Conv2d(3, 4, 3), "forward"),
    "ConvBNAct2d's _conv_forward": (pk.nn.ConvBNAct2d.from_torch, lambda: nn.Conv2d(3, 4, 3), "_conv_forward"),
    "ConvBNAct2d's bn": (
        lambda m: pk.nn.ConvBNAct2d.from_torch(nn.Conv2d(3, 4, 3), m), lambda: nn.BatchNorm2d(4), "forward"
    ),
    "LSTM": (pk.nn.LSTM.from_torch, lambda: nn.LSTM(5, 7), "forward"),
    "LSTMCell": (pk.nn.LSTMCell.from_torch, lambda: nn.LSTMCell(5, 7), "forward"),
    "Int8Linear": (pk.nn.Int8Linear.from_torch, lambda: nn.Linear(5, 7), "forward"),
}  # fmt: skip


@pytest.mark.parametrize(("convert", "make", "name"), OVERRIDDEN.values(), ids=OVERRIDDEN)
def test_from_torch_refuses_what_one_instance_overrides(convert, make, name):
    module = make()
    convert(module)
    setattr(module, name, lambda x, *_: x)
    with pytest.raises(TypeError, match="with its own forward"):
        convert(module)
