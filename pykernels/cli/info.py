"""``pykernels info``: versions, the native library, instruction sets, and the table of ops and backends."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

import pykernels
from pykernels import _native
from pykernels.cli._console import console, heading, table
from pykernels.cli.bench.machine import cpu_name, version
from pykernels.ops import _dispatch
from pykernels.ops._spec import OpSpec, all_specs

BACKENDS = _dispatch.BACKENDS[1:]  # all but "auto"


def slot(spec: OpSpec, backend: str) -> str | None:
    """None if the op is built for the backend, or the reason why it is not; the reference always is."""
    return spec.op.backends.get(backend, None if backend == "reference" else "it has no kernels there")


@dataclass(frozen=True)
class Facts:
    """All that `info` shows."""

    versions: dict[str, str]
    machine: dict[str, Any]
    #: None if the kernels are there; else what is missing and how to repair it.
    native_error: str | None
    #: The same for the CUDA kernels. If torch has no CUDA either, nothing needs repair.
    cuda_error: str | None
    #: What the CUDA kernels on disk were built for and with; None if there are none.
    cuda_build: dict[str, str] | None
    #: Why Triton's kernels cannot run here; None if they can.
    triton_error: str | None
    isas_compiled: list[str]
    isas_supported: list[str]
    isa: str | None
    #: Why pykernels could choose no instruction set: PYKERNELS_ISA names an unknown one, or one that does not run here.
    isa_error: str | None
    build: dict[str, str]
    #: op -> backend -> None if it is there, or the reason why not.
    ops: dict[str, dict[str, str | None]]

    @property
    def good(self) -> bool:
        """Whether nothing needs repair. CUDA kernels have to run where there is a GPU that torch can use."""
        cuda = self.cuda_error is None or self.machine["cuda device"] is None
        return self.native_error is None and self.isa_error is None and cuda


def collect() -> Facts:
    """Collects the facts, even without the native library and with an impossible PYKERNELS_ISA."""
    error, compiled, supported, build = _native.error, [], [], {}
    isa = isa_error = None
    if error is None:
        try:
            native = _native.introspect()
        except RuntimeError as problem:
            error = str(problem)
        else:
            compiled, supported, build = native.isas_compiled(), native.isas_supported(), native.build_info()
            try:
                isa = native.active_isa()
            except ValueError as problem:
                isa_error = str(problem)
    return Facts(
        versions={
            "pykernels": pykernels.__version__,
            "torch": str(torch.__version__),
            "triton": version("triton") or "not installed",
            "python": platform.python_version(),
        },
        machine={
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "cuda device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        native_error=error,
        cuda_error=_native.why_not("cuda", torch.device("cuda")),
        cuda_build=_native.cuda_build(),
        triton_error=_dispatch.triton_missing(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        isas_compiled=compiled,
        isas_supported=supported,
        isa=isa,
        isa_error=isa_error,
        build=build,
        ops={spec.name: {b: slot(spec, b) for b in BACKENDS} for spec in all_specs()},
    )


def run(as_json: bool) -> int:
    """Prints the facts and returns the exit code."""
    facts = collect()
    if as_json:
        print(json.dumps(asdict(facts), indent=2))
    else:
        show(facts, console())
    return 0 if facts.good else 1


def show(facts: Facts, out: Console) -> None:
    """Prints two tables, and at the end whatever needs repair."""
    heading(out, "info")
    lines = table("versions, machine and build", "what", "here")
    for name, value in {**facts.versions, **facts.machine}.items():
        lines.add_row(name, "none" if value is None else str(value))
    lines.add_row("native library", "[green]loaded[/]" if facts.native_error is None else "[red]not usable[/]")
    if facts.native_error is None:
        lines.add_row("built with", ", ".join(f"{name}: {value}" for name, value in facts.build.items()))
        lines.add_row("ISAs compiled", " ".join(facts.isas_compiled))
        lines.add_row("ISAs supported", " ".join(facts.isas_supported))
        chosen = facts.isa if facts.isa is not None else "[red]none[/]"
        asked = os.environ.get("PYKERNELS_ISA")
        lines.add_row("ISA in force", f"{chosen} (PYKERNELS_ISA={asked})" if asked and facts.isa else chosen)
    built = facts.cuda_build
    told = "not built" if built is None else f"built for {built['archs']}, with nvcc {built['nvcc']}"
    lines.add_row("CUDA kernels", f"{told}; {'[green]usable[/]' if facts.cuda_error is None else 'not usable'}")
    out.print(lines)
    out.print()
    _show_ops(facts, out)
    if facts.cuda_error is not None and facts.native_error is None:
        out.print()
        style = None if facts.machine["cuda device"] is None else "bold red"
        out.print(f"No CUDA kernels: {facts.cuda_error}.", style=style, markup=False, highlight=False)
    for what, error in (("The kernels do not run", facts.native_error), ("No CPU kernel can run", facts.isa_error)):
        if error is not None:
            out.print()
            out.print(f"{what}: {error}.", style="bold red", markup=False, highlight=False)
    if facts.native_error is not None:
        out.print('Until then every op runs as plain PyTorch (backend "reference").')


def _show_ops(facts: Facts, out: Console) -> None:
    reasons: list[str] = []
    shown = table("ops and backends", "op", *BACKENDS)
    blocked = {
        "cpu": "the native library is not usable, see below"
        if facts.native_error
        else "no instruction set can be chosen, see below"
        if facts.isa_error
        else None,
        "cuda": "the CUDA kernels are not usable, see below" if facts.cuda_error else None,
        "triton": facts.triton_error,
    }
    for op, slots in facts.ops.items():
        cells = []
        for backend, reason in slots.items():
            reason = reason or blocked.get(backend)
            if reason is None:
                cells.append("[green]yes[/]")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"[yellow]no[/] ({reasons.index(reason) + 1})")
        shown.add_row(op, *cells)
    out.print(shown)
    for number, reason in enumerate(reasons, 1):
        out.print(f"({number}) {reason}", markup=False, highlight=False)
