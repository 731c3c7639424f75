"""The figures of the README and of the page of networks are those of the committed measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "bench/results/zoo-avx2.json"
RESULTS = [ROOT / f"bench/results/peers-{table}-avx2.json" for table in ("models", "networks")]
ENGINES = {"ort": "ONNX Runtime", "ov": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN", "executorch": "ExecuTorch"}


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


def table_in(page):
    """The lines of its table of networks."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| network |"))
    told = [*lines[start + 2 :], ""]
    return told[: next(i for i, line in enumerate(told) if not line.startswith("|"))]


def test_the_table_is_that_of_the_committed_measurements():
    readme = ROOT / "README.md"
    if not readme.is_file() or not all(path.is_file() for path in RESULTS):
        pytest.skip("no README or no results beside the tests")
    results = [r for path in RESULTS for r in json.loads(path.read_text())["results"]]
    assert results
    assert table_in(readme) == table_of(results)


def test_the_page_of_networks_is_that_of_the_sweep():
    page = ROOT / "docs/networks.md"
    if not page.is_file() or not SWEEP.is_file():
        pytest.skip("no page of networks or no sweep beside the tests")
    rows = json.loads(SWEEP.read_text())["results"]
    assert rows
    rows.sort(key=lambda row: -row["ratio"])
    assert table_in(page) == [f"| {row['name']}{' *' * (row['status'] != 'ok')} | {row['ratio']:.2f} |" for row in rows]
