"""`pk.quantize`: what runs in int8, how exactly, and what it refuses."""

from __future__ import annotations

import copy
import math
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.quantize._steps import Int8Layer
from tests.quantize.models import batches, error, residual, rounding, run, worn

#: Of a layer, in dB: a range of six deviations in 255 steps, whose error has a variance of a twelfth of a step's
#: square, and two such roundings, of weights and results, in each of eight layers.
_LEAST = 20 * math.log10(255 / 6 * math.sqrt(12)) - 10 * math.log10(16)


def _layers(model):
    return model.report().layers


@pytest.mark.parametrize("act", ["relu", "silu", "hardswish", "leaky_relu"])
def test_all_layers_run_in_int8(act):
    model, data = residual(act), batches()
    x = data[0]
    quantized = pk.quantize(model, data)
    got = run(quantized, x)
    assert 0 < error(got, model(x)) < rounding(8)
    report = quantized.report()
    assert [layer.where for layer in report.layers] == ["stem", "a", "b", "left", "right", "wide", "last", "fc"]
    assert all(not layer.why for layer in report.layers), report
    assert {s.what for s in report.steps if s.who == "torch"} <= {"cat", "unchanged memory format", "mean"}
    assert min(layer.sqnr for layer in report.layers) > _LEAST
    # The pool and the concatenation are of int8: nothing but the image and the means is rounded.
    assert sum(s.what == "quantize" for s in report.counted()) == 2


def test_the_package_itself_recorded_through():
    model = worn(pk.models.resnet18(num_classes=10, stem="cifar"))
    x = torch.randn(2, 3, 32, 32)
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(21)
    report = quantized.report()
    assert len(report.layers) == 21
    assert all(not layer.why for layer in report.layers)


def test_blocks_of_the_package_are_quantised():
    block = pk.nn.ConvBNAct2d(8, 8, 3, padding=1, activation="relu")
    model = worn(nn.Sequential(block, nn.Conv2d(8, 8, 1)))
    x = torch.randn(1, 8, 12, 12)
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(2)
    assert len(_layers(quantized)) == 2


def test_the_first_call_is_in_int8_too():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data)
    with torch.inference_mode():
        found = [quantized(data[0]) for _ in range(3)]
    assert all(torch.equal(y, found[0]) for y in found)
    assert error(found[0], model(data[0])) > 1e-4


def test_other_sizes_and_batches_run_on_the_same_grids():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data)
    for x in (*batches(1, 40), *batches(1, 24, 1), *batches(1, 33, 5)):
        assert error(run(quantized, x), model(x)) < rounding(8)
        assert [layer.why for layer in _layers(quantized)] == [""] * 8


def test_another_kind_of_call_runs_in_float_and_says_so():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x, deep=True):
            x = F.relu(self.a(x))
            return self.b(x) if deep else x

    torch.manual_seed(0)
    model, x = Two().eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    assert 0 < error(run(quantized, x), model(x)) < rounding(2)
    with torch.inference_mode():
        for _ in range(3):
            got = quantized(x, deep=False)
    assert error(got, model(x, deep=False)) < 1e-6
    (layer,) = [layer for layer in quantized.report().layers if layer.why]
    assert layer.where == "a"
    assert "no batch of the calibration" in layer.why


def test_without_batches_it_computes_in_float():
    model, x = residual(), batches(1)[0]
    quantized = pk.quantize(model)
    assert error(run(quantized, x), model(x)) < 1e-5
    assert ["calibration" in layer.why for layer in _layers(quantized)] == [True] * 8


def test_skip_keeps_layers_in_float():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data, skip=["stem", "?c"])
    run(quantized, data[0])
    assert {layer.where for layer in _layers(quantized) if layer.why == "it is named in skip"} == {"stem", "fc"}


def test_a_budget_is_kept():
    model, data = residual(), batches()
    whole = pk.quantize(model, data)
    worst = error(torch.cat([run(whole, x) for x in data]), torch.cat([model(x) for x in data]))
    quantized = pk.quantize(model, data, budget=worst / 3)
    got = error(torch.cat([run(quantized, x) for x in data]), torch.cat([model(x) for x in data]))
    assert got <= worst / 3
    kept = [layer.where for layer in _layers(quantized) if "budget" in layer.why]
    assert 0 < len(kept) < 8


def test_a_score_is_kept():
    model, data = residual(), batches()
    calls = []

    def score(candidate):
        calls.append(candidate)
        return -error(torch.cat([candidate(x) for x in data]), torch.cat([model(x) for x in data]))

    worst = -score(pk.quantize(model, data))
    quantized = pk.quantize(model, data, budget=worst / 2, score=score)
    assert len(calls) > 4
    assert score(quantized) >= -worst / 2 - 1e-6
    with pytest.raises(TypeError, match=r"score: expected a function from a model to a number, got str"):
        pk.quantize(model, data, budget=0.1, score=lambda m: "good")


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "entropy"])
def test_observers(observer):
    model, data = residual(), batches()
    assert error(run(pk.quantize(model, data, observer=observer), data[0]), model(data[0])) < rounding(8)


def test_one_scale_for_a_weight_is_coarser():
    model, data = residual(), batches()
    with torch.no_grad():
        model.a.weight[3] *= 50
    both = [pk.quantize(model, data, per_channel=way) for way in (True, False)]
    fine, coarse = (error(run(q, data[0]), model(data[0])) for q in both)
    assert fine < coarse


def test_it_follows_the_weights():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data)
    before = run(quantized, data[0])
    with torch.no_grad():
        model.b.weight *= 0.5
        model.fc.bias += 1
    after = run(quantized, data[0])
    assert not torch.equal(before, after)
    assert error(after, model(data[0])) < rounding(8)


def test_layouts_and_threads_give_the_same_bits():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data)
    x = data[0]
    expected = run(quantized, x)
    assert torch.equal(run(quantized, x.to(memory_format=torch.channels_last)), expected)
    found = []
    workers = [threading.Thread(target=lambda: found.append(run(quantized, x))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(y, expected) for y in found)


def test_images_of_one_channel_are_no_reason_to_leave_channels_last(monkeypatch):
    lasts, real = [], Int8Layer.workspace

    def seen(self, x, constant, y):
        lasts.append((x.stride(1), y.stride(1)))
        return real(self, x, constant, y)

    monkeypatch.setattr(Int8Layer, "workspace", seen)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1)
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)).eval(), torch.randn(1, 1, 24, 20)
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), run(model, x)) <= rounding(3)
    assert lasts
    assert set(lasts) == {(1, 1)}


def test_clamps_are_what_their_grids_do():
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return self.b(self.a(x).clamp(-0.3, 0.4)).clamp(-0.2, 0.1)

    torch.manual_seed(0)
    model, x = Clamped().eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    got = run(quantized, x)
    assert error(got, model(x)) < rounding(2)
    assert got.max() <= 0.1
    assert got.min() >= -0.2
    assert all(not layer.why for layer in _layers(quantized))


def test_a_value_that_is_written_to_stays_in_float():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            y = self.a(x)
            y[:, :2] = 0
            return self.b(y)

    torch.manual_seed(0)
    model, x = Writes().eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(2)
    assert "written to" in {layer.where: layer.why for layer in _layers(quantized)}["b"]


def test_sequences_and_rows():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(8, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 14, 32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip
    worn(model)
    x = torch.randn(4, 8, 30)
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(4)
    assert [layer.where for layer in _layers(quantized) if not layer.why] == ["0", "3", "6", "8"]


def test_dynamic_quantises_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(3, 7, 64)
    quantized = pk.quantize(model, dynamic=True)
    got = run(quantized, x)
    assert 0 < error(got, model(x)) < rounding(3)
    assert all(not layer.why for layer in _layers(quantized))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    other = pk.quantize(conv, dynamic=True)
    run(other, torch.randn(1, 3, 8, 8))
    assert [bool(layer.why) for layer in _layers(other)] == [True, False]
    # Each row by itself: a larger one beside it changes nothing.
    y = x.clone()
    y[0, 0] *= 100
    assert torch.equal(run(quantized, y)[1:], got[1:])


def test_transposed_convolutions_and_slopes_of_their_own_stay_in_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 1)).eval()
    x = batches(1)[0]
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(4)
    why = {layer.where: layer.why for layer in _layers(quantized)}
    assert "prelu" in why["0"]
    assert "transposed" in why["2"]
    assert why["3"] == ""


def test_bad_arguments_are_refused():
    model, data = residual(), batches()
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        pk.quantize(3, data)
    with pytest.raises(TypeError, match=r"model: expected an original model, got one that is optimised already"):
        pk.quantize(pk.optimize(model), data)
    with pytest.raises(ValueError, match=r"observer: expected one of 'minmax', .*, got 'max'"):
        pk.quantize(model, data, observer="max")
    with pytest.raises(ValueError, match=r"skip: expected names or patterns of modules of the model, got 'stm'"):
        pk.quantize(model, data, skip=["stm"])
    with pytest.raises(ValueError, match=r"budget: expected batches to measure on, got none"):
        pk.quantize(model, budget=0.1)
    with pytest.raises(ValueError, match=r"budget: expected a number of at least 0, got -1"):
        pk.quantize(model, data, budget=-1)
    with pytest.raises(ValueError, match=r"budget: expected a number of at least 0, got nan"):
        pk.quantize(model, data, budget=float("nan"))
    with pytest.raises(ValueError, match=r"score: expected a budget beside it, got None"):
        pk.quantize(model, data, score=lambda m: 1.0)
    with pytest.raises(TypeError, match=r"score: expected a function from a model to a number, got int"):
        pk.quantize(model, data, budget=0.1, score=3)
    with pytest.raises(TypeError, match=r"skip: expected a name or a sequence of names of modules, got int"):
        pk.quantize(model, data, skip=3)
    with pytest.raises(ValueError, match=r"qat: expected False, because of dynamic=True, got True"):
        pk.quantize(model, dynamic=True, qat=True)
    model.fc.bfloat16()
    with pytest.raises(TypeError, match=r"parameters of torch.float32, got torch.bfloat16 in fc.weight"):
        pk.quantize(model, data)


def test_a_budget_is_measured_on_batches_from_all_over():
    model, data = residual(), [x * 100 for x in batches(4)] + batches(12)
    quantized = pk.quantize(model, data, budget=0.05)
    assert error(torch.cat([run(quantized, x) for x in data]), torch.cat([model(x) for x in data])) <= 0.05
    kept = {layer.where for layer in _layers(quantized) if "budget" in layer.why}
    small = pk.quantize(model, batches(1), budget=0.05)
    run(small, data[0])
    assert not {layer.where for layer in _layers(small) if "budget" in layer.why} - kept


def test_constant_inputs_are_calibrated():
    model = residual()
    quantized = pk.quantize(model, [torch.zeros(2, 3, 24, 24)])
    got = run(quantized, torch.zeros(2, 3, 24, 24))
    assert error(got, model(torch.zeros(2, 3, 24, 24))) < rounding(8)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstms_are_quantised_and_follow_their_weights(bidirectional, layers):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 96, layers, batch_first=True, bidirectional=bidirectional)
            self.fc = nn.Linear(96 * (1 + bidirectional), 5)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(2, 40, 64)
    quantized = pk.quantize(model, dynamic=True)
    assert 0 < error(run(quantized, x), model(x)) < rounding(layers + 1)
    assert any(s.what == "Int8LSTM" for s in quantized.report().steps)
    with torch.no_grad():
        model.lstm.weight_hh_l0 *= 0.3
    assert torch.equal(run(quantized, x), run(pk.quantize(model, dynamic=True), x))
    kept = pk.quantize(model, dynamic=True, skip="lstm")
    run(kept, x)
    assert not any(s.what == "Int8LSTM" for s in kept.report().steps)


def test_the_report_has_lstms():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.other = nn.LSTM(16, 24, batch_first=True), nn.LSTM(24, 24, proj_size=8, batch_first=True)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.other(self.lstm(x)[0])[0])

    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(2, 9, 16)
    quantized = pk.quantize(model, [x])
    run(quantized, x)
    lstm, other, fc = _layers(quantized)
    assert (lstm.where, lstm.why, other.where, fc.where) == ("lstm", "", "other", "fc")
    assert lstm.sqnr > 30
    assert "projections" in other.why
    kept = pk.quantize(model, [x], skip="lstm")
    run(kept, x)
    assert _layers(kept)[0].why == "it is named in skip"


def test_a_calibration_writes_to_no_buffer():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return self.conv(self.norm(x))

    model = Counts().train()
    before = copy.deepcopy(model.state_dict())
    quantized = pk.quantize(model, batches())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    quantized(batches(1)[0])
    assert model.calls == 1


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).to(torch.float32),
        lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1).flip(2),
    ],
)
def test_int8_steps_follow_the_strides_of_moves(move):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
    model, quantized, x = _calibrated(lambda ls, x: ls[1](move(ls[0](x).relu())), *layers)
    got = run(quantized, x)
    assert error(got, model(x)) < rounding(2)
    assert got.stride() == model(x).stride()


def test_sums_activations_and_gates_stay_in_int8():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x):
            x = F.silu(self.a(x))
            x = x + F.silu(self.b(x))
            x = torch.tanh(F.interpolate(x, scale_factor=2, mode="bilinear"))
            x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.c(F.avg_pool2d(x, 2)).mean((2, 3))

    torch.manual_seed(0)
    model, x = Between().eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(8)
    steps = quantized.report().counted()
    assert sum(s.what == "quantize" for s in steps) == 1
    assert not any(s.what == "dequantize" for s in steps)  # the mean gives float


def test_gates_whose_weights_are_copied_stay_in_int8():
    """Large weights lie on huge pages: their copies are constants, but not the model's own tensors."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 160, 1), nn.Conv2d(160, 8, 1)
            self.down, self.up = nn.Conv2d(160, 128, 1), nn.Conv2d(128, 160, 1)

        def forward(self, x):
            x = F.relu(self.a(x))
            x = x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
            return self.b(x)

    torch.manual_seed(0)
    model, x = Gated().eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    assert error(run(quantized, x), model(x)) < rounding(4)
    whats = [s.what for s in quantized.report().counted()]
    assert whats.count("quantize") == 1
    assert "int8 squeeze_excite+relu+sigmoid" in whats


def _calibrated(forward, *layers, x=None, call=()):
    """A model of these layers, quantised on ``x``, and ``x``."""

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x, *rest):
            return forward(self.layers, x, *rest)

    model, x = Made().eval(), torch.randn(2, 3, 16, 16) if x is None else x
    return model, pk.quantize(model, [(x, *call)]), x


def test_a_mean_with_another_divisor_stays_in_float():
    torch.manual_seed(0)
    pool = nn.AvgPool2d(2, divisor_override=1)
    model, quantized, x = _calibrated(
        lambda ls, x: ls[1](pool(F.relu(ls[0](x)))), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
    )
    assert error(run(quantized, x), model(x)) < rounding(2)


def test_the_number_of_parts_may_depend_on_sizes():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    model, quantized, x = _calibrated(lambda ls, x: ls[1](ls[0](x).split(8, 3)[0]), *layers)
    assert error(run(quantized, x), model(x)) < rounding(2)
    wider = torch.randn(2, 3, 16, 32)
    assert error(run(quantized, wider), model(wider)) < rounding(2)
    model, _, _ = _calibrated(lambda ls, x: torch.stack([ls[1](t[None])[0] for t in ls[0](x)]), *layers)
    both = pk.quantize(model, [torch.randn(4, 3, 8, 8), torch.randn(3, 3, 8, 8)])
    assert error(run(both, x), model(x)) < rounding(2)


def test_batches_are_not_written_to():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    model, quantized, _ = _calibrated(lambda ls, x: ls[1](ls[0](x.sub_(0.5).div_(0.25))), *layers, x=x)
    assert torch.equal(x, before)
    with torch.inference_mode():
        for _ in range(2):
            got = quantized(before.clone())
        assert error(got, model(before.clone())) < rounding(2)


@pytest.mark.parametrize(
    "way",
    [
        lambda ls, x, k: ls[1](ls[0](x).clamp(-1e-3 - k, k + 1e-3)),
        lambda ls, x, k: ls[1](F.leaky_relu(ls[0](x), 0.01 + k)),
        lambda ls, x, k: ls[1](ls[0](x) * (1.0 + 99 * k)),
        lambda ls, x, k: ls[1](F.relu(F.conv2d(x, ls[0].weight if k else ls[2].weight))),
    ],
)
def test_ways_that_differ_in_a_number_or_a_weight_have_their_own_ranges(way):
    torch.manual_seed(0)
    large = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        large.weight *= 50
    model, quantized, x = _calibrated(way, large, nn.Conv2d(8, 4, 1), nn.Conv2d(3, 8, 1), call=(0,))
    with torch.inference_mode():
        for k in (0, 1):
            assert error(quantized(x, k), model(x, k)) < rounding(2)


def test_a_score_that_runs_copies_keeps_the_budget():
    model, data = residual(), batches()
    quantized = pk.quantize(
        model, data, budget=0.0, score=lambda m: -error(copy.deepcopy(m)(data[0]), model(data[0])).__round__(5)
    )
    assert error(run(quantized, data[0]), model(data[0])) < 1e-4


def test_a_budget_reaches_lstms():
    torch.manual_seed(0)
    model = nn.LSTM(16, 24, batch_first=True)
    wrapped = _calibrated(lambda ls, x: ls[0](x)[0].sum(1), model, x=torch.randn(2, 9, 16))[0]
    x = torch.randn(2, 9, 16)
    quantized = pk.quantize(wrapped, [x], budget=1e-6)
    assert error(run(quantized, x), wrapped(x)) <= 1e-6


def test_ranges_near_the_largest_numbers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight *= 1e-30
    for observer in ("minmax", "mse"):
        pk.quantize(model, [torch.randn(1, 3, 8, 8) * 5e37], observer=observer)


def test_linear_layers_of_a_model_that_cannot_be_followed():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 8)

        def forward(self, x, scale=1.0):
            if x.sum() > 1e9:
                return x
            return self.b(self.a(x).relu()) * scale

    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(4, 32)
    for quantized in (pk.quantize(model, dynamic=True), pk.quantize(model, [(x, torch.tensor(2.0))])):
        assert 0 < error(run(quantized, x), model(x)) < rounding(2)
        assert {layer.where for layer in _layers(quantized) if not layer.why} == {"a", "b"}


def test_where_nothing_is_quantised_a_warning_says_so():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), batches(1)[0]
    with pytest.warns(UserWarning, match="no linear layer and no LSTM, and dynamic=True quantises nothing else"):
        pk.quantize(model, dynamic=True)
    with pytest.warns(UserWarning, match="nothing in the model runs in int8: it is named in skip"):
        pk.quantize(model, [x], skip="0")
    with pytest.warns(UserWarning, match="nothing in the model runs in int8: no convolution, linear layer or LSTM"):
        pk.quantize(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval(), [x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.quantize(model, [x])
        pk.quantize(nn.Sequential(nn.Linear(24, 4), nn.ReLU()).eval(), dynamic=True)


def test_the_report_tells_one_reason_for_a_layer():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3, 2)).eval(), batches(1)[0]
    quantized = pk.quantize(model, [x])
    run(quantized, x)
    report = quantized.report()
    (layer,) = [layer for layer in report.layers if layer.why]
    assert [left.why.startswith(f"{layer.why}, and in float ") for left in report.left] == [True]
