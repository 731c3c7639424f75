"""The picture: bars of speed-up, and a roofline."""

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


def draw(found: list[Found], peaks: Peaks, title: str, folder: Path) -> Path:
    """Writes ``demo.png`` into the folder and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**style, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), width_ratios=(1, 1.15))
        _bars(left, found)
        _roofline(right, found, peaks)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        figure.tight_layout()
        path = folder / "demo.png"
        figure.savefig(path, dpi=140)
        pyplot.close(figure)
    return path.resolve()


def _bars(axes, found: list[Found]) -> None:  # type: ignore[no-untyped-def]
    height = 0.36
    for i, (_, results) in enumerate(found):
        for j, r in enumerate(results[1:]):
            y = i + (j - 0.5) * height
            axes.barh(y, r.ratio, height * 0.92, color=COLOURS[j + 1], label=r.contender if i == 0 else None)
            axes.text(r.ratio, y, f" {r.ratio:.2f}x  ({r.median_ms:.3g} ms)", va="center", fontsize=9)
    axes.axvline(1, color=GREY, lw=1.2, ls="--", zorder=0)
    axes.set_yticks(range(len(found)), [f"{results[0].row}\n{results[0].median_ms:.3g} ms" for _, results in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(r.ratio or 1 for _, results in found for r in results))
    axes.set_xlabel("times as fast as plain PyTorch (its latency is under the model's name)")
    axes.set_title("Speed-up, batch 1", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize=9)


def _roofline(axes, found: list[Found], peaks: Peaks) -> None:  # type: ignore[no-untyped-def]
    points = []
    for i, (task, results) in enumerate(found):
        for j, r in enumerate(results):
            moved = task.bytes / (4 / CONTENDERS[r.contender][0].itemsize)
            points.append((i, j, task.flops / moved, r.gflops or 0.0))
    low, high = min(p[2] for p in points) / 3, max(p[2] for p in points) * 3
    knee = peaks.gflops / peaks.gbps
    low, high = min(low, knee / 3), max(high, knee * 3)
    axes.plot([low, knee, high], [low * peaks.gbps, peaks.gflops, peaks.gflops], color=INK, lw=1.6)
    axes.text(high, peaks.gflops * 1.05, f"{peaks.gflops:.0f} GFLOP/s", ha="right", va="bottom", fontsize=9)
    axes.text(low * 1.05, peaks.gflops * 1.05, f"slope: {peaks.gbps:.0f} GB/s from memory", va="bottom", fontsize=9)
    for i, j, intensity, speed in points:
        axes.scatter(
            intensity, speed, s=52, color=COLOURS[j], marker=MARKERS[i % 4], zorder=3, edgecolor="white", lw=0.6
        )
    for i, (task, _) in enumerate(found):
        axes.scatter([], [], color=INK, marker=MARKERS[i % 4], label=task.name)
    for colour, contender in zip(COLOURS, CONTENDERS, strict=True):
        axes.scatter([], [], color=colour, marker="s", label=contender)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(p[3] for p in points) / 3, 2.5 * max(peaks.gflops, max(p[3] for p in points)))
    axes.set_xlabel("FLOP per byte (weights, input and output, once)")
    axes.set_ylabel("GFLOP/s (direct convolution's operations)")
    axes.set_title("Roofline, measured peaks", loc="left", fontsize=11)
    axes.grid(True, which="major", color="#e3e5e8", lw=0.6, zorder=0)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
