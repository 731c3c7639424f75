"""``pykernels demo``: the main job. Four models on real input, plain PyTorch against ours, checked and timed."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pykernels.cli._console import console as make_console

NEEDED = ("sklearn", "matplotlib", "PIL")
#: A place in the text where a sentence begins.
STREAM_FROM = 376


def run(quick: bool, out: Path, threads: int | None) -> int:
    """Runs it and prints; the exit code: 1 if an answer is wrong, or if something that it needs is missing."""
    console = make_console()
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        console.print(
            f"The demo's photographs, text and signal come with scikit-learn and matplotlib, and {', '.join(missing)} "
            "cannot be imported; pip install '.[demo]' in the source tree brings them.",
            style="bold red",
            markup=False,
        )
        return 1
    from pykernels import _native
    from pykernels.cli.bench import machine
    from pykernels.cli.demo import measure, picture, tasks

    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    if _native.error is not None:
        console.print(f"The demo needs the kernels: {_native.error}", style="bold red", markup=False)
        return 1
    try:
        isa = _native.introspect().active_isa()
    except (RuntimeError, ValueError) as problem:
        console.print(f"The demo needs the kernels: {problem}", style="bold red", markup=False)
        return 1
    count = torch.get_num_threads()
    where = f"{machine.cpu_name()}, {isa}, {count} thread{'s'[: count > 1]}, torch {torch.__version__}"
    console.print(where, style="bold", markup=False, highlight=False)
    console.print(
        "The input is real. The weights are random, from a fixed seed: what counts is that the same arithmetic\n"
        "is fast and exact, not what the models say. Batch norms are calibrated on crops of the photographs,\n"
        "and the last one of each residual block is scaled down to 1/4: a random network lets bfloat16's\n"
        "errors pile up as a trained one would not.\n"
    )
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("the machine's peaks")
        peaks = machine.measure_peaks(0.3 if quick else 1.0)
        for make in tasks.TASKS:
            progress.update(bar, description=f"{make.__name__}: weights and input")
            task = make()
            result = measure.measure(
                task, 0.5 if quick else 6.0, 3 if quick else 15,
                lambda what, name=task.name: progress.update(bar, description=f"{name}: {what}"),  # type: ignore[misc]
            )  # fmt: skip
            results.append(result)
            ours = result.rows[1]
            console.print(
                f"[bold]{task.name}[/] on {task.input}: {result.rows[0].ms:.3g} ms -> {ours.ms:.3g} ms, "
                f"[bold]{result.speedup(ours):.2f}x[/]"
            )
            console.print(f"  {_summary(result.report)}", style="dim", markup=False, highlight=False)
        progress.update(bar, description="picture")
        path = picture.draw(results, peaks, f"pykernels against plain PyTorch: {where}", out)
    _stream(console, 12 if quick else 24)
    console.print()
    console.print(_table(results))
    console.print(f"picture: {path}", soft_wrap=True, markup=False, highlight=False)
    wrong = [f"{r.task.name}, {row.contender}: {row.error:.2g}" for r in results for row in r.rows if not row.right]
    for line in wrong:
        console.print(f"WRONG: {line}", style="bold red", markup=False)
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    return 1 if wrong else 0


def _is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _summary(report: Any) -> str:
    kinds = Counter((r.what, r.by) for r in report.replaced)
    return "; ".join(f"{count} x {what} -> {by}" for (what, by), count in kinds.items()) or "nothing replaced"


def _stream(console: Console, count: int) -> None:
    """One line of the language model, word by word as it comes."""
    from pykernels.cli.demo import inputs, tasks
    from pykernels.models import LSTMLanguageModel

    text = inputs.text()
    torch.manual_seed(0)
    model = LSTMLanguageModel(tasks.VOCABULARY, 256, 512, 2).eval()
    with torch.no_grad():  # ids past the text's words are padding: never to be said
        model.fc.bias[len(text.vocabulary) :] = float("-inf")
    prompt = text.tokens[STREAM_FROM : STREAM_FROM + 8]
    console.print("generate: " + " ".join(text.vocabulary[int(i)] for i in prompt), end="", style="bold", markup=False)
    generator = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    for token in model.generate(prompt, count, temperature=0.7, generator=generator):
        console.print(" " + text.vocabulary[int(token)], end="", markup=False, highlight=False, soft_wrap=True)
    rate = count / (time.perf_counter() - start)
    console.print(f"\n  (untrained: the words are real, the sentence is not; {rate:.0f} words a second)", style="dim")


def _table(results: list) -> Table:
    table = Table(title="relative L2 error against float64, and median latency at batch 1", title_justify="left")
    table.add_column("model", style="bold")
    table.add_column("contender")
    for name in ("error", "limit", "ms", "GFLOP/s", "speed-up"):
        table.add_column(name, justify="right")
    from pykernels.cli.demo.measure import LIMITS

    for result in results:
        for i, row in enumerate(result.rows):
            ratio = result.speedup(row)
            colour = "green" if ratio > 1.05 else "red" if ratio < 0.95 else "default"
            table.add_row(
                result.task.name if i == 0 else "",
                row.contender,
                f"{row.error:.1e}" if row.right else f"[bold red]{row.error:.1e}[/]",
                f"{LIMITS[row.dtype]:.0e}",
                f"{row.ms:.3g}",
                f"{result.task.flops / row.ms / 1e6:.0f}",
                "" if i == 0 else f"[{colour}]{ratio:.2f}x[/]",
                end_section=i == len(result.rows) - 1,
            )
    return table
