"""Quantised models in ONNX, as QDQ.

The graphs are checked with what ONNX says about the two operators in place of them; and in ONNX Runtime, where that is.
"""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pykernels as pk
from tests.quantize.models import batches, error, residual, run, worn

#: Results that differ by the last bit of a sum may be rounded to the next number, each of some ten times.
_STEPS = 0.005
_MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


class Glue(nn.Module):
    """What lies between layers: sums, activations, resizes, shuffles, pools, squeeze-and-excitation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(2, 8, 1)
        self.down, self.up, self.turned = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x):
        x = F.silu(self.a(x))
        x = x + F.silu(self.b(x))
        x = torch.tanh(F.interpolate(x, scale_factor=2, mode="bilinear"))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        x = F.pixel_shuffle(F.channel_shuffle(F.avg_pool2d(self.turned(F.avg_pool2d(x, 2)), 2), 2), 2)
        return self.c(x).clamp(-0.3, 0.2).mean((2, 3))


class Reads(nn.Module):
    """An LSTM and a classifier of its last step."""

    def __init__(self, bidirectional=False):
        super().__init__()
        self.lstm = nn.LSTM(64, 96, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(96 * (1 + bidirectional), 5)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


def _rows() -> nn.Module:
    layers = nn.Linear(64, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(*layers).eval()


def _sequences() -> nn.Module:
    return worn(
        nn.Sequential(
            nn.Conv1d(8, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 14, 32), nn.ReLU(), nn.Linear(32, 5),
        )
    )  # fmt: skip


def _lstm(bidirectional: bool = False) -> nn.Module:
    return Reads(bidirectional).eval()


#: A model, its input, options; how many QuantizeLinear there are, and weights and biases in int8.
_CASES = {
    "relu": (residual, batches(1)[0], {}, 11, 16),
    "silu": (lambda: residual("silu"), batches(1)[0], {}, 11, 16),
    "skip": (residual, batches(1)[0], {"skip": ["a", "wide"]}, 8, 12),
    "one scale": (residual, batches(1)[0], {"per_channel": False}, 11, 16),
    "tuned": (residual, batches(1)[0], {"equalize": True, "correct_bias": True}, 11, 16),
    "glue": (lambda: Glue().eval(), batches(1)[0], {}, 4, 6),
    "rows": (_rows, torch.randn(3, 7, 64), {}, 3, 6),
    "dynamic rows": (_rows, torch.randn(3, 7, 64), {"dynamic": True}, 0, 3),
    "weight-only rows": (_rows, torch.randn(3, 7, 64), {"weight_only": True}, 0, 3),
    "sequences": (_sequences, torch.randn(4, 8, 30), {}, 6, 8),
    "lstm": (_lstm, torch.randn(2, 40, 64), {}, 1, 4),
    "both directions": (lambda: _lstm(True), torch.randn(2, 40, 64), {"dynamic": True}, 0, 5),
}


def _made(case):
    make, x, options, rounds, weights = _CASES[case]
    torch.manual_seed(0)
    model = make()
    quantized = pk.quantize(model, None if options.keys() & {"dynamic", "weight_only"} else [x], **options)
    return model, quantized, x, rounds, weights


def _check(case, model, got, expected, x):
    # ONNX's LSTM takes int8 weights, but computes with float activations: as close to the float model as ours.
    limit = 2 * error(expected, model(x)) if "lstm" in case or "directions" in case else _STEPS
    assert error(got, expected) < limit


def _operator(name: str, inputs, attrs=None, *, dtype, shape) -> Tensor:
    """What ONNX says about the two operators."""
    x, scale, zero = (*inputs, None)[:3]
    if attrs:
        scale = scale.reshape(-1, *[1] * (x.dim() - 1))
    zero = torch.zeros((), dtype=torch.int32) if zero is None else zero.to(torch.int32)
    if name == "::QuantizeLinear":
        return ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8)
    assert name == "::DequantizeLinear"
    return (x.to(torch.int32) - zero) * scale


@pytest.mark.parametrize("case", _CASES)
def test_the_graph_computes_what_the_int8_model_does(case, monkeypatch):
    model, quantized, x, rounds, weights = _made(case)
    expected = run(quantized, x)
    names = []

    def operator(name, inputs, attrs=None, **rest):
        names.append((name, None if attrs is None else inputs[0].dtype))
        return _operator(name, inputs, attrs, **rest)

    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)
    monkeypatch.setattr("torch.onnx.ops.symbolic", operator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
        exported = torch.export.export(quantized, (x,), strict=False)
    assert not any("pykernels" in str(n.target) for n in exported.graph.nodes)
    assert sum(name == "::QuantizeLinear" for name, _ in names) == rounds
    assert sum(kind is not None for _, kind in names) == weights
    assert all(kind in (None, torch.int8, torch.int32) for _, kind in names)
    with torch.no_grad():
        _check(case, model, exported.module()(x), expected, x)


@pytest.mark.skipif(bool(_MISSING), reason=f"{', '.join(_MISSING)} not installed")
@pytest.mark.parametrize("case", _CASES)
def test_onnx_runtime_computes_what_the_int8_model_does(case, tmp_path):
    import onnxruntime

    model, quantized, x, _, _ = _made(case)
    expected = run(quantized, x)
    path = tmp_path / "model.onnx"
    torch.onnx.export(quantized, (x,), path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    _check(case, model, torch.from_numpy(got), expected, x)
    floats = 4 * sum(p.numel() for p in model.parameters())
    assert case != "both directions" or path.stat().st_size < floats / 2


@pytest.mark.skipif(bool(_MISSING), reason=f"{', '.join(_MISSING)} not installed")
def test_onnx_runtime_takes_any_batch(tmp_path):
    import onnxruntime

    quantized = pk.quantize(residual(), batches())
    path = tmp_path / "model.onnx"
    torch.onnx.export(quantized, (batches(1)[0],), path, dynamo=True, verbose=False, dynamic_shapes=({0: "n"},))
    session = onnxruntime.InferenceSession(path)
    x = batches(1, batch=5)[0]
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert error(torch.from_numpy(got), run(quantized, x)) < _STEPS


def test_a_model_in_float_is_exported_in_float(monkeypatch):
    quantized, x = pk.quantize(residual()), batches(1)[0]
    run(quantized, x)
    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)
    nodes = [str(n.target) for n in torch.export.export(quantized, (x,), strict=False).graph.nodes]
    assert "aten.conv2d.default" in nodes
    assert not any("onnx" in name for name in nodes)
