"""What an optimised model runs: its steps, who runs each, what was left to torch or could not be followed, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OURS, TORCH, ITSELF = "pykernels", "torch", "the module itself"


@dataclass(frozen=True)
class Replaced:
    """Calls, by the modules that make them, and the fused op that does their work now."""

    where: tuple[str, ...]
    what: str
    by: str


@dataclass(frozen=True)
class Left:
    """A module or call that stays as it was, and why."""

    where: str
    what: str
    why: str


@dataclass(frozen=True)
class Ran:
    """A step of a program. ``who``: "pykernels", "torch", or "the module itself" for what can't be followed.

    ``flops`` are those of its products, two for each multiplication; ``seconds`` None where it was not timed.
    """

    program: int
    where: str
    what: str
    who: str
    flops: int
    seconds: float | None = None


@dataclass
class Report:
    """``print`` it, or read `replaced`, `left` and `steps`. `programs` counts what was made so far.

    `doors` says how they were made and how many that way, `torch_steps` is the number of steps that torch runs,
    `packed_bytes` is the memory of weights in the kernels' layout, `arena_bytes` that of intermediates.
    """

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    programs: int = 0
    torch_steps: int = 0
    steps: list[Ran] = field(default_factory=list)
    doors: dict[str, int] = field(default_factory=dict)
    packed_bytes: int = 0
    arena_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def to_svg(self) -> str:
        """A picture: a bar for each step, by its time if that was measured, else by its operations."""
        from pykernels.optimize._picture import picture

        return picture(self)

    def svg(self, path: str | Path) -> None:
        """Writes the picture."""
        Path(path).write_text(self.to_svg(), encoding="utf-8")

    def share(self, of: str, who: str) -> float | None:
        """Which part of the "operations" or of the "time" ``who`` runs; None where there is nothing to divide."""
        sizes = [(s.who, s.flops if of == "operations" else s.seconds) for s in self.steps]
        total = sum(size or 0 for _, size in sizes)
        return sum(size or 0 for by, size in sizes if by == who) / total if total else None

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """What is replaced, by kinds, with counts; what else runs; what was left, and why."""
        if not self.programs and not self.left:
            return "nothing has run yet: a program is made at the first call of each kind of input"
        ways = ", ".join(f"{count} by {door}" for door, count in self.doors.items())
        lines = [
            f"{_count(self.programs, 'program')}{f' ({ways})' if ways else ''}; {self.torch_steps} steps are torch's"
        ]
        shares = [
            f"{part:.0%} of the {of}" for of in ("operations", "time") if (part := self.share(of, OURS)) is not None
        ]
        if shares:
            lines.append(f"pykernels runs {' and '.join(shares)}")
        lines.append(f"replaced {len(self.replaced)}:")
        for (what, by), found in _groups((r.what, r.by) for r in self.replaced):
            first = next(r for r in self.replaced if (r.what, r.by) == (what, by))
            lines.append(f"  {found:3d} x {what} -> {by}  (first: {' + '.join(first.where)})")
        lines.append(f"left alone {len(self.left)}:")
        for (what, why), found in _groups((x.what, x.why) for x in self.left):
            first_left = next(x for x in self.left if (x.what, x.why) == (what, why))
            lines.append(f"  {found:3d} x {what}: {why}  (first: {first_left.where})")
        lines += self._by_kind()
        if self.packed_bytes or self.arena_bytes:
            lines.append(
                f"memory: {self.packed_bytes / 1e6:.1f} MB of packed weights, "
                f"{self.arena_bytes / 1e6:.1f} MB for intermediates"
            )
        return "\n".join(lines)

    def _by_kind(self) -> list[str]:
        flops, seconds = sum(s.flops for s in self.steps), sum(s.seconds or 0 for s in self.steps)
        if not flops and not seconds:
            return []
        lines = [f"steps {len(self.steps)}, by their share of the {'time' if seconds else 'operations'}:"]
        kinds = Counter((s.what, s.who) for s in self.steps)

        def size(kind: tuple[str, str]) -> tuple[float, float]:
            mine = [s for s in self.steps if (s.what, s.who) == kind]
            return sum(s.seconds or 0 for s in mine), sum(s.flops for s in mine)

        for kind in sorted(kinds, key=size, reverse=True):
            time, operations = size(kind)
            parts = [f"{operations / flops:6.1%} of the operations"] if flops else []
            parts += [f"{time / seconds:6.1%} of the time ({time * 1e3:.2f} ms)"] if seconds else []
            lines.append(f"  {kinds[kind]:3d} x {kind[0]} by {kind[1]}: {', '.join(parts)}")
        return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _groups(items: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return list(Counter(items).items())
