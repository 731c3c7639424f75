"""The picture: each model's time, and a roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pykernels.cli.bench.machine import Peaks
from pykernels.cli.bench.result import Result
from pykernels.cli.demo.measure import CONTENDERS
from pykernels.cli.demo.tasks import Task

Found = tuple[Task, list[Result]]

GREY, BLUE, ORANGE, INK = "#9aa0a6", "#1f6feb", "#e8710a", "#30343a"
COLOURS = (GREY, BLUE, ORANGE)
MARKERS = ("o", "s", "^", "D")


def draw(found: list[Found], peaks: Peaks, title: str, folder: Path, noise: str | None = None) -> Path:
    """Writes ``demo.png`` into the folder and returns its path; ``noise`` is a warning that goes under the title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**style, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = pyplot.figure(figsize=(13, 5.8), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
        _times(halves[0], found)
        _roofline(halves[1].subplots(), found, peaks)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        if noise is not None:
            figure.supxlabel(noise, fontsize=10, x=0.01, ha="left", color="#b3261e")
        path = folder / "demo.png"
        figure.savefig(path, dpi=140)
        pyplot.close(figure)
    return path.resolve()


def _times(figure, found: list[Found]) -> None:  # type: ignore[no-untyped-def]
    """A panel for each model, because a common scale would hide the fast ones."""
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (task, results) in zip(panels, found, strict=True):
        for i, (r, colour) in enumerate(zip(results, COLOURS, strict=True)):
            axes.barh(i, r.median_ms, 0.8, color=colour)
            gain = "" if i == 0 else f"  {r.ratio:.2f}x as fast as plain PyTorch"
            axes.text(r.median_ms, i, f" {r.median_ms:.3g} ms{gain}", va="center", fontsize=9)
        axes.set_xlim(0, 1.75 * max(r.median_ms or 0 for r in results))
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.set_title(task.name, loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel("milliseconds a call, batch 1 (median): shorter is better")
    figure.legend(
        handles=_handles(panels[0], CONTENDERS, COLOURS, ["s"] * len(COLOURS)),
        loc="outside upper left", ncols=3, frameon=False, fontsize=9, title="Time", alignment="left",
    )  # fmt: skip


def _roofline(axes, found: list[Found], peaks: Peaks) -> None:  # type: ignore[no-untyped-def]
    points = []
    for i, (task, results) in enumerate(found):
        for j, r in enumerate(results):
            work = task.plain if j == 0 else task.ours
            moved = work.bytes / (4 / CONTENDERS[r.contender][0].itemsize)
            points.append((i, j, work.flops / moved, work.flops / (r.median_ms or 1.0) / 1e6))
    low, high = min(p[2] for p in points) / 3, max(p[2] for p in points) * 3
    low, high = min(low, peaks.gflops / peaks.cache_gbps / 3), max(high, peaks.gflops / peaks.gbps * 3)
    slopes: list[Any] = []
    for gbps, place, line in ((peaks.gbps, "memory", "-"), (peaks.cache_gbps, "a cache of the core", "--")):
        knee = peaks.gflops / gbps
        slopes += axes.plot([low, knee], [low * gbps, peaks.gflops], color=INK, lw=1.4, ls=line)
        slopes[-1].set_label(f"{gbps:.0f} GB/s from {place}")
    axes.plot([peaks.gflops / peaks.cache_gbps, high], [peaks.gflops] * 2, color=INK, lw=1.4)
    axes.text(high, peaks.gflops * 1.06, f"{peaks.gflops:.0f} GFLOP/s, float32", ha="right", va="bottom", fontsize=9)
    for i, j, intensity, speed in points:
        axes.scatter(intensity, speed, s=52, color=COLOURS[j], marker=MARKERS[i % 4], zorder=3, ec="white", lw=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(p[3] for p in points) / 4, 3 * max(peaks.gflops, max(p[3] for p in points)))
    axes.set_xlabel("FLOP per byte of weights, input and output (an LSTM's recurrent weights at every step)")
    axes.set_ylabel("GFLOP/s, of the operations that were done")
    axes.set_title("Roofline (colours as on the left)", loc="left", fontsize=11)
    axes.grid(True, which="major", color="#e3e5e8", lw=0.6, zorder=0)
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "alignment": "left"}
    names = [task.name for task, _ in found]
    models = _handles(axes, names, [INK] * len(names), MARKERS)
    axes.add_artist(axes.legend(handles=models, title="model", loc="lower right", **style))
    axes.legend(handles=slopes, title="measured peaks", loc="upper left", **style)


def _handles(axes, labels, colours, markers) -> list[Any]:  # type: ignore[no-untyped-def]
    told = zip(labels, colours, markers, strict=False)
    return [axes.scatter([], [], color=colour, marker=marker, label=label) for label, colour, marker in told]
