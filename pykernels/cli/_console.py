"""What every command prints with: its heading, tables, progress, figures, and its last lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


def console() -> Console:
    """A console as wide as the terminal; in a pipe or a log, where Rich would take 80 columns, wide enough for all."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with ``>`` holds figures."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return made


def heading(out: Console, command: str) -> None:
    """Prints the first line of a command: what runs, and on what."""
    import torch

    import pykernels
    from pykernels.cli.bench.machine import cpu_name, isa_in_force

    where = f"{cpu_name()}, {isa_in_force()}, {threads(torch.get_num_threads())}, torch {torch.__version__}"
    out.print(f"pykernels {pykernels.__version__} {command}: {where}", style="bold", markup=False, highlight=False)


def wrote(out: Console, path: Path) -> None:
    """Prints the last line of a command that has written a file."""
    out.print(f"Wrote {path}", soft_wrap=True, markup=False, highlight=False)


def complain(command: str, what: str) -> None:
    """Prints one line on stderr: why a command with right arguments cannot run."""
    Console(stderr=True).print(f"pykernels {command}: {what}", style="bold red", soft_wrap=True, markup=False)


@contextmanager
def progress(out: Console, steps: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with the name of each step as it begins.

    On a terminal the progress bar shares the console with what else is printed. Where the output goes to a file, the
    bar goes to stderr. Where stderr is not a terminal either, a line appears every ten seconds.
    """
    if not out.is_terminal and not sys.stderr.isatty():
        yield _lines(steps)
        return
    columns = (
        *(SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=out if out.is_terminal else Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=steps)
        yield lambda what: shown.update(task, advance=1, description=what)


def _lines(steps: int, every: float = 10.0) -> Callable[[str], None]:
    done, told = 0, time.monotonic()

    def advance(what: str) -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told >= every:
            told = time.monotonic()
            print(f"[{done}/{steps}] {what}", file=sys.stderr, flush=True)

    return advance


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for nothing."""
    return "-" if value is None else f"{100 * value:.0f}%"


def ratio(value: float | None) -> str:
    """A ratio in green where pykernels wins, red where it loses, and plain for a tie (within 10 %)."""
    if value is None:
        return "-"
    colour = "green" if value > 1.1 else "red" if value < 1 / 1.1 else "default"
    return f"[{colour}]{value:.2f}x[/{colour}]"


def threads(count: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} thread{'s'[: count > 1]}"
