"""One linear layer at a time: ours, packed and fused, against torch's with the activation in place.

    python bench/linears.py                  # some minutes on one thread; JSON to bench/results
    python bench/linears.py --rows 1,2 --out /tmp/linears.json

`pykernels/optimize/_rules.py` says by these figures which layers stay torch's. Both answers are compared first, the
contenders take turns, and a contender's figure is the least of its CPU times.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from layers import RESULTS, least_cpu_seconds, write

from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.optimize._activations import Act
from pykernels.optimize._graph import Value
from pykernels.optimize._linear import FusedLinear

ROWS = (1, 2, 3, 4, 8, 16, 35, 64, 128, 197, 512, 1024, 4096)
#: (in, out) of networks that people run, from the smallest to the largest.
SHAPES = (
    (64, 10), (64, 64), (128, 512), (512, 128), (192, 768), (768, 192), (512, 1000), (1024, 1000), (1280, 1000),
    (256, 5000), (2048, 1000), (768, 768), (768, 3072), (3072, 768), (4096, 4096), (25088, 4096),
)  # fmt: skip
ACTIVATIONS = ("none", "relu", "silu", "gelu")
_MOST_PRODUCTS = 3_000_000_000


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--shapes", default=",".join(f"{c}-{k}" for c, k in SHAPES))
    parser.add_argument("--activations", default=",".join(ACTIVATIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/linears-<isa>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [tuple(map(int, s.split("-"))) for s in options.shapes.split(",")]
    rows = []
    with torch.inference_mode():
        for name in options.dtype.split(","):
            for c, k in shapes:
                for n in map(int, options.rows.split(",")):
                    dtype = getattr(torch, name)
                    # bfloat16 is slow enough on this torch that the largest products would take the whole day.
                    if n * c * k > _MOST_PRODUCTS * (0.05 if dtype is torch.bfloat16 else 1):
                        continue
                    for activation in options.activations.split(","):
                        rows.append(row(n, c, k, activation, dtype, options.rounds))
                        print("{dtype:9s} {rows:5d} x {c:5d}->{k:<5d} {activation:5s} {ratio:5.2f}  "
                              "{gflops:5.1f} GFLOP/s {gbytes:5.1f} GB/s".format(**rows[-1]), flush=True)  # fmt: skip
    write(rows, options.out or RESULTS / f"linears-{_native.introspect().active_isa()}.json")


def row(n: int, c: int, k: int, activation: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """What both take for one layer, in seconds; ``ratio`` is torch's by ours: above 1, ours wins."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, c), torch.randn(k, c) / c**0.5, torch.randn(k)
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    linear = FusedLinear(Value(0, "source", weight), Value(1, "source", bias))
    linear.act = Act(activation)
    bound, theirs = linear.constant(linear.pack({}, {}), x.shape), linear.by_torch({}, "contiguous")
    calls = [lambda: linear.run(x, bound, None), lambda: theirs(x, None)]
    error = relative_l2(calls[0](), calls[1]())
    if error > (1e-5 if dtype is torch.float32 else 2e-2):
        raise SystemExit(f"{n} x {c}->{k}: the answers differ by {error:.1e}")
    best = least_cpu_seconds(calls, rounds)
    return {
        "rows": n, "c": c, "k": k, "activation": activation, "dtype": str(dtype).removeprefix("torch."),
        "ours": best[0], "torch": best[1], "ratio": best[1] / best[0],
        "gflops": 2e-9 * n * c * k / best[0], "gbytes": 4e-9 * c * k / best[0],
    }  # fmt: skip


if __name__ == "__main__":
    main()
