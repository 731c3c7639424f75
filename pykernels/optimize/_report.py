"""What an optimised model runs: its steps, who runs each, what torch runs or pykernels could not follow, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pykernels.ops._arguments import fail

OURS, TORCH, ITSELF = "pykernels", "torch", "the module itself"
_MOST_ENTRIES = 8


@dataclass(frozen=True)
class Replaced:
    """Calls that a fused op of ours replaces."""

    #: The modules that make the calls.
    where: tuple[str, ...]
    #: What they compute, for example "conv+bn+relu".
    what: str
    #: The op that computes it now.
    by: str


@dataclass(frozen=True)
class Left:
    """A module or call that pykernels left as it was."""

    #: The module.
    where: str
    #: What it computes.
    what: str
    #: The reason.
    why: str


@dataclass(frozen=True)
class Plain:
    """Calls of a module that ran none of its programs, and why."""

    where: str
    why: str
    calls: int


@dataclass(frozen=True)
class Entry:
    """A program: the module whose calls it runs, and the inputs that its operations and times are for.

    ``exact``: it holds for inputs of these sizes only. ``counts``: its steps are in the shares. The steps of programs
    for earlier kinds of input are not, nor those of parts that a counted program contains.
    """

    program: int
    where: str
    inputs: tuple[str, ...]
    exact: bool
    counts: bool


@dataclass(frozen=True)
class Ran:
    """A step of a program. ``who``: "pykernels", "torch", or "the module itself" for what pykernels cannot follow.

    ``flops`` counts two operations for each product, and is None where it is unknown; ``seconds`` is None where nobody
    timed the step.
    """

    program: int
    where: str
    what: str
    who: str
    flops: int | None
    seconds: float | None = None


@dataclass
class Report:
    """What an optimised model runs and why. `Optimized.report` makes it: ``print`` it, or read its attributes.

    Attributes:
        replaced: The calls that fused ops replace.
        left: The modules and calls that pykernels left as they were.
        programs: How many programs there are so far.
        torch_steps: How many of the counted steps torch runs.
        steps: The steps of all programs.
        entries: What each program is for.
        plain: The calls that ran no program (autocast, gradients, hooks, tracing).
        conversions: The conversions of dtype and memory format in one call, with their number.
        doors: The ways in which the programs were made, with their number.
        packed_bytes: The memory of weights in the kernels' layout.
        arena_bytes: The memory of intermediates.
        released_bytes: The plain weights that the model no longer holds, with ``keep="packed"``.
    """

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    programs: int = 0
    torch_steps: int = 0
    steps: list[Ran] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    plain: list[Plain] = field(default_factory=list)
    conversions: dict[str, int] = field(default_factory=dict)
    doors: dict[str, int] = field(default_factory=dict)
    packed_bytes: int = 0
    arena_bytes: int = 0
    released_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as plain data: dicts, lists, numbers and strings."""
        return asdict(self)

    def to_svg(self) -> str:
        """Draws a bar for each counted step, as long as its time if that was measured, else as its operations."""
        from pykernels.optimize._picture import picture

        return picture(self)

    def svg(self, path: str | Path) -> None:
        """Writes the picture of `to_svg` to a file.

        Args:
            path: The file.

        Raises:
            ValueError: The name ends in another format's suffix.
        """
        suffix = Path(path).suffix
        if suffix.lower() not in ("", ".svg"):
            fail(ValueError, "Report.svg", "path", "a name that ends in .svg, the only format that it writes", suffix)
        Path(path).write_text(self.to_svg(), encoding="utf-8")

    def counted(self) -> list[Ran]:
        """Returns the steps that the shares count: each part of the model once, for the last kind of input."""
        others = {e.program for e in self.entries if not e.counts}
        return [s for s in self.steps if s.program not in others]

    def share(self, of: str, who: str) -> float | None:
        """Returns the part of the operations or of the time that one of them runs; None if none are known.

        Args:
            of: "operations" or "time".
            who: "pykernels", "torch" or "the module itself".
        """
        sizes = [(s.who, s.flops if of == "operations" else s.seconds) for s in self.counted()]
        total = sum(size or 0 for _, size in sizes)
        return sum(size or 0 for by, size in sizes if by == who) / total if total else None

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """What is replaced, by kinds, with counts; what else runs; what was left, and why."""
        if not self.programs and not self.left and not self.plain:
            return "nothing has run yet: pykernels makes a program at the first call of each kind of input"
        ways = ", ".join(f"{count} by {door}" for door, count in self.doors.items())
        steps = self.counted()
        lines = ["no program has been made"]
        if self.programs:
            lines = [f"{_count(self.programs, 'program')}{f' ({ways})' if ways else ''}; {self._torchs(steps)}"]
        lines += self._shares(steps)
        lines += self._entries()
        lines += [f"  {_count(p.calls, 'call')} of {p.where} did not run a program: {p.why}" for p in self.plain]
        if self.programs:
            lines.append(f"replaced {len(self.replaced)}:")
        for (what, by), found in _groups((r.what, r.by) for r in self.replaced):
            first = next(r for r in self.replaced if (r.what, r.by) == (what, by))
            lines.append(f"  {found:3d} x {what} -> {by}  (first: {' + '.join(first.where)})")
        if self.programs or self.left:
            lines.append(f"left alone {len(self.left)}:")
        for (what, why), found in _groups((x.what, x.why) for x in self.left):
            first_left = next(x for x in self.left if (x.what, x.why) == (what, why))
            lines.append(f"  {found:3d} x {what}: {why}  (first: {first_left.where})")
        lines += self._by_kind(steps)
        if self.conversions:
            lines.append(
                f"conversions: {', '.join(what if n == 1 else f'{n} x {what}' for what, n in self.conversions.items())}"
            )
        if self.packed_bytes or self.arena_bytes or self.released_bytes:
            lines.append(
                f"memory: {self.packed_bytes / 1e6:.1f} MB of packed weights, "
                f"{self.arena_bytes / 1e6:.1f} MB for intermediates"
                + (f"; {self.released_bytes / 1e6:.1f} MB of plain weights released" if self.released_bytes else "")
            )
        return "\n".join(lines)

    def _torchs(self, steps: list[Ran]) -> str:
        """How many steps torch runs, and how many of those have products, which all operations are of."""
        runs = f"torch runs {self.torch_steps} of {_count(len(steps), 'step')}"
        heavy = sum(s.who == TORCH and bool(s.flops) for s in steps)
        return runs if not self.torch_steps else f"{runs}, {heavy or 'none'} of them with products"

    def _shares(self, steps: list[Ran]) -> list[str]:
        parts = [(of, self.share(of, OURS)) for of in ("operations", "time")]
        shares = [f"{_percent(part)} of the {of}" for of, part in parts if part is not None]
        unknown = sum(s.flops is None for s in steps)
        but = f"; those of {_count(unknown, 'step')} are unknown" if unknown else ""
        return [f"pykernels runs {' and '.join(shares)}{but}"] if shares else []

    def _entries(self) -> list[str]:
        """The programs, those that count before the others."""
        ordered = sorted(self.entries, key=lambda e: not e.counts)
        lines = []
        for e in ordered[:_MOST_ENTRIES]:
            sizes = "" if e.exact or not e.inputs else ", or other sizes"
            lines.append(f"  {e.program}: {e.where} on {', '.join(e.inputs) or 'nothing'}{sizes}")
            lines[-1] += "" if e.counts else " (not in the shares)"
        more = len(ordered) - _MOST_ENTRIES
        return [*lines, f"  and {_count(more, 'program')} more"] if more > 0 else lines

    def _by_kind(self, steps: list[Ran]) -> list[str]:
        flops, seconds = sum(s.flops or 0 for s in steps), sum(s.seconds or 0 for s in steps)
        if not flops and not seconds:
            return []
        lines = [f"steps {len(steps)}, by their share of the {'time' if seconds else 'operations'}:"]
        kinds = Counter((s.what, s.who) for s in steps)

        def size(kind: tuple[str, str]) -> tuple[float, float]:
            mine = [s for s in steps if (s.what, s.who) == kind]
            return sum(s.seconds or 0 for s in mine), sum(s.flops or 0 for s in mine)

        for kind in sorted(kinds, key=size, reverse=True):
            time, operations = size(kind)
            mine = [s for s in steps if (s.what, s.who) == kind]
            parts = []
            if flops:
                share = f"{operations / flops:6.1%} of the operations" if operations else "no matrix products"
                parts.append("unknown operations" if any(s.flops is None for s in mine) else share)
            if seconds:
                untimed = any(s.seconds is None for s in mine)
                parts.append("not timed" if untimed else f"{time / seconds:6.1%} of the time ({time * 1e3:.2f} ms)")
            lines.append(f"  {kinds[kind]:3d} x {kind[0]} by {kind[1]}: {', '.join(parts)}")
        return lines


def _percent(part: float) -> str:
    """Not 100% of what is a little less."""
    return "more than 99%" if 0.995 <= part < 1 else f"{part:.0%}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _groups(items: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return list(Counter(items).items())
