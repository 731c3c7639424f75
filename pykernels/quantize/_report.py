"""The report of a quantised model: its layers, their grids, what they lose and take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from pykernels.nn.int8_conv import Grid
from pykernels.optimize._face import family_of
from pykernels.optimize._report import Left, Report

_WIDTH, _HEIGHT, _EDGE = 760, 420, 56
_UNCALIBRATED = "no batch of the calibration made a call of this kind"


@dataclass(frozen=True)
class Layer:
    """A convolution, linear layer or LSTM of a program.

    ``why`` is "" where it runs in int8, else the reason. ``sqnr`` is the ratio of the signal to the noise in its result
    in dB, with all layers before it in int8 too, on up to eight batches of the calibration; None where it was not
    measured.
    ``seconds`` is None where nobody timed the layer.
    """

    #: The module.
    where: str
    #: What it computes, for example "conv+bn+relu".
    what: str
    #: The grids of its input and output; None for float.
    x: Grid | None
    out: Grid | None
    sqnr: float | None
    why: str
    seconds: float | None = None


class Layers(list[Layer]):
    """Layers, which print as a table."""

    def __repr__(self) -> str:
        """A line for each: its noise, its time where there is one, its name, what it computes, and its grids."""
        if not self:
            return "no layers in int8 whose noise was measured"
        rows = [("dB", "us", "layer", "computes", "input: scale, zero point", "output")]
        for x in self:
            ratio = "-" if x.sqnr is None else f"{x.sqnr:.1f}"
            time = "-" if x.seconds is None else f"{x.seconds * 1e6:.0f}"
            rows.append((ratio, time, x.where or "the model", x.why or x.what, _told(x.x), _told(x.out)))
        kept = [i for i, cells in enumerate(zip(*rows, strict=True)) if i != 1 or set(cells[1:]) != {"-"}]
        widths = [max(len(row[i]) for row in rows) for i in kept]
        lines = ("  ".join(_aligned(row[i], w, i) for i, w in zip(kept, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def _told(grid: Grid | None) -> str:
    return "float32" if grid is None else f"{grid.scale:.3g}, {grid.zero_point}"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column < 2 else cell.ljust(width)


@dataclass(repr=False)
class QuantReport(Report):
    """What a quantised model runs and why. `Quantized.report` makes it: ``print`` it, or read its attributes.

    It has the attributes of `Report`, and one more.

    Attributes:
        layers: The convolutions, linear layers and LSTMs of the counted programs.
    """

    layers: list[Layer] = field(default_factory=list)

    def worst(self, n: int = 10) -> Layers:
        """Returns the layers in int8 with the least signal-to-noise ratio, the worst first: a list, printed as a table.

        Args:
            n: How many, at most.
        """
        known = [x for x in self.layers if not x.why and x.sqnr is not None]
        return Layers(sorted(known, key=lambda x: x.sqnr if x.sqnr is not None else math.inf)[:n])

    def __str__(self) -> str:
        """As `Report`'s, after a summary of the layers."""
        inside = [x for x in self.layers if not x.why]
        if not self.layers:
            return super().__str__()
        lines = [f"{len(inside)} of {len(self.layers)} layers in int8"]
        worst = self.worst(3)
        if worst:
            told = ", ".join(f"{x.where or 'the model'} {x.sqnr:.1f} dB" for x in worst)
            lines[0] += f"; the least signal to noise: {told}"
        reasons: dict[str, list[str]] = {}
        for x in self.layers:
            if x.why:
                reasons.setdefault(x.why, []).append(x.where or "the model")
        lines += [f"  {len(names):3d} in float: {why}  (first: {names[0]})" for why, names in reasons.items()]
        return "\n".join([*lines, super().__str__()])

    def to_svg(self) -> str:
        """Draws each layer as a dot: to the right its time or, if nobody timed it, its place; upwards its SQNR.

        Layers in float are at the top.
        """
        timed = any(x.seconds for x in self.layers)
        across = [(x.seconds or 0.0) * 1e6 if timed else float(i) for i, x in enumerate(self.layers)]
        known = [x.sqnr for x in self.layers if x.sqnr is not None and math.isfinite(x.sqnr)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        widest, span = max(across, default=0.0) or 1.0, (high - low) or 1.0
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="11">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            f'<text x="12" y="22" font-size="15">{len(self.layers)} layers: signal to noise (dB) against '
            f"{'time (us)' if timed else 'order'}</text>",
            f'<text x="8" y="{_EDGE + 4}">{high:.1f}</text>',
            f'<text x="8" y="{_HEIGHT - _EDGE + 4}">{low:.1f}</text>',
            f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 16}" text-anchor="end">{widest:.0f}</text>',
        ]
        for x, at in zip(self.layers, across, strict=True):
            ratio = high if x.sqnr is None else min(max(x.sqnr, low), high)
            left = _EDGE + (_WIDTH - 2 * _EDGE) * at / widest
            top = _EDGE + (_HEIGHT - 2 * _EDGE) * (high - ratio) / span
            measured = "not measured" if x.sqnr is None else f"{x.sqnr:.1f} dB"
            told = f"{x.where or 'the model'}: {x.what}, {x.why or measured}"
            colour = "#e09f3e" if x.why else "#1f7a8c"
            parts.append(
                f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"><title>{escape(told)}</title></circle>'
            )
        return "\n".join([*parts, "</svg>"]) + "\n"


def with_layers(report: Report, twin: Any) -> QuantReport:
    """``report`` with the layers of ``twin``."""
    family = family_of(twin)
    counted = {s.program for s in report.counted()}
    seconds: dict[tuple[str, str], list[float | None]] = {}
    for s in report.counted():
        seconds.setdefault((s.where, s.what), []).append(s.seconds)
    layers: list[Layer] = []
    numbers = {id(p): i for i, p in enumerate(_in_order(family), 1)}
    for program in _in_order(family):
        graph = program.graph.rewritten
        if graph is None or numbers[id(program)] not in counted:
            continue
        ratios = family.plan.ratios.get(graph.name, {})
        for step, at in sorted(graph.of_layers_by_step.items(), key=lambda item: item[1]):
            made = graph.made.get(step) or graph.recurrent.get(step)
            why = "" if made else graph.reasons.get(step) or (_UNCALIBRATED if not graph.is_calibrated else "")
            times = seconds.get((step.where or "the model", made.note if made else step.note), [])
            x, out = (getattr(made.function, name, None) if made else None for name in ("x", "out"))
            ratio = ratios.get(at)
            what = step.note or step.name()
            layers.append(Layer(step.where, what, x, out, ratio, why, times.pop(0) if times else None))
    # Why a layer is not in int8, and why then it is torch's, is one answer.
    floats = {(x.where or "the model", x.what): x.why for x in layers if x.why}
    told = {**vars(report), "left": [_with_reason(x, floats.get((x.where, x.what), "")) for x in report.left]}
    return QuantReport(**told, layers=layers)


def _with_reason(left: Left, why: str) -> Left:
    return replace(left, why=f"{why}, and in float {left.why}") if why and why not in left.why else left


def _in_order(family: Any) -> list[Any]:
    """The programs as the report numbers them."""
    by_stub = [{id(p): p for p in s.programs.values() if not isinstance(p, str)} for s in family.stubs()]
    return [p for programs in by_stub for p in programs.values()]
