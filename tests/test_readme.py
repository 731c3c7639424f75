"""The README's figures are those of the committed measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = [ROOT / f"bench/results/peers-{table}-avx2.json" for table in ("models", "networks")]
ENGINES = {"ort": "ONNX Runtime", "ov": "OpenVINO", "ncnn": "ncnn"}


def table_of(results):
    """The lines of the table: what it says for each row of the measurements, by its best calls."""
    best = {(r["row"], r["contender"], r["threads"]): r["best_ms"] for r in results if r["status"] == "ok"}
    lines = []
    for row in dict.fromkeys(r["row"] for r in results):
        cells = [row.removesuffix("_b1")]
        for threads in (1, 2):
            ours, eager = best[row, "ours", threads], best[row, "eager", threads]
            engine = min(ENGINES, key=lambda e: best.get((row, e, threads), float("inf")))
            ratio = best[row, engine, threads] / ours
            cells += [f"{eager / ours:.1f}", f"{ratio:.2f} ({ENGINES[engine]})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_the_table_is_that_of_the_committed_measurements():
    readme = ROOT / "README.md"
    if not readme.is_file() or not all(path.is_file() for path in RESULTS):
        pytest.skip("no README or no results beside the tests")
    results = [r for path in RESULTS for r in json.loads(path.read_text())["results"]]
    assert results
    lines = readme.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| network |"))
    told = lines[start + 2 :]
    told = told[: next(i for i, line in enumerate(told) if not line.startswith("|"))]
    assert told == table_of(results)
