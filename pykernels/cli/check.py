"""``pykernels check``: every op, backend, instruction set and dtype against the float64 reference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.table import Table

from pykernels import _native
from pykernels.cli._console import console as make_console
from pykernels.cli._console import heading, progress, table
from pykernels.cli.info import BACKENDS, slot
from pykernels.ops._check import compare, forced_isa, host_isas
from pykernels.ops._dispatch import triton_missing
from pykernels.ops._spec import OpSpec, all_specs
from pykernels_cli._options import check_choice


@dataclass(frozen=True)
class Case:
    """One line of the table: an op on a backend, an instruction set (CPU kernels only) and a dtype."""

    spec: OpSpec
    backend: str
    isa: str | None
    dtype: torch.dtype


@dataclass
class Line:
    """The result of a case: the sample nearest its tolerance, and every failure."""

    case: Case
    samples: int = 0
    error: float = 0.0
    tolerance: float = 0.0
    sample: str = ""
    failures: tuple[str, ...] = ()


def cases(ops: Sequence[str], backend: str | None, isa: str | None, dtype: str | None) -> Iterator[Case]:
    """The cases that the options leave, in the order of the table; of every op where ``ops`` is empty.

    Raises:
        ValueError: An option has an unknown value.
    """
    specs = all_specs()
    for op in ops:
        check_choice("--op", op, [s.name for s in specs])
    check_choice("--backend", backend, BACKENDS)
    isas = host_isas()
    if isa is not None:
        if _native.error is not None:
            raise ValueError(f"--isa: expected none, got {isa!r}: {_native.error}")
        check_choice("--isa", isa, isas)
    names = dict.fromkeys(n for s in specs for d in s.op.takes("reference") for n in dtypes_of(s, d))
    dtype = dtype and dtype.removeprefix("torch.")
    check_choice("--dtype", dtype, names)
    for spec in specs:
        for where in BACKENDS:
            if (ops and spec.name not in ops) or backend not in (None, where) or why_not(spec, where) is not None:
                continue
            if isa is not None and where != "cpu":
                continue
            for name in isas if where == "cpu" else [None]:
                for kind in spec.op.takes(where):
                    if isa in (None, name) and (dtype is None or dtype in dtypes_of(spec, kind)):
                        yield Case(spec, where, name, kind)


def dtypes_of(spec: OpSpec, kind: torch.dtype) -> tuple[str, ...]:
    """The names of the dtypes in the samples that are made for the floating dtype ``kind``."""
    return tuple(str(d).removeprefix("torch.") for d in spec.sample_dtypes(kind))


def why_not(spec: OpSpec, backend: str) -> str | None:
    """Why the op cannot be checked there; None if it can."""
    reason = slot(spec, backend)
    if reason is not None or backend == "reference":
        return reason
    if backend == "cpu":
        return _native.error
    if backend == "cuda":
        return _native.why_not(backend, torch.device("cuda"))
    return triton_missing(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def check(case: Case) -> Line:
    """Checks every sample of one case, and turns every exception into a failure."""
    line = Line(case)
    nearest = -1.0
    with forced_isa(case.isa) if case.isa is not None else nullcontext():
        for sample in case.spec.samples:
            if sample.bench:
                continue
            line.samples += 1
            try:
                outcome = compare(case.spec, sample, case.backend, case.dtype)
            except Exception as problem:  # whatever it is, the table has to show it and go on
                line.failures += (f"{sample.name}: {type(problem).__name__}: {problem}",)
                continue
            if outcome.problem is not None:
                line.failures += (f"{sample.name}: {outcome.problem}",)
            closeness = outcome.error / outcome.tolerance if outcome.tolerance > 0 else outcome.error
            if closeness > nearest:
                nearest = closeness
                line.error, line.tolerance, line.sample = outcome.error, outcome.tolerance, sample.name
    return line


def run(ops: Sequence[str], backend: str | None, isa: str | None, dtype: str | None) -> int:
    """Checks and prints; returns the exit code, which is 1 if a case failed or if there was none."""
    console, interpreted = make_console(), False
    if backend == "triton" and not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at its import, which nobody has done yet
        interpreted = True
    todo = list(cases(ops, backend, isa, dtype))
    heading(console, "check")
    if interpreted:
        console.print("No GPU: the Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1).")
    lines = []
    with progress(console, len(todo)) as step:
        for case in todo:
            step(f"{case.spec.name}, {case.isa or case.backend}, {_dtypes(case)}")
            lines.append(check(case))
    console.print(_table(lines))
    bad = [line for line in lines if line.failures]
    for line in bad:
        case = line.case
        for failure in line.failures:
            where = ", ".join(filter(None, (case.spec.name, case.backend, case.isa, _dtypes(case))))
            console.print(f"{where}: {failure}", style="red", markup=False, highlight=False)
    for reason, slots in _left_out(ops, backend, isa).items():
        console.print(f"Not checked: {', '.join(slots)}: {reason}", markup=False, highlight=False)
    if not todo:
        console.print("Nothing was checked.", style="bold red")
        return 1
    total = sum(line.samples for line in lines)
    if bad:
        console.print(f"{len(bad)} of {len(lines)} lines failed ({total} samples).", style="bold red")
        return 1
    console.print(f"All {len(lines)} lines are within tolerance ({total} samples).", style="bold green")
    return 0


def _table(lines: list[Line]) -> Table:
    columns = ("op", "backend", "ISA", "dtype", ">samples", ">error", ">tolerance", "worst sample", "")
    shown = table("relative L2 error against float64; the worst sample of each line", *columns)
    for line in lines:
        exact = line.tolerance == 0
        shown.add_row(
            line.case.spec.name,
            line.case.backend,
            line.case.isa or "",
            _dtypes(line.case),
            str(line.samples),
            "exact" if exact and line.error == 0 else f"{line.error:.1e}",
            "exact" if exact else f"{line.tolerance:.1e}",
            line.sample,
            "[bold red]FAILED[/]" if line.failures else "[green]ok[/]",
        )
    return shown


def _left_out(ops: Sequence[str], backend: str | None, isa: str | None) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for spec in all_specs():
        for where in BACKENDS:
            reason = why_not(spec, where)
            asked = (not ops or spec.name in ops) and backend in (None, where)
            if asked and isa is None and reason is not None:
                reasons.setdefault(reason, []).append(f"{spec.name} on {where}")
    return reasons


def _dtypes(case: Case) -> str:
    return " + ".join(dtypes_of(case.spec, case.dtype))
