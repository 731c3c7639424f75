"""The doors of torch.compile and torch.export to our programs, against eager, `pk.optimize` and Inductor.

    python bench/compiled.py                       # ten minutes and more, for Inductor compiles; JSON to bench/results
    python bench/compiled.py --only lm --without inductor,aoti --out /tmp/compiled.json

For each model and contender: the seconds until its first answer (with what Inductor had compiled before forgotten), the
answer against float64, CPU time of one thread (the least of some calls, in turn with eager and `pk.optimize`). Ratios
are of times: `of_eager` 2 is twice as fast as eager, `of_fast` 1 as fast as `pk.optimize`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pykernels as pk
from pykernels import _native
from pykernels._measure import Call, interleaved, relative_l2
from pykernels.cli.bench.machine import cpu_name

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5
#: Calls before the timing: the first is recorded, the second chooses, and Dynamo may compile another time.
WARM = 4
Answer = Callable[[Tensor], Any]


class EarlyExit(nn.Module):
    """Control flow: with a picture that it is sure of it does not go on.

    Without a loop around the branch: Dynamo leaves a function alone that has to break in one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.near, self.near_head = self._stages(3, 32, 64), nn.Linear(64, 10)
        self.far, self.far_head = self._stages(64, 128, 256), nn.Linear(256, 10)

    @staticmethod
    def _stages(*widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            for c, stride in ((a, 2), (b, 1)):
                layers += [nn.Conv2d(c, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the first head if its best class is likely enough, else of the second."""
        x = self.near(x)
        logits: Tensor = self.near_head(x.mean((2, 3)))
        if logits.softmax(-1).max() > 0.9:
            return logits
        far: Tensor = self.far_head(self.far(x).mean((2, 3)))
        return far


def _resnet() -> tuple[nn.Module, Tensor]:
    return pk.models.reference_twin(pk.models.resnet50()), torch.randn(1, 3, 224, 224)


def _lm() -> tuple[nn.Module, Tensor]:
    model = pk.models.LSTMLanguageModel(10000, 256, 512, 2)
    return pk.models.reference_twin(model), torch.randint(10000, (1, 32))


def _cnn_lstm() -> tuple[nn.Module, Tensor]:
    model = pk.models.CNNLSTM(10, input_size=64 * 80 // 4, hidden_size=256, num_layers=2)
    return pk.models.reference_twin(model), torch.randn(1, 1, 200, 80)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet50": _resnet,
    "lm": _lm,
    "cnn_lstm": _cnn_lstm,
    "early_exit": lambda: (EarlyExit(), torch.randn(1, 3, 128, 128)),
}


def _exported(model: nn.Module, x: Tensor) -> Any:
    fast = pk.optimize(model)
    fast(x)
    return torch.export.export(fast, (x,))


def _package(model: nn.Module, x: Tensor) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.pt2"
        torch._inductor.aoti_compile_and_package(_exported(model, x), package_path=path)
        loaded: Answer = torch._inductor.aoti_load_package(path)
    return loaded


#: What makes each of a model and an input.
CONTENDERS: dict[str, Callable[[nn.Module, Tensor], Answer]] = {
    "eager": lambda model, x: model,
    "fast": lambda model, x: pk.optimize(model),
    "backend": lambda model, x: torch.compile(model, backend="pykernels"),
    "inductor": lambda model, x: torch.compile(model),
    "compiled_fast": lambda model, x: torch.compile(pk.optimize(model)),
    "exported": lambda model, x: _exported(model, x).module(),
    "aoti": _package,
}


def first(value: Any) -> Tensor:
    """The first tensor of a result."""
    while not isinstance(value, Tensor):
        value = value[0]
    return value


def measured(name: str, seconds: float, without: set[str]) -> list[dict[str, Any]]:
    """A row for each contender, timed in turn with eager and `pk.optimize` alone: Dynamo keeps one decision for a
    function, whoever's backend made it, and forgets it before the next contender.
    """
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval().requires_grad_(False)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        exact = first(model.double()(x.double() if x.is_floating_point() else x)).clone()
        model.float()
        base = pk.optimize(model)
        for _ in range(WARM):
            base(x)
        for contender, make in CONTENDERS.items():
            if contender in without:
                continue
            row: dict[str, Any] = {"model": name, "contender": contender}
            rows.append(row)
            torch._dynamo.reset()
            began = time.perf_counter()
            try:
                run = make(model, x)
                run(x)
                row["first_s"] = time.perf_counter() - began
                for _ in range(WARM):
                    row["error"] = relative_l2(first(run(x)), exact)
            except Exception as problem:
                row |= {"status": "raised", "reason": f"{type(problem).__name__}: {str(problem)[:300]}"}
                continue
            row["status"] = "ok" if row["error"] <= TOLERANCE else "wrong"
            calls: list[Call] = [lambda: model(x), lambda: base(x), partial(run, x)]
            eager, fast, own = (min(times) for times in interleaved(calls, seconds, least=5, clock=_cpu_seconds))
            row |= {"ms": 1e3 * own, "of_eager": eager / own, "of_fast": fast / own}
    inductor = next((row["of_eager"] for row in rows if row["contender"] == "inductor" and "ms" in row), None)
    for row in rows:
        if inductor and "ms" in row:
            row["of_inductor"] = row["of_eager"] / inductor
    return rows


def _cpu_seconds(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measures, prints and writes; a file is there after each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODELS), help="models, by commas")
    parser.add_argument("--without", default="", help="contenders to leave out, by commas")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the timing of one row")
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/compiled-<isa>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    isa = _native.introspect().active_isa()
    machine = {"cpu": cpu_name(), "isa": isa, "threads": 1, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name in options.only.split(","):
            for row in measured(name, options.seconds, set(options.without.split(","))):
                rows.append(row)
                shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
                print(" ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
            lines = ",\n".join(json.dumps(row) for row in rows)
            text = f'{json.dumps({"schema": 1, "machine": machine})[:-1]}, "results": [\n{lines}\n]}}\n'
            (options.out or RESULTS / f"compiled-{isa}.json").write_text(text)


if __name__ == "__main__":
    main()
