"""How a command refuses an option, before it does anything: ``<option>: expected ..., got ...``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


@contextmanager
def refusals() -> Iterator[None]:
    """A `ValueError` inside is a wrong option: one line, and exit code 2."""
    try:
        yield
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem


def positive_int(value: Any) -> int:
    """An option's number."""
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise typer.BadParameter(f"expected a positive whole number, got {str(value)!r}")
    return number


def positive_seconds(value: Any) -> float:
    """An option's time."""
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f"expected a positive number of seconds, got {str(value)!r}")
    return number


def cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts(text: str) -> list[int]:
    """ "1,2" -> [1, 2]."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or max(counts) > cpus():
        most = f"at most {cpus()}, the CPUs of this process"
        raise ValueError(f"--threads: expected positive numbers separated by commas, {most}; got {text!r}")
    return counts


def one_thread_count(text: str) -> int:
    """ "2" -> 2."""
    if not text.isdecimal() or not 1 <= int(text) <= cpus():
        raise ValueError(f"--threads: expected a number from 1 to {cpus()}, the CPUs of this process; got {text!r}")
    return int(text)


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
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as problem:
        reason = str(problem.strerror).lower()
        raise ValueError(f"{option}: expected a path that can be written, got {str(path)!r} ({reason})") from problem
