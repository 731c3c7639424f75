"""One contender on one row, alone in this process: ``python -m peers.worker ROW CONTENDER THREADS SECONDS FOLDER``.

It imports, loads, calls once and checks the answer, and only then times. Its last line of output is one JSON object.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import contenders, exported, measure, rows

#: What a process may use beyond its threads: the interpreter's own, and an engine's housekeeping.
SPARE_CPUS = 0.15


def run(row: rows.Row, contender: contenders.Contender, threads: int, seconds: float, folder: Path) -> dict[str, Any]:
    """What the driver gets to know about this process."""
    start = time.perf_counter()
    for package in contender.needs:
        importlib.import_module(package)
    found: dict[str, Any] = {"import_s": time.perf_counter() - start}
    found["imported_mb"], _ = measure.memory_mb()

    loaded = contender.load(row, folder, threads)
    start = time.perf_counter()
    result = loaded.call()
    found["first_s"] = time.perf_counter() - start
    found["load_s"] = loaded.load_s

    # Before the check, whose float64 copies are not the contender's. The second call settles torch.compile; our own
    # program chooses in it, and touches the memory that it keeps in the third.
    for _ in range(3):
        loaded.call()
    _, found["peak_mb"] = measure.memory_mb()
    if loaded.packed_bytes is not None:
        found["packed_mb"] = loaded.packed_bytes() / 1e6
    expected = exported.arrays_of(folder / "expected.npz")
    found["error"] = measure.worst_error(loaded.arrays(result), expected)
    found["status"] = "ok" if found["error"] <= measure.TOLERANCE[contender.tolerance] else "wrong"
    if seconds > 0 and found["status"] == "ok":
        loaded.call()  # The check has let the allocator give back pages, which are new to the process now.
        found.update(measure.time_calls(loaded.call, seconds))
        if found["cpus"] > threads + SPARE_CPUS:
            raise RuntimeError(f"threads: expected {threads}, got {found['cpus']:.2f} CPUs kept busy")
    found["torch"] = "torch" in sys.modules
    return found


def main() -> None:
    """Reads the command line, runs, prints; a failure is a result too."""
    row, contender, threads, seconds, folder = sys.argv[1:]
    try:
        found = run(rows.by_name(row), contenders.by_name(contender), int(threads), float(seconds), Path(folder))
    except Exception as problem:
        reason = str(problem).strip().splitlines() or [""]
        found = {"status": "failed", "reason": f"{type(problem).__name__}: {reason[0][:300]}"}
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
