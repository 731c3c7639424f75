"""pk.optimize: same numbers, fused where it may."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels import _native
from tests.harness import relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import Block, image, kinds, randomise, same


class Functional(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.bn = nn.BatchNorm2d(8)
        self.activation = activation

    def forward(self, x):
        y = F.conv2d(x, self.weight, stride=2, padding=1)
        y = F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, False, 0.1, 1e-3)
        return self.activation(y)


@pytest.mark.parametrize(
    "activation",
    [partial(F.relu, inplace=True), lambda y: y.relu_(), partial(F.leaky_relu, negative_slope=0.2), torch.sigmoid],
    ids=["inplace", "method", "leaky", "torch"],
)
def test_functional_forms_are_folded(activation):
    fast = same(Functional(activation), image())
    assert len(kinds(fast)) == 1
    assert kinds(fast)[0].startswith("conv+bn+")


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(),
     nn.Hardswish(), nn.ELU(0.5), nn.PReLU(), nn.Hardtanh(-2, 6), nn.Softplus()],
    ids=repr,
)  # fmt: skip
def test_sequential_is_folded(activation):
    fast = same(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), activation, nn.Dropout(0.5)), image())
    assert len(fast.report().replaced) == 1


@pytest.mark.parametrize("activation", [nn.SELU(), nn.CELU(0.5), nn.Softsign()], ids=repr)
def test_activations_that_are_not_ours_stay(activation):
    fast = same(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), activation), image())
    assert kinds(fast) == ["conv+bn"]


class ComputedStatistics(nn.Module):
    """Statistics that are not constants: nothing to fold."""

    def __init__(self, what: str):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.what = what

    def forward(self, x):
        y, bn = self.conv(x), self.bn
        mean = y.mean((0, 2, 3)) if self.what == "mean" else bn.running_mean
        var = y.var((0, 2, 3)) if self.what == "var" else bn.running_var
        bias = x.mean() * bn.bias if self.what == "bias" else bn.bias
        weight = None if self.what == "no weight" else bn.weight
        return F.batch_norm(y, mean, var, weight, bias, eps=2e-5)


@pytest.mark.parametrize("what", ["mean", "var", "bias", "no weight"])
def test_computed_statistics_are_not_folded(what):
    assert kinds(same(ComputedStatistics(what), image())) == ["conv"]


@pytest.mark.parametrize("form", ["iadd", "add", "torch.add", "method"])
def test_residual_is_folded(form):
    assert kinds(same(Block(form), image(2, 6, 9, 9))) == ["conv+bn+relu", "conv+bn+add+relu"]


def test_residual_that_broadcasts_gives_the_same():
    same(Block("broadcast"), image(2, 6, 9, 9))


@pytest.mark.parametrize("form", ["alpha", "scalar"])
def test_other_additions_stay(form):
    assert kinds(same(Block(form), image(2, 6, 9, 9))) == ["conv+bn+relu", "conv+bn"]


@pytest.mark.parametrize("form", ["overwritten", "into identity"])
def test_writes_in_place_keep_their_order(form):
    model = randomise(Block(form))
    x, y = image(2, 6, 9, 9), image(2, 6, 9, 9)
    fast = pk.optimize(model)
    with torch.no_grad():
        assert relative_l2(fast(x), model(y)) <= 2 * model_bound(model)
    assert relative_l2(x, y) <= 2 * model_bound(model)


class ReadsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        F.relu(y, inplace=True)
        return self.bn(y) + y


def test_an_intermediate_with_two_readers_ends_a_chain():
    assert kinds(same(ReadsTwice(), image())) == ["conv+relu", "bn+add"]


class View(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5 * 100, 4)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).view(x.size(0), -1))


def test_a_view_of_a_convolution_keeps_its_order():
    same(View(), image())


class MyConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


CONV = nn.Conv2d(3, 3, 3, padding=1)
UNKNOWN = nn.BatchNorm2d(4, track_running_stats=False)


SEQUENCES = {
    "a subclass does what its forward says": ((MyConv(3, 4, 3), nn.ReLU()), ["conv"]),
    "parametrised weights": ((nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()), ["conv+relu"]),
    "one convolution used twice": ((CONV, nn.ReLU(), CONV, nn.Tanh()), ["conv+relu", "conv+tanh"]),
    "batch norm alone and without statistics": ((nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), UNKNOWN), ["bn", "conv"]),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name):
    modules, expected = SEQUENCES[name]
    fast = same(nn.Sequential(*modules), image())
    assert kinds(fast) == expected
    assert ("batch_norm" in {x.what for x in fast.report().left}) == ("batch norm" in name)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(10, 4)
        self.gru = nn.GRU(4, 4)

    def forward(self, x):
        y, _ = self.lstm(x)
        h, _ = self.cell(y[:, -1])
        return self.gru(h[None])[0]


def test_lstm_and_cell_are_replaced():
    fast = same(Recurrent(), image(2, 7, 6))
    assert sorted(kinds(fast)) == ["LSTM", "LSTMCell"]
    assert {x.what for x in fast.report().left} == {"GRU"}


@pytest.mark.parametrize("shape", [(1, 6), (2, 6), (3, 5, 6), (6,), (0, 6)], ids=str)
@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(inplace=True), nn.Softmax(-1)], ids=repr)
def test_linear_is_fused_with_an_activation_and_torchs_where_it_is_small(shape, activation):
    model = nn.Sequential(nn.Linear(6, 9), activation, nn.Linear(9, 4, bias=False))
    fast = same(model, image(*shape) if shape[0] else torch.empty(shape))
    name = type(activation).__name__.lower()
    fused = [] if name == "softmax" else [f"linear+{name}"]
    assert kinds(fast) == fused
    assert [x.what for x in fast.report().left] == ["linear"] * (2 - len(fused))


def test_projections_are_left_alone():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 5, proj_size=3)

        def forward(self, x):
            return self.lstm(x)[0]

    fast = same(Projected(), image(2, 7, 6))
    assert "proj_size" in fast.report().left[0].why


def test_float64_models_are_left_alone():
    fast = same(nn.Sequential(nn.Conv2d(3, 4, 3).double()), image().double())
    assert "float64" in fast.report().left[0].why


def test_report_reads_well():
    fast = pk.optimize(randomise(Block("iadd")))
    assert "nothing has run yet" in str(fast.report())
    text = str(same(Block("iadd"), image(2, 6, 9, 9)).report())
    assert "conv+bn+add+relu -> pk.ops.conv_bn_act" in text
    assert "first: conv2" in text


def test_without_the_native_library_nothing_is_replaced(monkeypatch):
    monkeypatch.setattr(_native, "error", "the native library is not built")
    fast = same(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), image())
    assert kinds(fast) == []
    assert "not built" in str(fast.report())


class WritesThroughAReshape(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        y = self.b(self.a(x))
        y.reshape(x.shape[0], -1).mul_(2)
        y.add_(1)
        return y


def test_what_is_written_through_a_reshape_is_seen_by_its_source():
    same(WritesThroughAReshape(), image())


def test_an_empty_batch_says_nothing_of_the_formats_of_others():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).transpose(2, 3)

    model = randomise(Turned())
    fast = pk.optimize(model)
    with torch.no_grad():
        for n in (0, 0, 2, 2, 1, 1, 3):
            x = torch.randn(n, 3, 7, 7)
            assert fast(x).stride() == model(x).stride()


@pytest.mark.parametrize("model", [nn.LSTM(6, 5, batch_first=True), nn.LSTMCell(6, 5)], ids=repr)
def test_an_lstm_by_itself_is_replaced(model):
    fast = pk.optimize(model.eval())
    x = image(3, 6) if isinstance(model, nn.LSTMCell) else image(2, 7, 6)
    with torch.no_grad():
        for _ in range(3):
            assert relative_l2(fast(x)[0], model(x)[0]) < 1e-5
        model.weight_hh_l0.mul_(2) if isinstance(model, nn.LSTM) else model.weight_hh.mul_(2)
        assert relative_l2(fast(x)[0], model(x)[0]) < 1e-5
    assert kinds(fast) == [type(model).__name__]


def test_what_runs_whole_is_torchs_own_call():
    """Attention takes another path under a recorder; called as it is, it gives eager's very bits."""
    model = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = image(2, 5, 16)
    fast = pk.optimize(model)
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(fast(x, x, x)[0], model(x, x, x)[0])
