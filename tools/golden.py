"""The golden files of the compile gates: a line per kernel, cells apart by tabs, so that a diff names kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EMPTY = "-"


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
