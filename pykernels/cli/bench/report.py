"""The benches' tables on the terminal."""

from __future__ import annotations

import os

from rich.markup import escape
from rich.table import Table

from pykernels.cli._console import number, percent, ratio, table
from pykernels.cli._console import threads as told
from pykernels.cli.bench.machine import Peaks
from pykernels.cli.bench.peers.contenders import CONTENDERS
from pykernels.cli.bench.peers.rows import by_name
from pykernels.cli.bench.result import Result

WRONG = "[bold red]WRONG[/bold red]"


def row_table(results: list[Result]) -> Table:
    """Every contender on one row at one thread count, the fastest first, the ones without a time last."""
    first = results[0]
    columns = [">ms", f">{by_name(first.row).baseline}/it", ">best ms", ">best/best", ">spread", ">GFLOP/s", ">error"]
    columns += [">faults", ">import s", ">load s", ">1st call s", ">peak MB", ">packed MB"]
    shown = table(f"{first.row}, {told(first.threads)}", "contender", *columns)
    for r in sorted(results, key=lambda r: r.median_ms or float("inf")):
        if r.status in ("skipped", "failed"):
            shown.add_row(r.contender, f"[yellow]{r.status}[/yellow]")
            continue
        shown.add_row(
            r.contender,
            WRONG if r.status == "wrong" else number(r.median_ms),
            ratio(r.ratio),
            number(r.best_ms),
            ratio(r.best_ratio),
            percent(r.spread),
            number(r.gflops),
            number(r.error, 2),
            number(r.faults),
            *(number(value, 2) for value in (r.import_s, r.load_s, r.first_s)),
            number(r.peak_mb),
            number(r.packed_mb),
        )
    reasons: dict[str, list[str]] = {}
    for r in results:
        if r.reason:
            reasons.setdefault(f"{r.status}: {r.reason}", []).append(r.contender)
    lines = [f"{', '.join(names)} {why}" for why, names in reasons.items()]
    if (busy := noise(results)) is not None:
        lines.append(f"{busy}; believe the best calls, not the medians")
    shown.caption = escape("\n".join(lines)) or None
    return shown


def noise(results: list[Result]) -> str | None:
    """A warning, if other processes wanted the cores that the contenders needed."""
    others = max((r.others or 0.0) for r in results)
    if others + max(r.threads for r in results) <= (os.cpu_count() or 1) + 0.1:
        return None
    return f"NOT QUIET: other processes kept up to {others:.1f} CPUs busy"


def summary_table(results: list[Result], threads: int) -> Table:
    """Contenders down, rows across."""
    mine = [r for r in results if r.threads == threads]
    rows = list(dict.fromkeys(r.row for r in mine))
    says = "median ms, baseline / it, and in brackets the same of the best calls"
    shown = table(f"{told(threads)}: {says}", "contender", *(f">{row}" for row in rows))
    for contender in CONTENDERS:
        found = {r.row: r for r in mine if r.contender == contender.name}
        if any(r.median_ms or r.status == "wrong" for r in found.values()):
            shown.add_row(contender.name, *(_cell(found.get(row)) for row in rows))
    return shown


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if result.median_ms is None:
        return WRONG if result.status == "wrong" else result.status
    return f"{number(result.median_ms)} {ratio(result.ratio)} \\[{number(result.best_ms)} {ratio(result.best_ratio)}]"


def ops_table(results: list[Result], peaks: Peaks) -> Table:
    """Every op sample: eager, ours, and how near ours comes to what bounds it."""
    roofs = f"{peaks.gflops:.0f} GFLOP/s, {peaks.gbps:.1f} GB/s with {told(peaks.threads)}"
    columns = (">error", ">eager ms", ">ours ms", ">eager/ours", ">GFLOP/s", ">of peak", ">GB/s", ">of its roof")
    shown = table(f"ops, float32; the machine's roofs: {roofs}", "op", "sample", *columns)
    for row, eager, ours in pairs(results):
        name, error = row.split(), number(ours.error, 2)
        if ours.median_ms is None or ours.gflops is None:
            shown.add_row(*name, error, f"[yellow]{escape(ours.reason or '')}[/yellow]")
            continue
        rates = (number(ours.gflops), percent(ours.gflops / peaks.gflops), number(ours.gbps), percent(ours.of_roof))
        shown.add_row(*name, error, number(eager.median_ms), number(ours.median_ms), ratio(ours.ratio), *rates)
    return shown


def memory_table(results: list[Result]) -> Table:
    """The bound: peak(optimised) <= peak(eager) + packed weights."""
    columns = (">eager", ">ours", ">packed weights", ">ours - eager - packed", ">")
    shown = table("peak memory of the process, MB", "model", *columns)
    for row, eager, ours in pairs(results):
        if eager.peak_mb is None or ours.peak_mb is None:
            shown.add_row(row, number(eager.peak_mb), number(ours.peak_mb), "", "", eager.reason or ours.reason)
            continue
        over = ours.peak_mb - eager.peak_mb - (ours.packed_mb or 0.0)
        verdict = "[green]within[/green]" if over <= 0 else "[red]over[/red]"
        shown.add_row(row, *(number(v, 4) for v in (eager.peak_mb, ours.peak_mb, ours.packed_mb, over)), verdict)
    return shown


def startup_table(results: list[Result]) -> Table:
    """`pk.optimize` and the first call, against the second that they may take together."""
    shown = table("start-up", "model", "pk.optimize s", "first call s", "together s", "")
    for row, _, ours in pairs(results):
        if ours.load_s is None or ours.first_s is None:
            shown.add_row(row, ours.reason)
            continue
        together = ours.load_s + ours.first_s
        verdict = "[green]under 1 s[/green]" if together < 1 else "[red]over 1 s[/red]"
        shown.add_row(row, *(f"{v:.3f}" for v in (ours.load_s, ours.first_s, together)), verdict)
    return shown


def pairs(results: list[Result]) -> list[tuple[str, Result, Result]]:
    """(row, eager, ours) of every row that has both."""
    found = {(r.row, r.contender): r for r in results}
    rows = dict.fromkeys(r.row for r in results)
    return [(row, found[row, "eager"], found[row, "ours"]) for row in rows if (row, "ours") in found]
