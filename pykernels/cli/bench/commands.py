"""What ``pykernels bench peers``, ``memory``, ``startup`` and ``ops`` do."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from pykernels.cli._console import console as make_console
from pykernels.cli._console import heading, number, progress, table, wrote
from pykernels.cli.bench import report
from pykernels.cli.bench.driver import Plan, measure_row, workspace
from pykernels.cli.bench.machine import describe, measure_peaks
from pykernels.cli.bench.ops import bench_samples, time_op
from pykernels.cli.bench.peers.contenders import CONTENDERS, Contender, why_missing
from pykernels.cli.bench.peers.contenders import by_name as contender_by_name
from pykernels.cli.bench.peers.rows import Row, select
from pykernels.cli.bench.result import Result, write_json
from pykernels_cli._options import check_writable, one_thread_count, refusals, thread_counts

Chosen = list[tuple[Row, list[Contender]]]


def choose(table: str, rows: str, contenders: str) -> Chosen:
    """Each row with the contenders that can run it, the baseline first; `ValueError` for a wrong name."""
    asked = {contender_by_name(name).name for name in _words(contenders)}
    return [
        (row, [c for c in CONTENDERS if c.takes(row) and (not asked or c.name in asked or c.name == row.baseline)])
        for row in select(table, _words(rows))
    ]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def peers(
    table: str, rows: str, contenders: str, threads: str, repeats: int, seconds: float, json: Path | None, listing: bool
) -> None:
    """Compares pykernels with PyTorch's own ways and other engines, each alone in its process, in turn."""
    with refusals():
        counts, chosen = thread_counts(threads), choose(table, rows, contenders)
        check_writable("--json", json)
    console = make_console()
    if listing:
        _show_listing(console, chosen)
        return
    plan, machine = Plan(repeats, seconds), describe()
    heading(console, "bench peers")
    console.print(f"{machine['cores']} cores, load {machine['load']}, commit {machine['commit']}")
    found: list[Result] = []
    for results in _measure(console, chosen, counts, plan):
        found.extend(results)
        console.print(report.row_table(results))
        if json is not None:  # grows with each row
            write_json(json, machine, plan.as_json(), found)
    for count in counts:
        console.print(report.summary_table(found, count))
    if json is not None:
        wrote(console, json)


def _show_listing(console: Console, chosen: Chosen) -> None:
    """The rows and who takes part in them; what is missing and why."""
    shown = table("rows", "row", ">GFLOP", "contenders")
    for row, contenders in chosen:
        shown.add_row(row.name, number(row.flops / 1e9), " ".join(c.name for c in contenders))
    console.print(shown)
    shown = table("contenders", "contender", "what it is", "here")
    for contender in CONTENDERS:
        shown.add_row(contender.name, contender.says, escape(why_missing(contender) or "yes"))
    console.print(shown)


def memory(rows: str, threads: str, repeats: int, json: Path | None) -> None:
    """Peak memory of each optimised model, against eager's plus the packed weights."""
    with refusals():
        count, chosen = one_thread_count(threads), choose("models", rows, "ours")
        check_writable("--json", json)
    console, plan = make_console(), Plan(repeats, seconds=0.0)
    heading(console, "bench memory")
    results = [r for each in _measure(console, chosen, [count], plan) for r in each]
    console.print(report.memory_table(results))
    if json is not None:
        write_json(json, describe(), plan.as_json(), results)
        wrote(console, json)


def startup(rows: str, repeats: int) -> None:
    """What `import pykernels` adds to `import torch`, and how long pk.optimize with its first call takes."""
    with refusals():
        chosen = choose("models", rows, "ours")
    console, plan = make_console(), Plan(repeats, seconds=0.0)
    heading(console, "bench startup")
    alone = [_import_seconds("torch") for _ in range(repeats)]
    added = [_import_seconds("pykernels", after="torch") for _ in range(repeats)]
    console.print(
        f"import torch {statistics.median(alone):.2f} s; import pykernels adds {statistics.median(added):.3f} s"
        f" (medians of {repeats} processes; 0.3 s allowed)"
    )
    results = [r for each in _measure(console, chosen, [torch.get_num_threads()], plan) for r in each]
    console.print(report.startup_table(results))


def ops(op: str | None, threads: str, seconds: float, json: Path | None) -> None:
    """A quick table of every op's bench samples in this process: eager against ours, and the share of the roofs."""
    with refusals():
        counts, samples = thread_counts(threads), bench_samples(op)
        check_writable("--json", json)
    console, before = make_console(), torch.get_num_threads()
    heading(console, "bench ops")
    found: list[Result] = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            peaks = measure_peaks()
            results: list[Result] = []
            with progress(console, len(samples)) as advance:
                for spec, sample in samples:
                    advance(f"{spec.name} {sample.name}")
                    results += time_op(spec, sample, peaks, seconds)
            console.print(report.ops_table(results, peaks))
            found += results
    finally:
        torch.set_num_threads(before)
    if json is not None:
        method = {"rounds": 1, "seconds": seconds, "alone": False, "ratio": "of medians, calls in turn"}
        write_json(json, describe(), method, found)
        wrote(console, json)


def _measure(console: Console, chosen: Chosen, threads: list[int], plan: Plan) -> Iterator[list[Result]]:
    steps = sum(1 + len(contenders) * plan.rounds for _, contenders in chosen) * len(threads)
    with workspace() as folder, progress(console, steps) as advance:
        for row, contenders in chosen:
            for count in threads:
                yield measure_row(row, contenders, count, plan, folder, advance)


def _import_seconds(package: str, after: str = "sys") -> float:
    code = f"import {after}, time; t = time.perf_counter(); import {package}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout.split()[-1])
