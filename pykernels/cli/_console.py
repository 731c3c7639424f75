"""What every command prints with: console, tables, progress, figures; and how it refuses an option."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


def console() -> Console:
    """As wide as the terminal; in a pipe or a log, where Rich would take 80 columns, wide enough for every table."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with ``>`` holds figures."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return made


@contextmanager
def progress(out: Console, steps: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that is told each step as it begins.

    On a terminal the bar shares the console with what is printed meanwhile; where the output goes to a file, stderr
    has the bar.
    """
    columns = (
        *(SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=out if out.is_terminal else Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=steps)
        yield lambda what: shown.update(task, advance=1, description=what)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for nothing."""
    return "-" if value is None else f"{100 * value:.0f}%"


def ratio(value: float | None) -> str:
    """Green where it is a win, red where it is a loss, plain where it is a tie (within 10 %)."""
    if value is None:
        return "-"
    colour = "green" if value > 1.1 else "red" if value < 1 / 1.1 else "default"
    return f"[{colour}]{value:.2f}x[/{colour}]"


def threads(count: int) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} thread{'s'[: count > 1]}"


def check_choice(option: str, value: str | None, known: Iterable[str]) -> None:
    """`ValueError` if an option that was given is none of what is known."""
    known = list(known)
    if value is not None and value not in known:
        raise ValueError(f"{option}: expected one of {', '.join(known)}; got {value!r}")


def check_writable(option: str, path: Path | None) -> None:
    """`ValueError` if a file to be written after minutes of measuring could not be; its folder is made."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path if path.exists() else path.parent, os.W_OK) else "permission denied"
    except OSError as problem:
        reason = str(problem.strerror).lower()
    if reason is not None:
        raise ValueError(f"{option}: expected a path that can be written; got {str(path)!r} ({reason})")


@contextmanager
def refusals() -> Iterator[None]:
    """A `ValueError` inside is a wrong option: its message in Typer's words, and exit code 2."""
    try:
        yield
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
