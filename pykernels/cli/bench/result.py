"""The row of every bench: one contender on one subject; and its JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pykernels._measure import interleaved

SCHEMA = 1


@dataclass
class Result:
    """One contender on one row at one thread count. Times in ms, start-up in s, memory in MB."""

    row: str
    contender: str
    threads: int
    batch: int | None
    flops: int
    status: str = "ok"  # ok | wrong | failed | skipped
    reason: str | None = None
    error: float | None = None
    median_ms: float | None = None
    best_ms: float | None = None
    #: (slowest - fastest) / median of the processes' medians.
    spread: float | None = None
    #: Baseline time / this time; above one is faster.
    ratio: float | None = None
    #: The same of the best calls: what to look at where ``others`` was not small.
    best_ratio: float | None = None
    gflops: float | None = None
    #: Read and written, and the share of the roof that bounds the op.
    gbps: float | None = None
    of_roof: float | None = None
    #: CPUs that the contender kept busy, and that other processes did meanwhile, each the worst of the rounds.
    cpus: float | None = None
    others: float | None = None
    faults: float | None = None
    import_s: float | None = None
    load_s: float | None = None
    #: The first process's first call: with torch.compile, the cold compilation.
    first_s: float | None = None
    #: Resident after the imports, and at the peak of loading and calling.
    imported_mb: float | None = None
    peak_mb: float | None = None
    packed_mb: float | None = None
    #: Median of each process, in the order of the rounds.
    processes_ms: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Rounded to what can be meant; empty fields left out."""
        found = {k: _rounded(v) for k, v in asdict(self).items()}
        return {k: v for k, v in found.items() if v is not None and v != []}

    def sum_up(self, baseline: Result | None) -> None:
        """Median, spread and rate of the processes, and the ratios: those of the rounds, in pairs."""
        if self.status != "ok" or not self.processes_ms:
            return
        self.median_ms = statistics.median(self.processes_ms)
        self.spread = (max(self.processes_ms) - min(self.processes_ms)) / self.median_ms
        self.gflops = self.flops / self.median_ms / 1e6
        if baseline is not None and baseline.best_ms and self.best_ms:
            pairs = zip(baseline.processes_ms, self.processes_ms, strict=False)
            self.ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            self.best_ratio = baseline.best_ms / self.best_ms


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def time_here(results: Sequence[Result], calls: Sequence[Callable[[], Any]], seconds: float, least: int = 3) -> None:
    """Times the calls in this process, in turn; the first result is the baseline.

    Use it only for contenders that share torch's pool: engines with pools of their own disturb each other in one
    process.
    """
    for result, times in zip(results, interleaved(calls, seconds, least=least), strict=True):
        result.processes_ms = [1e3 * statistics.median(times)]
        result.best_ms = 1e3 * min(times)
        result.sum_up(results[0])


def write_json(path: Path, machine: dict[str, Any], method: dict[str, Any], results: Iterable[Result]) -> None:
    """The schema that `tests/cli/test_bench.py` pins: machine and software, how it was measured, the results."""
    head = json.dumps({"schema": SCHEMA, "machine": machine, "method": method}, indent=1)
    # One result a line: small, and a change of one shows as one.
    lines = ",\n  ".join(json.dumps(r.as_json()) for r in results)
    path.write_text(f'{head[:-2]},\n "results": [\n  {lines}\n ]\n}}\n')
