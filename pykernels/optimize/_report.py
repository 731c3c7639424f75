"""What an optimised model runs: fused steps, torch's own, and what could not be followed and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


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


@dataclass
class Report:
    """``print`` it, or read `replaced` and `left`. `programs` and `torch_steps` count what was made so far."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    programs: int = 0
    torch_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each kind of replacement with its count, then what was left alone, and why."""
        if not self.programs and not self.left:
            return "nothing has run yet: a program is made at the first call of each kind of input"
        lines = [f"{self.programs} program{'s' * (self.programs != 1)}; {self.torch_steps} calls of torch's own ops"]
        lines.append(f"replaced {len(self.replaced)}:")
        for (what, by), count in Counter((r.what, r.by) for r in self.replaced).items():
            first = next(r for r in self.replaced if (r.what, r.by) == (what, by))
            lines.append(f"  {count:3d} x {what} -> {by}  (first: {' + '.join(first.where)})")
        lines.append(f"left alone {len(self.left)}:")
        for (what, why), count in Counter((x.what, x.why) for x in self.left).items():
            first_left = next(x for x in self.left if (x.what, x.why) == (what, why))
            lines.append(f"  {count:3d} x {what}: {why}  (first: {first_left.where})")
        return "\n".join(lines)
