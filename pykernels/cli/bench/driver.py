"""Runs contenders in turn, each alone in its own process, round after round, and sums up.

Each runs alone, because in one process the engines' thread pools disturb each other: a convolution of ONNX Runtime that
reaches 88 % of the machine's peak by itself reaches 35 % beside another pool. They run in turn and in rounds, because a
shared machine drifts: a ratio is the median over the rounds of baseline time / contender time of the *same* round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pykernels.cli._console import threads as told
from pykernels.cli.bench.peers.contenders import Contender, why_missing
from pykernels.cli.bench.peers.rows import Row
from pykernels.cli.bench.result import Result

HERE = Path(__file__).parent
#: torch.compile of a ResNet-50 takes half a minute, on a busy machine several times that.
TIMEOUT_S = 600


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int = 3
    #: Of timing in each process; 0: load, check and call once, for memory and start-up.
    seconds: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """The method, beside the results."""
        return {"rounds": self.rounds, "seconds": self.seconds, "alone": True, "ratio": "median of paired rounds"}


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for the exported graphs and the compilers' caches, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="pykernels-bench-") as name:
        yield Path(name)


def measure_row(
    row: Row,
    contenders: list[Contender],
    threads: int,
    plan: Plan,
    folder: Path,
    advance: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Prepares the row once, then runs every contender ``plan.rounds`` times; calls ``advance`` for each process."""
    results = {c.name: Result(row.name, c.name, threads, row.batch, row.flops) for c in contenders}

    def drop(contender: Contender, status: str, reason: str | None) -> None:
        if reason is not None:
            results[contender.name].status, results[contender.name].reason = status, reason

    def running() -> list[Contender]:
        return [c for c in contenders if results[c.name].status == "ok"]

    for contender in contenders:
        drop(contender, "skipped", why_missing(contender))
    advance(f"{row.name}: float64 reference and exports")
    problem = _prepare(row, running(), folder)
    for contender in running():
        drop(contender, "failed", problem)
    for turn in range(plan.rounds):
        for contender in running():
            advance(f"{row.name}, {told(threads)}, round {turn + 1}: {contender.says}")
            found = run_worker(row, contender, threads, plan.seconds, folder / row.name)
            _take(results[contender.name], found, first=turn == 0)
    for result in results.values():
        result.sum_up(results.get(row.baseline))
    return list(results.values())


def run_worker(row: Row, contender: Contender, threads: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One process; what went wrong in it comes back as ``{"status": "failed", "reason": ...}``."""
    asked = [row.name, contender.name, str(threads), str(seconds), str(folder)]
    return _python("peers.worker", asked, threads, folder.parent)


def _prepare(row: Row, contenders: list[Contender], folder: Path) -> str | None:
    """Fills the row's folder unless an earlier thread count did; the reason where that failed."""
    target = folder / row.name
    if (target / "expected.npz").exists():
        return None
    target.mkdir(parents=True, exist_ok=True)
    wanted = {package for c in contenders for package in c.prepares}
    exports = [name for name in ("onnx", "pnnx", "executorch", "MNN", "onnxruntime") if name in wanted]
    found = _python("peers.prepare", [row.name, str(target), *exports], os.cpu_count() or 1, folder)
    return None if (target / "expected.npz").exists() else f"preparing {row.name}: {found.get('reason')}"


def _python(module: str, arguments: list[str], threads: int, folder: Path) -> dict[str, Any]:
    root = HERE.parents[2]
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(root), *([inherited] if inherited else [])]),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Compiled once cold, in the first round; the later rounds time the same code.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not done after {TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = [line for line in done.stderr.strip().splitlines() if line.strip()]
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    return {"status": "failed", "reason": f"{how}: {said[-1][:300] if said else 'said nothing'}"}


def _take(result: Result, found: dict[str, Any], *, first: bool) -> None:
    """One process's report: the worst error and memory, the first round's first call, the times."""
    result.status, result.reason = found["status"], found.get("reason")
    if result.status == "failed":
        return
    result.error = max(result.error or 0.0, found["error"])
    result.peak_mb = max(result.peak_mb or 0.0, found["peak_mb"])
    result.imported_mb = found["imported_mb"]
    result.packed_mb = found.get("packed_mb")
    for name in ("import_s", "load_s"):
        before = getattr(result, name)
        setattr(result, name, found[name] if before is None else min(before, found[name]))
    if first:
        result.first_s = found["first_s"]
    if "median_ms" in found:
        result.processes_ms.append(found["median_ms"])
        result.best_ms = min(result.best_ms or float("inf"), found["best_ms"])
        result.faults = found["faults"]
        result.cpus = max(result.cpus or 0.0, found["cpus"])
        result.others = max(result.others or 0.0, found["others"])
