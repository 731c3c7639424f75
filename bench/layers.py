"""One convolution at a time: ours against torch's with the batch norm folded, in both memory formats.

    python bench/layers.py                       # a minute or two on one thread; JSON to bench/results
    python bench/layers.py --only depthwise,stem --out /tmp/layers.json

`pykernels/optimize/_rules.py` says by these figures which layers stay torch's. Both answers are compared first, the
contenders take turns, and a contender's figure is the least of its CPU times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.cli.bench.machine import cpu_name
from pykernels.nn._packed import slots_of
from pykernels.nn.conv import ConvPack, Epilogue
from pykernels.ops.conv_bn_act.arguments import geometry
from pykernels.optimize._activations import Act
from pykernels.optimize._torchs import TorchConv

RESULTS = Path(__file__).parent / "results"


class Layer(NamedTuple):
    """A layer on an image of (1, c, size, size)."""

    kind: str
    c: int
    size: int
    k: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    activations: tuple[str, ...] = ("relu", "silu")

    @property
    def what(self) -> str:
        """In a word or two."""
        text = f"{self.c}->{self.k} {self.kernel[0]}x{self.kernel[1]}/{self.stride} @{self.size}"
        return text + f" g{self.groups}" * (1 < self.groups < self.c) + f" d{self.dilation}" * (self.dilation > 1)


def _depthwise(c: int, size: int, r: int, stride: int = 1) -> Layer:
    return Layer("depthwise", c, size, c, (r, r), stride, c, activations=("none", "relu", "silu"))


def _pointwise(c: int, size: int, k: int) -> Layer:
    return Layer("pointwise", c, size, k, (1, 1), activations=("none", "relu", "hardswish", "silu"))


#: Layers of the networks that people run, from the largest images to the smallest.
LAYERS = (
    *(_depthwise(*a) for a in ((32, 112, 3), (96, 112, 3, 2), (144, 56, 3), (144, 56, 5, 2), (240, 28, 5))),
    *(_depthwise(*a) for a in ((192, 28, 3), (480, 14, 3), (672, 14, 5), (672, 14, 5, 2), (960, 7, 3), (960, 7, 5))),
    *(_depthwise(*a) for a in ((96, 56, 7), (384, 14, 7), (64, 112, 3, 2), (728, 20, 3), (40, 56, 7))),
    *(_pointwise(*a) for a in ((16, 112, 96), (32, 112, 16), (24, 56, 144), (144, 56, 24), (64, 80, 64))),
    *(_pointwise(*a) for a in ((128, 40, 64), (32, 28, 192), (192, 28, 32), (96, 14, 576), (576, 14, 96))),
    *(_pointwise(*a) for a in ((112, 14, 672), (160, 7, 960), (960, 7, 160), (320, 7, 1280), (256, 28, 128))),
    *(_pointwise(*a) for a in ((64, 56, 256), (512, 7, 2048), (1024, 14, 256), (240, 1, 64), (64, 1, 240))),
    Layer("stem", 3, 224, 32, stride=2), Layer("stem", 3, 224, 16, stride=2), Layer("stem", 3, 224, 64, (7, 7), 2),
    Layer("stem", 3, 320, 16, (6, 6), 2), Layer("stem", 3, 64, 64), Layer("stem", 1, 64, 32), Layer("stem", 4, 112, 32),
    *(Layer("grouped", *a) for a in (
        (64, 112, 64, (3, 3), 2, 4), (64, 56, 64, (3, 3), 1, 4), (128, 56, 128, (3, 3), 2, 8),
        (128, 28, 128, (3, 3), 1, 8), (320, 28, 320, (3, 3), 2, 20), (320, 14, 320, (3, 3), 1, 20),
        (768, 14, 768, (3, 3), 2, 48), (768, 7, 768, (3, 3), 1, 48), (128, 56, 128, (3, 3), 1, 32),
        (256, 28, 256, (3, 3), 1, 32), (512, 14, 512, (3, 3), 1, 32), (256, 56, 256, (3, 3), 2, 32),
        (64, 56, 64, (1, 1), 1, 4), (24, 28, 48, (3, 3), 1, 24), (96, 112, 96, (3, 3), 2, 4),
        (240, 56, 240, (3, 3), 2, 10), (240, 28, 240, (3, 3), 1, 10), (720, 28, 720, (3, 3), 2, 30),
        (1024, 14, 1024, (3, 3), 1, 32), (64, 56, 32, (3, 3), 1, 8),
    )),
    *(Layer("dense", *a) for a in (
        (16, 80, 16), (32, 40, 32), (64, 20, 64), (32, 80, 32), (64, 56, 64), (128, 28, 128), (256, 14, 256),
        (512, 7, 512), (18, 56, 18), (36, 28, 36), (72, 14, 72), (128, 56, 32), (128, 28, 32), (128, 14, 32),
        (128, 7, 32), (64, 32, 64), (16, 32, 16), (8, 64, 8),
    )),
    *(Layer("strided", *a, (3, 3), 2) for a in (
        (16, 160, 32), (32, 80, 64), (64, 56, 128), (128, 28, 256), (256, 14, 512), (18, 56, 36), (64, 112, 64),
    )),
    *(Layer("strided", *a, (1, 1), 2) for a in ((64, 56, 128), (256, 56, 512), (512, 14, 1024))),
    *(Layer("wide", *a) for a in (
        (64, 56, 64, (5, 5)), (48, 35, 64, (5, 5)), (128, 17, 128, (1, 7)), (128, 17, 128, (7, 1)),
        (256, 8, 256, (1, 3)), (16, 112, 16, (7, 7)),
    )),
    *(Layer("dilated", c, size, k, (3, 3), 1, 1, d) for c, size, k, d in (
        (256, 33, 128, 2), (256, 20, 256, 2), (256, 20, 128, 6), (256, 20, 64, 12), (512, 14, 512, 2), (64, 56, 64, 2),
    )),
)  # fmt: skip


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kinds of layers, or layers as they are printed, by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/layers-<isa>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    isa = _native.introspect().active_isa()
    rows = []
    with torch.inference_mode():
        for layer in LAYERS:
            if not options.only or {layer.kind, layer.what} & set(options.only.split(",")):
                for activation in layer.activations:
                    for channels_last in (False, True):
                        rows.append(row(layer, activation, channels_last, options.rounds))
                        print("{kind:10s} {what:34s} {activation:9s} {layout:14s} {ratio:5.2f}".format(**rows[-1]))
    write(rows, options.out or RESULTS / f"layers-{isa}.json")


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """A row a line, for whoever compares two of the files."""
    machine = {"cpu": cpu_name(), "isa": _native.introspect().active_isa(), "threads": 1}
    head = json.dumps({"schema": 1, "machine": machine | {"torch": torch.__version__}})[:-1]
    lines = ",\n".join(json.dumps(row) for row in rows)
    out.write_text(f'{head}, "results": [\n{lines}\n]}}\n')
    print(out)


def row(layer: Layer, activation: str, channels_last: bool, rounds: int) -> dict[str, Any]:
    """What both take for one layer, in seconds; ``ratio`` is torch's by ours: above 1, ours wins."""
    torch.manual_seed(0)
    x = torch.randn(1, layer.c, layer.size, layer.size)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weight = torch.randn(layer.k, layer.c // layer.groups, *layer.kernel) / layer.kernel[0] ** 2
    bias = torch.randn(layer.k)
    d = layer.dilation
    padding = tuple(d * (r - 1) // 2 for r in layer.kernel)
    options = {"stride": layer.stride, "padding": padding, "dilation": d, "groups": layer.groups}
    epilogue = Epilogue(0.0, activation, 0.01)
    pack = ConvPack(slots_of([weight, bias]), x.dtype, geometry(layer.kernel, **options), epilogue)
    bound, ours = pack.bound_for(x.shape), torch.ops.pykernels.conv_bn_act_bound.default
    theirs = TorchConv(pack.geometry, Act(activation).in_place({})).bind(
        weight, (bias, None, None, None, None), 0.0, channels_last
    )
    calls: list[Callable[[], Any]] = [lambda: ours(x, bound, None), lambda: theirs(x, None)]
    error = relative_l2(calls[0](), calls[1]())
    if error > 1e-5:
        raise SystemExit(f"{layer}: the answers differ by {error:.1e}")
    best = least_cpu_seconds(calls, rounds)
    return {
        "kind": layer.kind, "what": layer.what, **layer._asdict(), "activation": activation,
        "layout": "channels_last" if channels_last else "contiguous",
        "ours": best[0], "torch": best[1], "ratio": best[1] / best[0],
    }  # fmt: skip


def least_cpu_seconds(calls: list[Callable[[], Any]], rounds: int, target: float = 3e-3) -> list[float]:
    """The least CPU time of one call of each, in ``rounds`` turns of about ``target`` seconds."""
    counts = []
    for call in calls:
        call()
        counts.append(max(1, int(target / max(_cpu_seconds(call, 1), 1e-7))))
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            best[i] = min(best[i], _cpu_seconds(call, counts[i]))
    return best


def _cpu_seconds(call: Callable[[], Any], count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - start) / count


if __name__ == "__main__":
    main()
