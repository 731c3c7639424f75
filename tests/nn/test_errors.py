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


MODULES = {
    "conv": (lambda: pk.nn.ConvBNAct2d(3, 4, 3, batch_norm=False), conv_op),
    "lstm": (lambda: pk.nn.LSTM(5, 7), lstm_op),
    "cell": (lambda: pk.nn.LSTMCell(5, 7), cell_op),
}
IMAGE, ROWS, STATE = torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.randn(2, 7)
SEQUENCE, STATES = torch.randn(3, 2, 5), torch.randn(1, 2, 7)
RIGHT = {"conv": (IMAGE,), "lstm": (SEQUENCE, (STATES,) * 2), "cell": (ROWS, (STATE,) * 2)}
WRONG = {
    "conv: dtype": (IMAGE.double(),),
    "conv: integers": (IMAGE.long(),),
    "conv: dimensions": (IMAGE[0, 0],),
    "conv: channels": (IMAGE[:, :2],),
    "conv: too small": (IMAGE[..., :2],),
    "conv: device": (IMAGE.to("meta"),),
    "conv: not a tensor": ([1.0],),
    "conv: residual's shape": (IMAGE, torch.randn(2, 4, 6, 5)),
    "conv: residual's dtype": (IMAGE, torch.randn(2, 4, 6, 6).double()),
    "conv: residual's device": (IMAGE, torch.empty(2, 4, 6, 6, device="meta")),
    "lstm: state's device": (SEQUENCE, (STATES, STATES.to("meta"))),
    "cell: state's device": (ROWS, (STATE.to("meta"), STATE)),
    "lstm: dtype": (SEQUENCE.double(), (STATES.double(),) * 2),
    "lstm: dimensions": (SEQUENCE[None], (STATES,) * 2),
    "lstm: features": (SEQUENCE[..., :4], (STATES,) * 2),
    "lstm: device": (SEQUENCE.to("meta"), (STATES,) * 2),
    "lstm: not a tensor": (3, (STATES,) * 2),
    "lstm: one state": (SEQUENCE, (STATES,)),
    "lstm: no pair": (SEQUENCE, STATES),
    "lstm: state's shape": (SEQUENCE, (STATES[..., :6], STATES)),
    "cell: dtype": (ROWS.double(), (STATE.double(),) * 2),
    "cell: dimensions": (ROWS[None], (STATE,) * 2),
    "cell: features": (ROWS[:, :4], (STATE,) * 2),
    "cell: not a tensor": ("x", (STATE,) * 2),
    "cell: one state": (ROWS, (STATE,)),
    "cell: no pair": (ROWS, STATE),
    "cell: state's dtype": (ROWS, (STATE, STATE.double())),
}


@pytest.mark.parametrize("case", WRONG)
def test_modules_raise_what_the_op_raises(case):
    kind = case.split(":")[0]
    make, op = MODULES[kind]
    module = make().eval()
    with torch.no_grad():
        module(*RIGHT[kind])
    assert raised(module, *WRONG[case]) == raised(op, module, *WRONG[case])


@pytest.mark.parametrize("what", ["dtype", "dimensions", "features", "not a tensor"])
@pytest.mark.parametrize("kind", ["lstm", "cell"])
def test_modules_raise_the_same_without_states(kind, what):
    make, op = MODULES[kind]
    module, wrong = make().eval(), WRONG[f"{kind}: {what}"]
    assert raised(module, wrong[0]) == raised(op, module, *wrong)


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
