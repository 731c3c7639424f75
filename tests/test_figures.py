"""README and docs say what the committed measurements say, and `tools/figures.py` says it right."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT, README = ROOT / "tools/figures.py", ROOT / "README.md"

pytestmark = pytest.mark.skipif(
    not (SCRIPT.is_file() and README.is_file()), reason="no tools/ or README.md beside the tests"
)


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages():
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def test_pages_and_picture_are_those_of_the_measurements():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_passage_has_its_place(figures):
    used = [name for page in pages() for _, name, _ in figures.MARKED.findall(page.read_text())]
    assert set(used) == set(figures.passages())
    assert all(page.read_text().count("<!-- figures: ") == page.read_text().count("<!-- end of") for page in pages())
    in_readme = {name for _, name, _ in figures.MARKED.findall(README.read_text())}
    assert {"peers", "provenance", "faster and slower", "sweep", "half precision", "memory"} <= in_readme


def test_the_readme_names_no_engine_but_in_what_the_script_writes(figures):
    by_hand = figures.MARKED.sub("", README.read_text())
    assert [name for name in figures.ENGINES.values() if name in by_hand] == []


def test_a_page_with_an_unknown_passage_is_an_error(figures):
    with pytest.raises(KeyError):
        figures.with_passages("<!-- figures: none -->\n\n<!-- end of figures -->\n", figures.passages())


#: Row -> contender -> best milliseconds with one thread and with two; None where it failed.
TIMES = {
    "resnet18_b1": {"eager": (40, 30), "ours": (20, 10), "mnn": (10, 12), "ort": (30, 20)},
    "crnn_b1": {"eager": (30, 20), "ours": (20, 10), "mnn": (None, 9.8), "ort": (24, 9)},
    "lstmlm_b1": {"eager": (21, 20), "ours": (20, 10), "mnn": (19, 10), "ort": (22, 11)},
}


@pytest.fixture
def peers(figures, monkeypatch, tmp_path):
    """`Peers` of two files in which `TIMES` is."""
    rows = [
        {
            "row": row,
            "contender": who,
            "threads": threads,
            "best_ms": ms,
            "error": 2e-7,
            "status": "failed" if ms is None else "ok",
        }
        for row, found in TIMES.items()
        for who, times in found.items()
        for threads, ms in zip((1, 2), times, strict=True)
    ]
    machine = {
        "cpu": "A CPU", "cores": 2, "commit": "0123456789ab+", "date": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.13.0", "MNN": "3", "onnxruntime": "1"},
    }  # fmt: skip
    for part, of_part in (("models", rows[:8]), ("networks", rows[8:])):
        text = json.dumps({"machine": machine, "method": {"rounds": 2}, "results": of_part})
        (tmp_path / f"peers-{part}-avx2.json").write_text(text)
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    return figures.Peers("avx2")


def test_the_table_has_the_best_calls(figures, peers):
    assert figures.peers_table(peers)[2:] == [
        "| resnet18 | 2.0 | 0.50 (MNN) | 3.0 | 1.20 (MNN) |",
        "| crnn | 1.5 | 1.20 (ONNX Runtime) | 2.0 | 0.90 (ONNX Runtime) |",
        "| lstmlm | 1.1 | 0.95 (MNN) | 2.0 | 1.00 (MNN) |",
    ]


def test_engines_that_are_ahead_are_named_with_where(figures, peers):
    assert figures.losses(peers) == (
        "- **Slower than an engine** (the engine's time as a share of ours). "
        "With one thread an engine is faster on 2 of these 3 networks: MNN on resnet18 and lstmlm (0.50 to 0.95). "
        "With two threads an engine is faster on 1 of these 3 networks: ONNX Runtime on crnn (0.90)."
    )
    peers.best |= {key: 100.0 for key in peers.best if key[1] in ("mnn", "ort")}
    assert figures.losses(peers).endswith(
        "With one thread no engine is faster on any of these networks. "
        "With two threads no engine is faster on any of these networks."
    )


def test_what_did_not_run_is_said(figures, peers):
    said = figures.provenance(peers)
    assert "A CPU (Zen 3, AVX2, two virtual cores on a machine that others use too), torch 2.13.0" in said
    run = "two rounds at commit 0123456789ab"
    assert f"2 January 2026, {run} and {run}. The largest relative L2 error of ours is 2.0e-07." in said
    assert said.endswith("OpenVINO, ncnn and ExecuTorch did not run.")


def test_of_folds_the_means_and_the_spread_are_told(figures, monkeypatch, tmp_path):
    scores = {"float32": (99.0, 98.0), "int8": (98.5, 98.5)}
    rows = [
        {"task": "digits", "unit": "points", "form": form, "fold": fold, "score": score}
        for form, found in scores.items()
        for fold, score in enumerate(found)
    ]
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    (tmp_path / "int8-accuracy.json").write_text(json.dumps({"results": rows}))
    lines = figures.accuracy_table()
    assert lines[2] == "| digits, points | 98.50 | +0.00 (-0.50 to +0.50) |"
    assert "means over 2 folds" in " ".join(lines)
    (tmp_path / "int8-accuracy.json").write_text(json.dumps({"results": [r for r in rows if r["fold"] == 0]}))
    assert figures.accuracy_table()[2] == "| digits, points | 99.00 | -0.50 |"
