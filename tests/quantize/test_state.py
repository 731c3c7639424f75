"""What copies, pickles, state_dicts and updates do to a quantised model."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import pykernels as pk
from tests.quantize.models import batches, error, residual, rounding, run


@pytest.fixture(scope="module")
def quantized():
    return pk.quantize(residual(), batches())


def test_copies_and_pickles_compute_the_same(quantized):
    x = batches(1)[0]
    expected = run(quantized, x)
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert isinstance(other, pk.Quantized)
        assert torch.equal(run(other, x), expected)
        assert other.report().worst(3) == quantized.report().worst(3)


def test_a_state_dict_carries_the_calibration(quantized):
    x = batches(1)[0]
    file = io.BytesIO()
    torch.save(quantized.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["_extra_state"].dtype == torch.uint8
    torch.manual_seed(9)
    other = pk.quantize(residual("relu"))
    other.load_state_dict(state)
    assert torch.equal(run(other, x), run(quantized, x))


def test_a_state_dict_is_of_tensors_alone(quantized):
    assert all(isinstance(t, torch.Tensor) and t.layout == torch.strided for t in quantized.state_dict().values())


def test_the_originals_state_dict_changes_the_weights_alone(quantized):
    model, x = residual(), batches(1)[0]
    other = copy.deepcopy(quantized)
    with torch.no_grad():
        model.fc.weight *= 2
    other.load_state_dict(model.state_dict())
    assert error(run(other, x), model(x)) < rounding(8)
    assert not torch.equal(run(other, x), run(quantized, x))
    assert all(not layer.why for layer in other.report().layers)


def _as_state(text):
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


_BROKEN = [
    torch.zeros(3, dtype=torch.uint8), torch.zeros(3), None, {"a": 1}, _as_state('{"version": 1}'), _as_state("[1]"),
    _as_state('{"version": 2}'),
    _as_state('{"version": 1, "per_channel": 1, "dynamic": 0, "skip": [], "kept": [], "ratios": 1, "tables": {}}'),
]  # fmt: skip


@pytest.mark.parametrize("state", _BROKEN)
def test_a_broken_state_is_refused(quantized, state):
    other = copy.deepcopy(quantized)
    with pytest.raises(ValueError, match=r"pykernels.quantize: state: expected the extra state of a quantised model"):
        other.load_state_dict({**quantized.state_dict(), "_extra_state": state})


def test_a_models_own_extra_state_is_kept():
    class Own(nn.Module):
        def __init__(self, number=0):
            super().__init__()
            self.conv, self.number = nn.Conv2d(3, 4, 3), number

        def forward(self, x):
            return self.conv(x)

        def get_extra_state(self):
            return self.number

        def set_extra_state(self, state):
            self.number = state

    x = batches(1)[0]
    quantized = pk.quantize(Own(7).eval(), [x])
    other = pk.quantize(Own().eval())
    other.load_state_dict(quantized.state_dict())
    assert other.number == 7
    assert torch.equal(run(other, x), run(quantized, x))


def test_it_stays_in_evaluation_mode_and_wants_no_gradients(quantized):
    assert not quantized.train().training
    assert not any(p.requires_grad for p in quantized.parameters())
    x = batches(1)[0]
    assert not quantized(x).requires_grad


def test_torch_export_holds_int8_steps(quantized):
    x = batches(1)[0]
    expected = run(quantized, x)
    with torch.no_grad():
        program = torch.export.export(quantized, (x,))
    assert _int8_layers(program) == 8
    assert torch.equal(program.module()(x), expected)
    with torch.no_grad():  # torch has made the lists and tuples of the model's attributes anew
        assert _int8_layers(torch.export.export(quantized, (x,))) == 8


def test_models_of_the_package_are_exported_twice():
    """They hold dicts and named tuples."""
    x = torch.randn(1, 3, 32, 32)
    quantized = pk.quantize(pk.models.resnet18(num_classes=4, stem="cifar").eval(), [x])
    run(quantized, x)
    with torch.no_grad():
        counts = [_int8_layers(torch.export.export(quantized, (x,))) for _ in range(2)]
    assert counts == [21, 21]


def _int8_layers(program):
    return sum("int8_conv2d" in str(n.target) for n in program.graph.nodes)


def test_torch_export_says_what_it_writes_in_float(quantized):
    other, x = copy.deepcopy(quantized), batches(1, batch=1)[0]
    with pytest.warns(UserWarning, match=r"torch.export writes float layers, because the model was not called before"):
        assert _int8_layers(torch.export.export(other, (x,))) == 0
    run(other, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _int8_layers(torch.export.export(other, (x,))) == 8
    other.eval().relu = None
    with pytest.warns(UserWarning, match=r"because the model has changed since its last call"):
        torch.export.export(other, (x,))


def test_torch_compile_runs_the_programs(quantized):
    x = batches(1)[0]
    expected = run(quantized, x)
    with torch.inference_mode():
        assert torch.equal(torch.compile(quantized, backend="eager")(x), expected)


class Reads(nn.Module):
    """At the top: a pickle names its class."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.lstm(x)[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_copies_of_models_with_lstms_stay_in_int8(dynamic):
    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(2, 7, 12)
    quantized = pk.quantize(model, None if dynamic else [x], dynamic=dynamic)
    expected = run(quantized, x)
    assert error(expected, model(x)) > 1e-4
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(run(other, x), expected)
        assert any(s.what == "Int8LSTM" for s in other.report().counted())
