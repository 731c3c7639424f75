"""Of a bidirectional LSTM only what the last time step needs, where nothing else is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.nn._last_step import LastStepLSTM
from pykernels.optimize import _last_step
from tests.harness import native, normal
from tests.optimize.models import agree, programs

pytestmark = native


class Classifier(nn.Module):
    def __init__(self, read=lambda y, states: y[:, -1], layers=2, batch_first=True, given=False, **options):
        super().__init__()
        options = {"bidirectional": True, **options}
        self.lstm = nn.LSTM(6, 5, layers, batch_first=batch_first, **options)
        self.linear = nn.Linear(5 * (1 + options["bidirectional"]), 4)
        self.read, self.given = read, given

    def forward(self, x):
        states = self.lstm(x)[1] if self.given else None
        return self.linear(self.read(*self.lstm(x, states)))


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    monkeypatch.setattr(_last_step, "_WORTH", 0)


def takes_the_last(fast) -> bool:
    return any(isinstance(s.function, LastStepLSTM) for p in programs(fast) for s in p.graph.steps)


OF_TIME = {"batch_first": False, "read": lambda y, states: y[-1]}


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 1}, {"layers": 3, "bias": False}, OF_TIME, {"read": lambda y, states: y[:, -1, :]}],
    ids=["two layers", "one", "three without bias", "time first", "whole slice"],
)
def test_the_rest_is_left_out(options):
    model = Classifier(**options).eval()
    fast = pk.optimize(model)
    for shape in ((2, 7, 6), (3, 4, 6), (1, 1, 6), (2, 7, 6)):
        agree(fast, model, normal(*shape, seed=1))
    assert takes_the_last(fast)
    with torch.no_grad():
        model.lstm.weight_hh_l0_reverse.mul_(-2)
        (model.lstm.weight_ih_l1_reverse if model.lstm.num_layers > 1 else model.lstm.weight_ih_l0_reverse).mul_(-2)
    agree(fast, model, normal(2, 7, 6, seed=2))


@pytest.mark.parametrize(
    "options",
    [
        {"read": lambda y, states: y[:, 0]},
        {"read": lambda y, states: y[:, -1:].mean(1)},
        {"read": lambda y, states: y[:, -1] + y.mean(1)},
        {"read": lambda y, states: y[:, -1] + states[0].mean()},
        {"read": lambda y, states: y[:, -1].mul_(2)},
        {"read": lambda y, states: y[-1]},
        {"given": True},
        {"bidirectional": False},
    ],
)
def test_all_is_done_where_more_is_read(options):
    model = Classifier(**options).eval()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1))
    assert not takes_the_last(fast)


class WithStates(Classifier):
    """Gives its LSTM what ``make`` makes of the input."""

    def __init__(self, make, **options):
        super().__init__(**options)
        self.make = make

    def forward(self, x):
        return self.linear(self.read(*self.lstm(x, self.make(x))))


def zeros_of(x):
    return torch.zeros(4, x.size(0), 5), x.new_zeros(4, x.size(0), 5)


def one_for_both(x):
    zeros = torch.zeros(4, 2, 5)
    return zeros, zeros


@pytest.mark.parametrize("make", [zeros_of, one_for_both])
@pytest.mark.parametrize("ours", [False, True])
def test_states_of_zeros_are_none(make, ours):
    model = WithStates(make).eval()
    if ours:
        model.lstm = pk.nn.LSTM.from_torch(model.lstm)
    fast = pk.optimize(model)
    for shape in ((2, 7, 6), (2, 4, 6), (2, 7, 6)):
        agree(fast, model, normal(*shape, seed=1))
    assert takes_the_last(fast)


def test_states_of_another_batch_raise():
    model = WithStates(one_for_both).eval()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1))
    with torch.no_grad(), pytest.raises(RuntimeError):
        fast(normal(3, 7, 6, seed=1))


def ones(x):
    return torch.zeros(4, 2, 5), torch.ones(4, 2, 5)


def written(x):
    h, c = zeros_of(x)
    h[0] = 1
    return h, c


def written_first(x):
    h, c = zeros_of(x)
    return h.add_(1), c


@pytest.mark.parametrize("make", [ones, written, written_first])
def test_other_states_are_taken(make):
    model = WithStates(make).eval()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1))
    assert not takes_the_last(fast)


@pytest.mark.parametrize("layers", [1, 2])
def test_in_a_graph_of_dynamos(layers, monkeypatch):
    taken, run = [], LastStepLSTM._run_packed
    monkeypatch.setattr(LastStepLSTM, "_run_packed", lambda *args: taken.append(1) or run(*args))
    model = Classifier(layers=layers).eval()
    compiled = torch.compile(model, backend="pykernels")
    for shape in ((2, 7, 6), (3, 4, 6), (2, 7, 6)):
        agree(compiled, model, normal(*shape, seed=1))
    assert taken


class Bare(Classifier):
    def forward(self, x):
        return self.lstm(x)[0][:, -1]


def test_a_result_keeps_its_strides():
    model = Bare().eval()
    fast, x = pk.optimize(model), normal(2, 7, 6, seed=1)
    with torch.no_grad():
        for _ in range(3):
            assert fast(x).stride() == model(x).stride()
    assert not takes_the_last(fast)


def test_little_work_is_done_in_one_call(monkeypatch):
    monkeypatch.undo()
    model = Classifier().eval()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1))
    assert not takes_the_last(fast)


def test_with_gradients_and_on_the_reference():
    model = Classifier().eval()
    fast, x = pk.optimize(model), normal(2, 7, 6, seed=1)
    agree(fast, model, x)
    with pk.backend("reference"):
        agree(fast, model, x)
    x.requires_grad_()
    for _ in range(3):
        (grad,), (expected,) = (torch.autograd.grad(m(x).sum(), x) for m in (fast, model))
        torch.testing.assert_close(grad, expected)


def test_exported():
    model = Classifier().eval()
    fast, x = pk.optimize(model), normal(2, 7, 6, seed=1)
    agree(fast, model, x)
    with torch.no_grad():
        exported = torch.export.export(fast, (x,)).module()
        agree(exported, model, x)


def test_bfloat16():
    model = Classifier().eval().bfloat16()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1).bfloat16())
    assert takes_the_last(fast)


def test_its_operations_are_the_whole_lstms():
    model = Classifier().eval()
    fast = pk.optimize(model)
    agree(fast, model, normal(2, 7, 6, seed=1))
    lstm = next(line for line in fast.report(time=True).steps if line.what == "LSTM")
    assert lstm.flops == 2 * 2 * 7 * 2 * 4 * 5 * ((6 + 5) + (10 + 5))
