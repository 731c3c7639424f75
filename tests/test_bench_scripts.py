"""The scripts of bench/ that no command runs: each with the least it can measure, so that none breaks unnoticed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.harness import native

BENCH = Path(__file__).parent.parent / "bench"
pytestmark = [native, pytest.mark.skipif(not BENCH.is_dir(), reason="the benches are not beside the tests")]


def run(name, monkeypatch, tmp_path, *options):
    """The rows that the script writes."""
    out, threads = tmp_path / "rows.json", torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options, "--out", str(out)])
    try:
        importlib.import_module(name).main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["results"]
    assert rows
    return rows


def test_layers(monkeypatch, tmp_path):
    rows = run("layers", monkeypatch, tmp_path, "--only", "240->64 1x1/1 @1", "--rounds", "1")
    assert {(row["activation"], row["layout"]) for row in rows} == {
        (activation, layout)
        for activation in ("none", "relu", "hardswish", "silu")
        for layout in ("contiguous", "channels_last")
    }
    assert all(row["what"] == "240->64 1x1/1 @1" and row["ratio"] > 0 for row in rows)


def test_linears(monkeypatch, tmp_path):
    rows = run("linears", monkeypatch, tmp_path, "--rows", "2", "--shapes", "64-10", "--rounds", "1")
    assert len(rows) == 8
    assert all(row["ratio"] > 0 for row in rows)


def test_compiled(monkeypatch, tmp_path):
    rows = run(
        "compiled", monkeypatch, tmp_path, "--only", "early_exit", "--without", "inductor,compiled_fast,aoti",
        "--seconds", "0",
    )  # fmt: skip
    assert {row["contender"]: row["status"] for row in rows} == {
        "eager": "ok", "fast": "ok", "backend": "ok", "exported": "raised",  # torch.export follows no branch
    }  # fmt: skip


def test_zoo(monkeypatch, tmp_path):
    steps = tmp_path / "steps"
    rows = run("zoo", monkeypatch, tmp_path, "--only", "pk:tcn", "--seconds", "0", "--steps", str(steps))
    assert all(row["status"] == "ok" and row["ratio"] > 0 for row in rows)
    assert [row["name"] for row in rows] == ["pk:tcn"]
    assert [path.name for path in steps.iterdir()] == ["pk-tcn.txt"]


def test_weights(monkeypatch, tmp_path):
    rows = run("weights", monkeypatch, tmp_path, "--only", "linear_1x512x512,lstm_128", "--rounds", "1")
    errors = {(row["row"], row["contender"]): row["error"] for row in rows}
    for subject in ("linear_1x512x512", "lstm_128_b1_t64"):
        assert errors[subject, "float"] < 1e-5 < errors[subject, "weight-only"] < errors[subject, "dynamic"]
    assert all(row["best_ms"] > 0 for row in rows)


def test_tuning(monkeypatch, tmp_path):
    rows = run("tuning", monkeypatch, tmp_path, "--spreads", "0", "--size", "32")
    assert [(row["activation"], row["per_channel"]) for row in rows] == [
        (activation, per_channel) for activation in ("relu6", "relu") for per_channel in (True, False)
    ]
    assert all(0 < row[name] < 0.1 for row in rows for name in ("neither", "equalize", "correct_bias", "both"))
