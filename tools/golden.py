"""The golden files of the compile gates: a line a group of kernels, cells apart by tabs, so that a diff names kernels.

A gate keeps the worst of a group, whose kernels differ in shapes, types and targets: what spills next is the fullest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

EMPTY = "-"
#: Registers may differ this much from a table, for a compiler's patch releases differ.
SLACK = 8

Was = TypeVar("Was")
Is = TypeVar("Is")


def write(compiler: str, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The file's text: the compiler, the columns' names, the rows."""
    lines = [f"# {compiler}", "\t".join(columns)]
    lines += ["\t".join(str(cell) or EMPTY for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


def read(text: str) -> tuple[str, list[list[str]]]:
    """Compiler and rows of such a text; of an empty one: none."""
    head, *lines = text.splitlines() or ["# "]
    rows = [["" if cell == EMPTY else cell for cell in line.split("\t")] for line in lines[1:]]
    return head.removeprefix("# "), rows


def compare(
    written: Mapping[tuple[str, ...], Was],
    now: Mapping[tuple[str, ...], Is],
    differences: Callable[[Was, Is], Iterable[str]],
) -> list[str]:
    """In what the groups written no longer agree with those there are."""
    found = [f"{' '.join(key)}: no such kernel any more" for key in written.keys() - now.keys()]
    found += [f"{' '.join(key)}: a new kernel" for key in now.keys() - written.keys()]
    for key in written.keys() & now.keys():
        found += [f"{' '.join(key)}: {what}" for what in differences(written[key], now[key])]
    return sorted(found)


def outdated(table: Path, make: str, found: Iterable[str]) -> list[str]:
    """What `compare` found, with what to do about it."""
    return [f"{table.name} is stale (`make {make}` writes it anew): {line}" for line in found]


def verdict(bad: Sequence[str], summary: str, any_read: bool) -> int:
    """Prints what failed and the summary; the exit code."""
    for line in bad:
        print(f"FAILED: {line}")
    print(f"{summary}, {len(bad)} problems; none was run.")
    return 1 if bad or not any_read else 0
