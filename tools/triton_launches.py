"""What the Triton ops launch: recorded from calls on meta tensors, and looked up in their sources.

For tools/triton_gate.py. `record` makes the calls with `_triton.launch` replaced, so nothing is compiled or run;
`launched` and `uncovered` say which kernels and which calls of `launch` the recorded calls left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "pykernels/ops"

#: Target -> what `pykernels.ops._triton` chooses tiles for, and Triton's name of it.
TARGETS: dict[str, tuple[str, tuple[str, int | str, int]]] = {
    "sm_80": ("AMPERE", ("cuda", 80, 32)),
    "sm_90": ("HOPPER", ("cuda", 90, 32)),
    "gfx942": ("CDNA3", ("hip", "gfx942", 64)),
}


@dataclass
class Launch:
    """What `launch` was given."""

    kernel: Any
    call: str
    target: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


# ---- recording ----


def record(
    calls: dict[str, Callable[[], object]], target: str, reached: set[tuple[Path, int]]
) -> tuple[list[Launch], list[str]]:
    """What the calls launch on a target, and the calls that failed; adds to the lines of `launch` calls reached."""
    from pykernels.ops import _triton

    launches: list[Launch] = []
    failed = []
    label = ""

    def recorder(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        caller = sys._getframe(1)
        reached.add((Path(caller.f_code.co_filename).resolve(), caller.f_lineno))
        launches.append(Launch(kernel, label, target, arguments, constants))

    launch = _triton.launch
    users = [m for n, m in sys.modules.items() if n.startswith("pykernels.") and getattr(m, "launch", None) is launch]
    for module in users:
        module.launch = recorder  # type: ignore[attr-defined]
    try:
        with _triton.on_device(getattr(_triton, TARGETS[target][0])):
            for label, call in calls.items():
                try:
                    call()
                except Exception as problem:
                    failed.append(f"{target}: the call {label!r} failed: {type(problem).__name__}: {problem}")
    finally:
        for module in users:
            module.launch = launch  # type: ignore[attr-defined]
    return launches, failed


def kernel_of(launch: Launch) -> tuple[Path, str]:
    """Where a launched kernel is defined, and its name."""
    return Path(launch.kernel.fn.__code__.co_filename).resolve(), launch.kernel.fn.__name__


# ---- what the sources launch ----

#: A file and a name in it, or a line of it.
Kernels = set[tuple[Path, str]]
Sites = set[tuple[Path, int]]


def launched(files: Iterable[Path]) -> tuple[Kernels, Sites]:
    """The kernels of some sources, and where they launch. Kernels are named so; other jitted functions are helpers."""
    kernels: Kernels = set()
    sites: Sites = set()
    for file in files:
        text = file.read_text()
        kernels |= {(file, name) for name in re.findall(r"^def (\w+_kernel)\(", text, re.M)}
        lines = enumerate(text.splitlines(), 1)
        sites |= {(file, number) for number, line in lines if re.match(r"\s+launch\(", line)}
    return kernels, sites


def uncovered(kernels: Kernels, sites: Sites, ran: Kernels, reached: Sites) -> list[str]:
    """The kernels that no call launched and the launches that no call reached, in words."""
    found = [f"{short(file)}: {name} is launched by no call of tools/triton_calls.py" for file, name in kernels - ran]
    found += [f"{short(file)}: {name} is launched, and not named as a kernel" for file, name in ran - kernels]
    for file, line in sites - reached:
        found.append(f"{short(file)}:{line}: no call of tools/triton_calls.py reaches this launch")
    for file, line in reached - sites:
        found.append(f"{short(file)}:{line}: a launch that is no statement of its own")
    return sorted(found)


def short(file: Path) -> str:
    """Its path under pykernels/ops."""
    return str(file.relative_to(OPS)) if file.is_relative_to(OPS) else str(file)
