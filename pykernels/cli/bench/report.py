"""Tables on the terminal, and one JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pykernels.cli.bench.driver import Plan, Result
from pykernels.cli.bench.machine import Peaks
from pykernels.cli.bench.ops import Timing
from pykernels.cli.bench.peers.contenders import CONTENDERS
from pykernels.cli.bench.peers.rows import by_name

SCHEMA = 1


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def ratio(value: float | None) -> str:
    """Green where it is a win, red where it is a loss, plain where it is a tie (within 10 %)."""
    if value is None:
        return "-"
    colour = "green" if value > 1.1 else "red" if value < 1 / 1.1 else "default"
    return f"[{colour}]{value:.2f}x[/{colour}]"


def row_table(results: list[Result]) -> Table:
    """Every contender on one row at one thread count, the fastest first, the ones without a time last."""
    first = results[0]
    table = Table(title=f"{first.row}, {first.threads} thread{'s'[: first.threads > 1]}", title_justify="left")
    baseline = by_name(first.row).baseline
    columns = ["ms", f"{baseline}/it", "best ms", "best/best", "spread", "GFLOP/s", "error", "faults"]
    columns += ["import s", "load s", "1st call s", "peak MB", "packed MB"]
    table.add_column("contender")
    for column in columns:
        table.add_column(column, justify="right")
    for r in sorted(results, key=lambda r: r.median_ms or float("inf")):
        if r.status in ("skipped", "failed"):
            table.add_row(r.contender, f"[yellow]{r.status}[/yellow]")
            continue
        wrong = r.status == "wrong"
        table.add_row(
            r.contender,
            "[bold red]WRONG[/bold red]" if wrong else number(r.median_ms),
            ratio(r.ratio),
            number(r.best_ms),
            ratio(r.best_ratio),
            "-" if r.spread is None else f"{100 * r.spread:.0f}%",
            number(r.gflops),
            number(r.error, 2),
            number(r.faults),
            number(r.import_s, 2),
            number(r.load_s, 2),
            number(r.first_s, 2),
            number(r.peak_mb),
            number(r.packed_mb),
        )
    reasons: dict[str, list[str]] = {}
    for r in results:
        if r.reason:
            reasons.setdefault(f"{r.status}: {r.reason}", []).append(r.contender)
    lines = [f"{', '.join(names)} {why}" for why, names in reasons.items()]
    if (others := max((r.others or 0.0) for r in results)) + first.threads > (os.cpu_count() or 1) + 0.1:
        lines.append(f"NOT QUIET: others kept up to {others:.1f} CPUs busy; believe the best calls, not the medians")
    table.caption = escape("\n".join(lines)) or None
    table.caption_justify = "left"
    return table


def summary_table(results: list[Result], threads: int) -> Table:
    """Contenders down, rows across."""
    mine = [r for r in results if r.threads == threads]
    rows = list(dict.fromkeys(r.row for r in mine))
    says = "median ms, baseline / it, and in brackets the same of the best calls"
    table = Table(title=f"{threads} thread{'s'[: threads > 1]}: {says}", title_justify="left")
    table.add_column("contender")
    for row in rows:
        table.add_column(row, justify="right")
    for contender in CONTENDERS:
        found = {r.row: r for r in mine if r.contender == contender.name}
        if not any(r.median_ms or r.status == "wrong" for r in found.values()):
            continue
        table.add_row(contender.name, *(_cell(found.get(row)) for row in rows))
    return table


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if result.median_ms is None:
        return "[bold red]WRONG[/bold red]" if result.status == "wrong" else result.status
    return f"{number(result.median_ms)} {ratio(result.ratio)} \\[{number(result.best_ms)} {ratio(result.best_ratio)}]"


def ops_table(timings: list[Timing], peaks: Peaks) -> Table:
    """Every op sample: eager, ours, and how near ours comes to what bounds it."""
    roofs = f"{peaks.gflops:.0f} GFLOP/s, {peaks.gbps:.1f} GB/s with {peaks.threads} thread{'s'[: peaks.threads > 1]}"
    table = Table(title=f"ops, float32; the machine's roofs: {roofs}", title_justify="left")
    for column in ("op", "sample"):
        table.add_column(column)
    for column in ("error", "eager ms", "ours ms", "eager/ours", "GFLOP/s", "of peak", "GB/s", "of its roof"):
        table.add_column(column, justify="right")
    for t in timings:
        if t.ours_ms is None:
            table.add_row(t.op, t.sample, number(t.error, 2), f"[yellow]{escape(t.reason or '')}[/yellow]")
            continue
        of_peak = "-" if t.gflops is None else f"{100 * t.gflops / peaks.gflops:.0f}%"
        of_roof = "-" if t.of_roof is None else f"{100 * t.of_roof:.0f}%"
        cells = (number(t.eager_ms), number(t.ours_ms), ratio(t.ratio), number(t.gflops), of_peak)
        table.add_row(t.op, t.sample, number(t.error, 2), *cells, number(t.gbps), of_roof)
    return table


def memory_table(results: list[Result]) -> Table:
    """Issue: peak(optimised) <= peak(eager) + packed weights."""
    table = Table(title="peak memory of the process, MB", title_justify="left")
    table.add_column("model")
    for column in ("eager", "ours", "packed weights", "ours - eager - packed", ""):
        table.add_column(column, justify="right")
    for row, eager, ours in pairs(results):
        if eager.peak_mb is None or ours.peak_mb is None:
            table.add_row(row, number(eager.peak_mb), number(ours.peak_mb), "", "", eager.reason or ours.reason)
            continue
        over = ours.peak_mb - eager.peak_mb - (ours.packed_mb or 0.0)
        verdict = "[green]within[/green]" if over <= 0 else "[red]over[/red]"
        table.add_row(row, *(number(v, 4) for v in (eager.peak_mb, ours.peak_mb, ours.packed_mb, over)), verdict)
    return table


def pairs(results: list[Result]) -> list[tuple[str, Result, Result]]:
    """(row, eager, ours) of every row that has both."""
    found = {(r.row, r.contender): r for r in results}
    rows = dict.fromkeys(r.row for r in results)
    return [(row, found[row, "eager"], found[row, "ours"]) for row in rows if (row, "ours") in found]


def write_json(path: Path, machine: dict[str, Any], plan: Plan, results: list[Result]) -> None:
    """The schema that `tests/cli/test_bench.py` pins: machine and software, how it was measured, the results."""
    method = {"rounds": plan.rounds, "seconds": plan.seconds, "alone": True, "ratio": "median of paired rounds"}
    head = json.dumps({"schema": SCHEMA, "machine": machine, "method": method}, indent=1)
    # One result a line: small, and a change of one shows as one.
    lines = ",\n  ".join(json.dumps(r.as_json()) for r in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-2]},\n "results": [\n  {lines}\n ]\n}}\n')


def console() -> Console:
    """Wide enough for a table where the output goes to a file."""
    return Console() if Console().is_terminal else Console(width=180)
