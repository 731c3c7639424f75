"""What rounding weights alone brings: models of linear layers and LSTMs in float, with dynamic int8, and weight-only.

    python bench/weights.py                     # a minute on one thread; JSON to bench/results
    python bench/weights.py --only lm,linear_1 --out /tmp/weights.json

Each contender's answer is compared with float64's first. They take turns, and a contender's figure is the least of its
CPU times. torchao's weight-only form takes part where torchao is installed.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layers import RESULTS, least_cpu_seconds, write
from torch import nn

import pykernels as pk
from pykernels import _native
from pykernels._measure import relative_l2

#: The largest error of int8: two layers of LSTM and a linear one, with random weights.
_MOST = 0.03


def _lm(time: int) -> tuple[nn.Module, torch.Tensor]:
    return pk.models.LSTMLanguageModel(10000, 256, 512, 2), torch.randint(0, 10000, (1, time))


def _linear(rows: int, c: int, k: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(c, k)), torch.randn(rows, c)


def _lstm(hidden: int, batch: int) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.LSTM(hidden, hidden)), torch.randn(64, batch, hidden)


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "linear_1x4096x4096": lambda: _linear(1, 4096, 4096),
    "linear_4x4096x4096": lambda: _linear(4, 4096, 4096),
    "linear_16x4096x4096": lambda: _linear(16, 4096, 4096),
    "linear_1x512x512": lambda: _linear(1, 512, 512),
    "linear_64x1024x1024": lambda: _linear(64, 1024, 1024),
    "linear_256x1024x1024": lambda: _linear(256, 1024, 1024),
    "lstm_128_b1_t64": lambda: _lstm(128, 1),
    "lstm_512_b1_t64": lambda: _lstm(512, 1),
    "lstm_1024_b1_t64": lambda: _lstm(1024, 1),
    "lstm_512_b16_t64": lambda: _lstm(512, 16),
    "lm_b1_t1": lambda: _lm(1),
    "lm_b1_t64": lambda: _lm(64),
}


def _torchs_dynamic(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8)


def _torchao(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    return model


CONTENDERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": lambda model: model,
    "torch dynamic": _torchs_dynamic,
    "torchao weight-only": _torchao,
    "float": pk.optimize,
    "dynamic": lambda model: pk.quantize(model, dynamic=True),
    "weight-only": lambda model: pk.quantize(model, weight_only=True),
}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="beginnings of subjects, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/weights-<isa>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's, of its own quantisation
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for subject in SUBJECTS:
            if subject.startswith(tuple(options.only.split(","))):
                rows += measured(subject, options.rounds)
    write(rows, options.out or RESULTS / f"weights-{_native.introspect().active_isa()}.json")


def measured(subject: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender: its time in ms, and its error."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model, x = SUBJECTS[subject]()
        model.eval()
        exact = _first(copy.deepcopy(model).double()(x.double() if x.is_floating_point() else x)).detach()
        calls: dict[str, Callable[[], Any]] = {}
        for name, make in CONTENDERS.items():
            if "torchao" in name and not any(isinstance(m, nn.Linear) for m in model.modules()):
                continue  # it has linear layers alone
            try:
                made = make(copy.deepcopy(model))
            except ImportError:
                continue
            calls[name] = lambda made=made: made(x)
    errors = []
    for name, call in calls.items():
        call()  # a program is made
        errors.append(relative_l2(_first(call()), exact))
        if not errors[-1] < _MOST:
            raise SystemExit(f"{subject}: {name} is off by {errors[-1]:.1e}")
    best = least_cpu_seconds(list(calls.values()), rounds)
    rows = [
        {"row": subject, "contender": name, "best_ms": float(f"{1e3 * t:.4g}"), "error": float(f"{e:.2g}")}
        for name, t, e in zip(calls, best, errors, strict=True)
    ]
    print(f"{subject:22s}", "  ".join(f"{r['contender']} {r['best_ms']:.3f}" for r in rows), flush=True)
    return rows


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


if __name__ == "__main__":
    main()
