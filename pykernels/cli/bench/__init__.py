"""``python -m pykernels bench``: speed, memory and start-up, measured so that the figures can be believed.

Every contender's answer is checked before it is timed; medians, ratios and spreads are quoted; losses are printed as
plainly as wins; a package that is not installed is named and skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help=__doc__, rich_markup_mode=None)

Rounds = Annotated[int, typer.Option("--repeats", min=1, help="Processes for each contender; the median counts.")]
Threads = Annotated[str, typer.Option(help="Thread counts, separated by commas.")]
OneThreadCount = Annotated[str, typer.Option("--threads", help="One thread count.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything to this file too.", dir_okay=False)]


def thread_counts(text: str) -> list[int]:
    """ "1,2" -> [1, 2]."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise typer.BadParameter(f"--threads: expected positive numbers separated by commas; got {text!r}")
    return counts


def one_thread_count(text: str) -> int:
    """ "2" -> 2."""
    count, *more = thread_counts(text)
    if more:
        raise typer.BadParameter(f"--threads: expected one number here; got {text!r}")
    return count


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@app.command()
def peers(
    table: Annotated[str, typer.Argument(help="models, conv, lstm or int8.")] = "models",
    rows: Annotated[str, typer.Option(help="Only rows that match, for example 'resnet*_b1,lstmlm_b1'.")] = "",
    contenders: Annotated[str, typer.Option(help="Only these, by name; the baseline is always in.")] = "",
    threads: Threads = "1,2",
    repeats: Rounds = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of timing in each process.")] = 1.0,
    json: Json = None,
    listing: Annotated[bool, typer.Option("--list", help="Show rows and contenders, and measure nothing.")] = False,
) -> None:
    """Ours against PyTorch's own ways, ONNX Runtime, OpenVINO and ncnn; each alone in its process, in turn."""
    from pykernels.cli.bench import commands

    counts = thread_counts(threads)
    try:
        chosen = commands.choose(table, _words(rows), _words(contenders))
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    if listing:
        commands.show_listing(chosen)
    else:
        commands.run_peers(chosen, counts, repeats, seconds, json)


@app.command()
def memory(
    rows: Annotated[str, typer.Option(help="Only models that match.")] = "*_b1",
    threads: OneThreadCount = "1",
    repeats: Rounds = 3,
    json: Json = None,
) -> None:
    """Peak memory of each optimised model, against eager's plus the packed weights."""
    from pykernels.cli.bench import commands

    count = one_thread_count(threads)
    try:
        chosen = commands.choose("models", _words(rows), ["ours"])
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    commands.run_memory(chosen, count, repeats, json)


@app.command()
def startup(
    rows: Annotated[str, typer.Option(help="Only models that match.")] = "*_b1",
    repeats: Rounds = 3,
) -> None:
    """What `import pykernels` adds to `import torch`, and how long pk.optimize with its first call takes."""
    from pykernels.cli.bench import commands

    try:
        chosen = commands.choose("models", _words(rows), ["ours"])
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    commands.run_startup(chosen, repeats)


@app.command()
def ops(
    op: Annotated[str | None, typer.Argument(help="One op; all where none is named.")] = None,
    threads: OneThreadCount = "1",
    seconds: Annotated[float, typer.Option(min=0.01, help="Of timing for each sample.")] = 0.3,
) -> None:
    """A quick table of every op's bench samples in this process: eager against ours, and the share of the roofs."""
    from pykernels.cli.bench import commands

    try:
        commands.run_ops(op, thread_counts(threads), seconds)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
