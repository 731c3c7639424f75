"""The report of a quantised model."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import torch

import pykernels as pk
from tests.quantize.models import batches, error, residual, run


def test_the_layers_tell_their_grids_and_noise():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data)
    run(quantized, data[0])
    report = quantized.report()
    layers = {layer.where: layer for layer in report.layers}
    assert layers["stem"].what == "conv+bn+relu"
    assert layers["stem"].out.zero_point == -128  # of what a ReLU gives
    assert layers["fc"].out is None
    # The last layer's noise is that of the result.
    with torch.no_grad():
        got, exact = torch.cat([run(quantized, x) for x in data]), torch.cat([model(x) for x in data])
    assert math.isclose(layers["fc"].sqnr, -20 * math.log10(error(got, exact)), abs_tol=0.1)
    worst = report.worst(3)
    assert [layer.sqnr for layer in worst] == sorted(layer.sqnr for layer in report.layers)[:3]
    table = [line.split() for line in str(worst).splitlines()]
    assert table[0][:3] == ["dB", "layer", "computes"]
    assert [row[:2] for row in table[1:]] == [[f"{layer.sqnr:.1f}", layer.where] for layer in worst]
    assert str(report.worst(0)) == "no layers in int8 whose noise was measured"
    assert str(report).startswith("8 of 8 layers in int8; the least signal to noise: ")


def test_times_and_the_picture():
    model, data = residual(), batches()
    quantized = pk.quantize(model, data, skip="stem")
    run(quantized, data[0])
    report = quantized.report(time=True)
    assert all(layer.seconds > 0 for layer in report.layers)
    assert str(report.worst(1)).split()[:3] == ["dB", "us", "layer"]
    picture = report.to_svg()
    root = ElementTree.fromstring(picture)
    dots = [e for e in root if e.tag.endswith("circle")]
    assert len(dots) == len(report.layers)
    assert "stem: conv+bn+relu, it is named in skip" in picture


def test_before_any_call_there_is_nothing_to_report():
    assert pk.quantize(residual()).report().layers == []
