"""``pykernels demo``: four models on real input, plain PyTorch against pykernels, checked and timed."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pykernels.cli._console import complain, heading, progress, ratio, table, wrote
from pykernels.cli._console import console as make_console
from pykernels.cli._console import threads as told
from pykernels.cli.bench.result import Result

NEEDED = ("sklearn", "matplotlib", "PIL")
#: A place in the text where a sentence begins.
STREAM_FROM = 376


def run(quick: bool, out: Path, threads: int | None) -> int:
    """Runs it and prints; returns the exit code, which is 1 if an answer is wrong or a package is missing."""
    console = make_console()
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        complain(
            "demo",
            "its photographs, text and picture need scikit-learn and matplotlib, and "
            f"{', '.join(missing)} cannot be imported; pip install scikit-learn matplotlib scipy",
        )
        return 1
    from pykernels import _native
    from pykernels.cli.bench import machine
    from pykernels.cli.bench.report import noise
    from pykernels.cli.demo import measure, picture, tasks

    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        if _native.error is not None:
            raise RuntimeError(_native.error)
        isa = _native.introspect().active_isa()
    except (RuntimeError, ValueError) as problem:
        complain("demo", f"it needs the kernels: {problem}")
        return 1
    where = f"{machine.cpu_name()}, {isa}, {told(torch.get_num_threads())}, torch {torch.__version__}"
    heading(console, "demo")
    console.print(
        "The input is real. The weights are random, from a fixed seed: what counts is that the same arithmetic\n"
        "is fast and exact, not what the models say. Batch norms are calibrated on crops of the photographs,\n"
        "and the last one of each residual block is scaled down to 1/4: a random network lets bfloat16's\n"
        "errors pile up as a trained one would not.\n"
    )
    found: list[tuple[tasks.Task, list[Result]]] = []
    with progress(console, 2 + 5 * len(tasks.TASKS)) as step:
        step("the machine's peaks")
        peaks = machine.measure_peaks(0.3 if quick else 1.0)
        for make in tasks.TASKS:
            step(f"{make.__name__}: weights and input")
            task = make()
            results, report = measure.measure(task, 0.5 if quick else 6.0, 3 if quick else 15, step)
            found.append((task, results))
            plain, ours, _ = results
            console.print(
                f"[bold]{task.name}[/] on {task.input}: {plain.median_ms:.3g} ms -> {ours.median_ms:.3g} ms, "
                f"[bold]{ours.ratio:.2f}x[/]"
            )
            console.print(f"  {_summary(report)}", style="dim", markup=False, highlight=False)
        step("picture")
        busy = noise([r for _, results in found for r in results])
        path = picture.draw(found, peaks, f"pykernels against plain PyTorch: {where}", out, busy)
    _stream(console, 12 if quick else 24)
    console.print()
    console.print(_table([results for _, results in found]))
    if busy is not None:
        console.print(f"{busy}: do not trust the times", style="bold yellow", markup=False)
    wrote(console, path)
    wrong = [r for _, results in found for r in results if r.reason]
    for r in wrong:
        console.print(f"{r.row}, {r.contender}: {r.reason}", style="bold red", markup=False)
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
    """Prints one line of the language model, word by word."""
    from pykernels.cli.demo import inputs, tasks
    from pykernels.models import LSTMLanguageModel

    text = inputs.text()
    torch.manual_seed(0)
    sizes = (int(tasks.LANGUAGE[name]) for name in ("vocabulary", "embedding", "hidden", "layers"))
    model = LSTMLanguageModel(*sizes).eval()
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


def _table(found: list[list[Result]]) -> Table:
    from pykernels.cli.demo.measure import CONTENDERS

    columns = ("model", "contender", ">error", ">limit", ">ms", ">GFLOP/s", ">speed-up")
    title = "relative L2 error against float64, and median latency at batch 1; GFLOP/s as of direct convolutions"
    shown = table(title, *columns)
    for results in found:
        for i, r in enumerate(results):
            shown.add_row(
                f"[bold]{r.row}[/]" if i == 0 else "",
                r.contender,
                f"[bold red]{r.error:.1e}[/]" if r.reason else f"{r.error:.1e}",
                f"{CONTENDERS[r.contender][1]:.0e}",
                f"{r.median_ms:.3g}",
                f"{r.gflops:.0f}",
                "" if i == 0 else ratio(r.ratio),
                end_section=i == len(results) - 1,
            )
    return shown
