"""What ``equalize`` and ``correct_bias`` of `pk.quantize` do to the error of a network whose channels are unequal.

    python bench/tuning.py                      # a few minutes; JSON to bench/results
    python bench/tuning.py --spreads 1 --size 64 --out /tmp/tuning.json

A MobileNetV2 with random weights, whose batch norms scale channel by channel by exp(s z), z from a normal distribution:
as it is, with ReLU6, and with ReLU. Four images, calibrated on four batches of two others; the error is that of the
logits by their L2 norm, against the float model. Nothing is timed.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from layers import RESULTS, write
from torch import Tensor, nn

import pykernels as pk
from pykernels._measure import relative_l2
from pykernels.cli.bench.peers.networks import build

SPREADS = 0.0, 0.5, 1.0
BATCHES, IMAGES = 4, 4


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spreads", default=",".join(map(str, SPREADS)))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/int8-tuning.json")
    options = parser.parse_args()
    rows = []
    for spread, activation in itertools.product(map(float, options.spreads.split(",")), ("relu6", "relu")):
        model, batches, images = made(spread, activation, options.size)
        for per_channel in (True, False):
            rows.append({"activation": activation, "spread": spread, "per_channel": per_channel})
            rows[-1].update(errors(model, batches, images, per_channel))
            print(rows[-1], flush=True)
    write(rows, options.out or RESULTS / "int8-tuning.json")


def made(spread: float, activation: str, size: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    """The network, the batches of its calibration, and the images of its test."""
    model, _ = build("mobilenet_v2")
    batches = [torch.randn(2, 3, size, size) for _ in range(BATCHES)]
    images = torch.randn(IMAGES, 3, size, size)
    with torch.no_grad():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.ReLU6) and activation == "relu":
                    setattr(parent, name, nn.ReLU())
                elif isinstance(child, nn.BatchNorm2d):
                    child.weight.mul_((spread * torch.randn(child.num_features)).exp())
    return model.eval(), batches, images


def errors(model: nn.Module, batches: list[Tensor], images: Tensor, per_channel: bool) -> dict[str, Any]:
    """The relative error of the logits by what is done to the weights."""
    found = {}
    with torch.inference_mode():
        exact = model(images)
        for equalize, correct_bias in itertools.product((False, True), repeat=2):
            q = pk.quantize(model, batches, per_channel=per_channel, equalize=equalize, correct_bias=correct_bias)
            name = "both" if equalize and correct_bias else "equalize" if equalize else "correct_bias"
            q(images)
            found[name if equalize or correct_bias else "neither"] = relative_l2(q(images), exact)
    return found


if __name__ == "__main__":
    main()
