"""What the commands do, once their arguments are understood."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pykernels.cli.bench import report
from pykernels.cli.bench.driver import Plan, Result, measure_row, workspace
from pykernels.cli.bench.machine import describe, measure_peaks
from pykernels.cli.bench.ops import bench_samples, time_ops
from pykernels.cli.bench.peers.contenders import CONTENDERS, Contender, why_missing
from pykernels.cli.bench.peers.contenders import by_name as contender_by_name
from pykernels.cli.bench.peers.rows import Row, select

Chosen = list[tuple[Row, list[Contender]]]


def choose(table: str, patterns: list[str], names: list[str]) -> Chosen:
    """Each row with the contenders that can run it, its baseline always first; `ValueError` for a wrong name."""
    asked = {contender_by_name(name).name for name in names}
    return [
        (row, [c for c in CONTENDERS if c.takes(row) and (not asked or c.name in asked or c.name == row.baseline)])
        for row in select(table, patterns)
    ]


def show_listing(chosen: Chosen) -> None:
    """The rows and who takes part in them; what is missing and why."""
    console = report.console()
    table = Table("row", "GFLOP", "contenders")
    for row, contenders in chosen:
        table.add_row(row.name, report.number(row.flops / 1e9), " ".join(c.name for c in contenders))
    console.print(table)
    table = Table("contender", "what it is", "here")
    for contender in CONTENDERS:
        table.add_row(contender.name, contender.says, escape(why_missing(contender) or "yes"))
    console.print(table)


def run_peers(chosen: Chosen, threads: list[int], rounds: int, seconds: float, json: Path | None) -> None:
    """A table for every row and thread count as it is done, a summary at the end; the JSON grows with each row."""
    plan, console, machine = Plan(rounds, seconds), report.console(), describe()
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, commit {machine['commit']}")
    found = []
    for results in _measure(chosen, threads, plan):
        found.extend(results)
        console.print(report.row_table(results))
        if json is not None:
            report.write_json(json, machine, plan, found)
    for count in threads:
        console.print(report.summary_table(found, count))
    if json is not None:
        console.print(f"written to {json}")


def run_memory(chosen: Chosen, threads: int, rounds: int, json: Path | None) -> None:
    """Loads and calls each model twice, eager and optimised, and compares the processes' peaks."""
    plan = Plan(rounds, seconds=0.0)
    results = [r for each in _measure(chosen, [threads], plan) for r in each]
    report.console().print(report.memory_table(results))
    if json is not None:
        report.write_json(json, describe(), plan, results)


def run_startup(chosen: Chosen, rounds: int) -> None:
    """Imports in fresh processes, in turn; then `pk.optimize` and the first call of each model."""
    console = report.console()
    alone = [_import_seconds("torch") for _ in range(rounds)]
    added = [_import_seconds("pykernels", after="torch") for _ in range(rounds)]
    console.print(
        f"import torch {statistics.median(alone):.2f} s; import pykernels adds {statistics.median(added):.3f} s"
        f" (medians of {rounds} processes; 0.3 s allowed)"
    )
    results = [r for each in _measure(chosen, [torch.get_num_threads()], Plan(rounds, 0.0)) for r in each]
    table = Table("model", "pk.optimize s", "first call s", "together s", "", title="start-up", title_justify="left")
    for row, _, ours in report.pairs(results):
        if ours.load_s is None or ours.first_s is None:
            table.add_row(row, ours.reason)
            continue
        together = ours.load_s + ours.first_s
        verdict = "[green]under 1 s[/green]" if together < 1 else "[red]over 1 s[/red]"
        table.add_row(row, *(f"{v:.3f}" for v in (ours.load_s, ours.first_s, together)), verdict)
    console.print(table)


def run_ops(op: str | None, threads: list[int], seconds: float) -> None:
    """In this process; `ValueError` for an op that there is not."""
    pairs = bench_samples(op)
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            peaks = measure_peaks()
            with _progress(len(pairs)) as advance:
                timings = []
                for timing in time_ops(pairs, peaks, seconds):
                    advance(f"{timing.op} {timing.sample}")
                    timings.append(timing)
            report.console().print(report.ops_table(timings, peaks))
    finally:
        torch.set_num_threads(before)


def _measure(chosen: Chosen, threads: list[int], plan: Plan) -> Iterator[list[Result]]:
    steps = sum(1 + len(contenders) * plan.rounds for _, contenders in chosen) * len(threads)
    with workspace() as folder, _progress(steps) as advance:
        for row, contenders in chosen:
            for count in threads:
                yield measure_row(row, contenders, count, plan, folder, advance)


def _import_seconds(package: str, after: str = "sys") -> float:
    code = f"import {after}, time; t = time.perf_counter(); import {package}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout.split()[-1])


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # To stderr, and not at all into a file: the tables are the output.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=steps)

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=what)

        yield advance
