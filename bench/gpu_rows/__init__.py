"""The rows of ``bench/gpu.py``: `measure` times contenders against each other, the other files say who and what."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_rows.measure import Bench, Rows


def run_section(name: str, path: Path, seconds: float, dry_run: bool) -> int:
    """Runs one section's rows until they are done or the time is out; 1 if a row failed."""
    bench = Bench(dry_run, time.monotonic() + seconds)
    found: dict[str, Any] = {"rows": []}
    if name == "floors":
        found["device"] = bench.describe()
        path.write_text(json.dumps(found))
    bench.use_floors(path.parent)
    if name == "floors":
        found["floors"] = bench.floors
        path.write_text(json.dumps(found))
        return 0
    good = True
    for title, make in rows(name, bench):
        if bench.left() < 3:
            found["rows"].append({"row": title, "problem": "no time left"})
            continue
        try:
            row = {"row": title, **make()}
        except Exception as problem:  # the next row may do better
            traceback.print_exc()
            row = {"row": title, "problem": f"{type(problem).__name__}: {problem}"}
        good = good and not row.get("problem")
        found["rows"].append(row)
        path.write_text(json.dumps(found))
        print(json.dumps(row), flush=True)
    path.write_text(json.dumps(found))
    return 0 if good else 1


def rows(section: str, bench: Bench) -> Rows:
    """The rows of a section."""
    from gpu_rows import compiled, conv, int8, lstm, models

    sections = {
        "int8": int8.rows,
        "lstm": lstm.rows,
        "conv": conv.rows,
        "training": conv.training_rows,
        "models": models.rows,
        "compiled": compiled.rows,
    }
    return sections[section](bench)
