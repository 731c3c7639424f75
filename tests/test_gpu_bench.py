"""bench/gpu.py: the whole script runs on the CPU with tiny shapes, so that its first GPU is not its first run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benches are not beside the tests")


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    return gpu


def test_the_driver_runs_its_sections_and_writes_one_file(tmp_path):
    sections = ("build", "floors", "int8", "triton")
    done = subprocess.run(
        [sys.executable, str(BENCH / "gpu.py"), "--dry-run", "--only", ",".join(sections), "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert {name: s["outcome"] for name, s in found["sections"].items()} == dict.fromkeys(sections, "ok")
    assert found["commit"]
    assert set(found["floors"]) == {"copy GB/s", "fp16 TFLOP/s", "bf16 TFLOP/s", "int8 TOP/s"}
    (row,) = found["rows"]
    assert row["ratio"] > 0
    assert row["floor us"] > 0
    for own in ("ours", "ours, Triton"):
        assert row["contenders"][own]["error"] <= row["tolerance"]
    assert row["peer"].startswith("_int_mm")
    assert row["row"] in done.stdout


@pytest.mark.parametrize("section", ["lstm", "conv", "training", "models", "compiled"])
def test_every_section_runs(driver, section, tmp_path):
    from gpu_rows import run_section

    torch._dynamo.reset()
    path = tmp_path / "rows.json"
    assert run_section(section, path, 300.0, True) == 0
    rows = json.loads(path.read_text())["rows"]
    assert rows
    for row in rows:
        assert all(row["contenders"][own]["us"] > 0 for own in ("ours", "ours, Triton"))
        assert not row.get("peer", "").startswith("ours")
    assert driver.table({"rows": rows, "commit": "c", "date": "d"}).count("\n") >= len(rows)


def test_a_wrong_answer_is_a_failure_and_a_wrong_peer_is_named(driver):
    from gpu_rows.measure import Bench

    bench = Bench(True, time.monotonic() + 60)
    right = torch.ones(3)
    row = bench.row({"ours": [lambda: right], "peer": [lambda: right * 2]}, lambda: right, 1e-3)
    assert "relative L2 error 1" in row["contenders"]["peer"]["problem"]
    assert "peer" not in row
    with pytest.raises(ArithmeticError, match=r"relative L2 error 1, allowed 0\.001"):
        bench.row({"ours": [lambda: right * 2]}, lambda: right, 1e-3)


def test_what_hangs_or_fails_is_stopped_and_told(driver, tmp_path):
    options = driver.argparse.Namespace(
        only="", no_build=False, no_tests=False, out=tmp_path, dry_run=True, commit="c", budget=100
    )
    run = driver.Run(options)
    assert run._call("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5) == "stopped after 0 s"
    assert (
        run._call("bad", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60) == "failed with exit code 3"
    )
    assert run.found["logs"]["bad"] == "why"
