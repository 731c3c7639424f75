"""`pk.nn.LSTM` and `pk.nn.LSTMCell`: torch's modules in all that a caller can see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_SPEC
from tests.harness import tensors_of
from tests.ops.lstm.checks import assert_close

#: Both sides round, through three layers, or two in both directions, of 9 units.
TOLERANCE = 2 * LSTM_SPEC.bound(torch.float64, 3 * (18 + 9 + 2))

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"bidirectional": True, "batch_first": True}, id="bidirectional-batch-first"),
    pytest.param({"num_layers": 2, "bidirectional": True, "bias": False}, id="deep"),
    pytest.param({"num_layers": 2, "bidirectional": True, "proj_size": 3}, id="projections"),
]


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[torch.nn.LSTM, pk.nn.LSTM]:
    torch.manual_seed(5)
    theirs = torch.nn.LSTM(6, 9, **options).to(dtype)
    return theirs, pk.nn.LSTM.from_torch(theirs)


def cells(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[torch.nn.LSTMCell, pk.nn.LSTMCell]:
    torch.manual_seed(5)
    theirs = torch.nn.LSTMCell(6, 9, **options).to(dtype)
    return theirs, pk.nn.LSTMCell.from_torch(theirs)


def states_for(module: torch.nn.LSTM, batch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    middle = () if batch is None else (batch,)
    dtype = module.weight_ih_l0.dtype
    wide_h = module.proj_size or module.hidden_size
    return torch.randn(rows, *middle, wide_h).to(dtype), torch.randn(rows, *middle, module.hidden_size).to(dtype)


def assert_same(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert_close(tensors_of(got), tensors_of(expected), tolerance)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("given", [True, False])
def test_forward_is_torchs(options, training, batch, given):
    theirs, ours = pair(**options)
    theirs.train(training)
    ours.train(training)
    x = torch.randn(5, 6).double() if batch is None else torch.randn(5, batch, 6).double()
    if batch is not None and options.get("batch_first"):
        x = x.transpose(0, 1)
    hx = states_for(theirs, batch) if given else None
    assert_same(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences_are_torchs(options, given, is_sorted):
    theirs, ours = pair(**options)
    lengths = [5, 4, 2] if is_sorted else [2, 5, 4]
    x = pack_sequence([torch.randn(n, 6).double() for n in lengths], enforce_sorted=is_sorted)
    hx = states_for(theirs, 3) if given else None
    got, expected = ours(x, hx), theirs(x, hx)
    assert isinstance(got[0], PackedSequence)
    assert_same((list(got[0]), got[1]), (list(expected[0]), expected[1]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6), (0, 6)])
@pytest.mark.parametrize("given", [True, False])
def test_cell_is_torchs(bias, shape, given):
    theirs, ours = cells(bias=bias)
    x = torch.randn(shape).double()
    hx = tuple(torch.randn(*shape[:-1], 9).double() for _ in range(2)) if given else None
    assert_same(ours(x, hx), theirs(x, hx))
    assert_same(ours.eval()(x, hx), theirs(x, hx))


@pytest.mark.parametrize("options", OPTIONS)
def test_names_initial_values_and_repr_are_torchs(options):
    torch.manual_seed(7)
    theirs = torch.nn.LSTM(6, 9, **options)
    torch.manual_seed(7)
    ours = pk.nn.LSTM(6, 9, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours.state_dict(), theirs.state_dict(), tolerance=0)
    assert repr(ours) == repr(theirs)
    assert [len(layer) for layer in ours.all_weights] == [len(layer) for layer in theirs.all_weights]
    ours.flatten_parameters()


def test_cell_names_initial_values_and_repr_are_torchs():
    torch.manual_seed(7)
    theirs = torch.nn.LSTMCell(6, 9)
    torch.manual_seed(7)
    ours = pk.nn.LSTMCell(6, 9)
    assert isinstance(ours, torch.nn.LSTMCell)
    assert_same(ours.state_dict(), theirs.state_dict(), tolerance=0)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("options", OPTIONS)
def test_state_dicts_go_both_ways(options):
    theirs, _ = pair(**options)
    ours = pk.nn.LSTM(6, 9, **options).double()
    x = torch.randn(5, 4, 6).double()
    ours.eval()(x)
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours(x), theirs(x))
    other = torch.nn.LSTM(6, 9, **options).double()
    other.load_state_dict(ours.state_dict())
    assert_same(other(x), theirs(x))


def test_from_torch_shares_parameters_and_mode():
    theirs, ours = pair(num_layers=2, dropout=0.25)
    assert ours.dropout == 0.25
    assert all(a is b for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    assert not pk.nn.LSTM.from_torch(theirs.eval()).training
    cell, our_cell = cells(bias=False)
    assert our_cell.weight_hh is cell.weight_hh
    assert our_cell.bias_ih is None


@pytest.mark.parametrize("ours", [pk.nn.LSTM, pk.nn.LSTMCell])
def test_from_torch_refuses_what_is_none(ours):
    with pytest.raises(
        TypeError, match=rf"{ours.__name__}.from_torch: module: expected a torch.nn.{ours.__name__} .*, got GRU"
    ):
        ours.from_torch(torch.nn.GRU(3, 4))


@pytest.mark.parametrize("ours", [pk.nn.LSTM, pk.nn.LSTMCell])
def test_from_torch_refuses_another_forward_and_hooks(ours):
    theirs = getattr(torch.nn, ours.__name__)
    other = type("Other", (theirs,), {"forward": lambda self, x: x})
    with pytest.raises(TypeError, match="with its own forward, got Other"):
        ours.from_torch(other(3, 4))
    hooked = theirs(3, 4)
    hooked.register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="module: expected a module without hooks"):
        ours.from_torch(hooked)


def test_from_torch_refuses_parametrized_weights():
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match="expected plain parameters, got parametrized ones"):
        pk.nn.LSTM.from_torch(theirs)


def test_trains_like_torch():
    theirs, _ = pair(num_layers=2, bidirectional=True)
    ours = pk.nn.LSTM.from_torch(copy.deepcopy(theirs))
    x, target = torch.randn(5, 4, 6).double(), torch.randn(5, 4, 18).double()
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(x)[0], target).backward()
            optimizer.step()
    assert_same(ours.state_dict(), theirs.state_dict())


def test_padded_and_packed_agree():
    _, ours = pair(batch_first=True, bidirectional=True)
    lengths = torch.tensor([3, 5, 1])
    padded = torch.randn(3, 5, 6).double()
    packed, (h, _) = ours(pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False))
    for i, n in enumerate(lengths.tolist()):
        _, (alone, _) = ours(padded[i, :n])
        assert_same(h[:, i], alone)
    assert packed.data.shape == (9, 18)
