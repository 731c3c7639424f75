"""Everything that a GPU is needed for, in one call of less than nine minutes: build, test, time.

    python3 bench/gpu.py                        # on a machine with an NVIDIA GPU; no network is needed
    python3 bench/gpu.py --only int8,lstm       # some sections; --no-build and --no-tests leave those out
    python3 bench/gpu.py --dry-run              # the same plan on the CPU with tiny shapes: does the script itself run?

It needs torch >= 2.11 (a CUDA build, which brings Triton), nvcc 13, cmake, ninja, pybind11, setuptools, pytest. It
builds in place, runs the tests that need a GPU, and then times the rows of ``bench/gpu_rows``: ours, in CUDA C++ and in
Triton, against cuDNN, torch._int_mm, nn.LSTM and torch.compile, the answer checked first, the contenders interleaved,
the inputs rotated past L2, medians by CUDA events. Triton's own tests come last: each kernel is compiled first.

Each section is a process of its own with a time limit, so that a crash, which ends a process' CUDA for good, or a slow
compilation costs that section and no other. The JSON is written after every section: device, driver, versions, commit,
the floors measured, every row. A short table comes last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

BUDGET = 530  # seconds, of the nine minutes
#: Section -> the most that it may take. What one leaves over is there for the next.
LIMITS = {
    "build": 260, "tests": 150, "floors": 30, "int8": 70, "lstm": 70, "conv": 60, "training": 40, "models": 60,
    "compiled": 120, "triton": 120,
}  # fmt: skip


def main() -> int:
    """Runs the sections; 0 if every one ran to its end and every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"sections, of {','.join(LIMITS)}")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--commit", default="", help="for the JSON, where the tree has no .git")
    parser.add_argument("--out", type=Path, help="folder for the JSON and the logs; $OUT, or bench/results")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out or Path(os.environ.get("OUT") or ROOT / "bench/results")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.child:
        return child(options)
    return Run(options).all()


def child(options: argparse.Namespace) -> int:
    """One timed section, in this process; its rows go to a file as they come."""
    from gpu_rows import run_section

    return run_section(options.child, options.out / f"{options.child}.json", options.seconds, options.dry_run)


class Run:
    """One run: what it has found so far, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        wanted = [s for s in options.only.split(",") if s] or list(LIMITS)
        if unknown := set(wanted) - set(LIMITS):
            sys.exit(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
        left_out = ["build"] * options.no_build + ["tests"] * options.no_tests
        self.sections = [s for s in LIMITS if s in wanted and s not in left_out]
        now = datetime.now(timezone.utc)
        kind = "dry" if options.dry_run else "gpu"
        self.path = options.out / f"{kind}-{now:%Y-%m-%d-%H%M}.json"
        self.work = Path(tempfile.mkdtemp(prefix="pykernels-gpu-"))  # rows and logs of the sections
        self.found: dict[str, Any] = {
            "date": now.isoformat(timespec="seconds"),
            "commit": options.commit or _commit(),
            "dry run": options.dry_run,
            "sections": {},
            "rows": [],
        }

    def left(self) -> float:
        """Seconds."""
        return self.options.budget - (time.monotonic() - self.began)

    def all(self) -> int:
        """Every section in turn, then the table."""
        for section in self.sections:
            limit = min(LIMITS[section], self.left())
            began = time.monotonic()
            outcome = "no time left" if limit < 5 else self._section(section, limit)
            self.found["sections"][section] = {"outcome": outcome, "seconds": round(time.monotonic() - began, 1)}
            self.path.write_text(json.dumps(self.found, indent=1))
            logs = (f"==== {log.stem}\n{log.read_text(errors='replace')}" for log in sorted(self.work.glob("*.log")))
            self.path.with_suffix(".log").write_text("\n".join(logs))
            print(f"{section}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
            if section == "build" and outcome != "ok":
                break
        print(table(self.found))
        print(f"written: {self.path}")
        good = all(s["outcome"] == "ok" for s in self.found["sections"].values())
        return 0 if good and all(not row.get("problem") for row in self.found["rows"]) else 1

    def _section(self, section: str, limit: float) -> str:
        if section == "build":
            return self._build(limit)
        if section in ("tests", "triton"):
            return self._tests(section, limit)
        command = [
            sys.executable, str(Path(__file__).resolve()), "--child", section,
            "--seconds", str(limit - 5), "--out", str(self.work), *(["--dry-run"] * self.options.dry_run),
        ]  # fmt: skip
        rows = self.work / f"{section}.json"
        outcome = self._call(section, command, limit)
        if rows.exists():
            told = json.loads(rows.read_text())
            self.found["rows"] += told.pop("rows")
            self.found.update(told)
        return outcome

    def _build(self, limit: float) -> str:
        jobs = str(os.cpu_count() or 1)
        environment = {"PK_CUDA": "1", "MAX_JOBS": jobs}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        if self.options.dry_run:
            command = [sys.executable, "setup.py", "--version"]
        return self._call("build", command, limit, environment)

    def _tests(self, section: str, limit: float) -> str:
        """Those of the CUDA kernels, or, last, for each one is compiled first, those of Triton's in float16."""
        chosen = ["-m", "cuda"] if section == "tests" else ["-m", "triton", "-k", "float16"]
        command = [sys.executable, "-m", "pytest", "-q", *chosen, "-p", "no:cacheprovider", "--tb=short"]
        if importlib.util.find_spec("xdist") is not None:  # the references on the CPU take most of the time
            command += ["-n", "4"]
        only = {"tests": "tests/test_cuda.py", "triton": "tests/ops/test_triton.py"}[section]
        command += ["--collect-only", only] if self.options.dry_run else ["tests"]
        outcome = self._call(section, command, limit)
        log = (self.work / f"{section}.log").read_text()
        name = "tests" if section == "tests" else "triton tests"
        if counts := re.findall(r"^=* ?((?:\d+ \w+,? ?)+) in [\d.]+s.*$", log, re.M):
            self.found[name] = counts[-1].strip()
        self.found[f"failed {name}"] = re.findall(r"^FAILED (\S+)", log, re.M)[:100]
        return outcome

    def _call(self, name: str, command: list[str], limit: float, environment: dict[str, str] | None = None) -> str:
        """Runs it with its output in a log; "ok", or what went wrong."""
        log = self.work / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )  # fmt: skip
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, 9)  # its compilers too
                process.wait()
        if code == 0:
            return "ok"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        print(f"--- {name}, the end of what it said ---\n{tail}\n---", flush=True)
        self.found.setdefault("logs", {})[name] = tail
        return f"stopped after {limit:.0f} s" if code is None else f"failed with exit code {code}"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(found: dict[str, Any]) -> str:
    """The rows in few words: ours, the best peer, how often ours is faster, the share of the floor."""
    lines = [
        "",
        f"{found.get('device', {}).get('name', 'no device')}, commit {found['commit'][:12]}, {found['date']}",
        f"floors: {json.dumps(found.get('floors', {}))}; tests: {found.get('tests', 'not run')}; "
        f"Triton's: {found.get('triton tests', 'not run')}",
        f"{'row':<52}{'ours us':>10}{'Triton us':>10}{'peer us':>10} {'ratio':>6} {'floor':>6}  best peer",
    ]
    for row in found["rows"]:
        if said := row.get("problem"):
            lines.append(f"{row['row']:<52} {said[:100]}")
            continue
        ours, peer = row["contenders"]["ours"]["us"], row.get("peer")
        best = row["contenders"][peer]["us"] if peer else float("nan")
        share = f"{row['share of floor']:6.2f}" if row.get("share of floor") else "     -"
        triton = row["contenders"].get("ours, Triton", {}).get("us", float("nan"))
        lines.append(
            f"{row['row']:<52}{ours:10.1f}{triton:10.1f}{best:10.1f} {row.get('ratio', 0):6.2f} {share}  {peer}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
