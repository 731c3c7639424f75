"""What the Triton ops launch: recorded from calls on meta tensors, and looked up in their sources.

For tools/triton_gate.py. `record` makes the calls with `_triton.launch` replaced, so nothing is compiled or run;
`launched` and `uncovered` say which kernels and which calls of `launch` the recorded calls left out.
"""

from __future__ import annotations

import ast
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


@dataclass(frozen=True)
class Site:
    """A call of `launch`: lines of a file."""

    file: Path
    first: int
    last: int


def launched(files: Iterable[Path]) -> tuple[set[tuple[Path, str]], set[Site]]:
    """The kernels of some sources (file, name), and where they launch.

    A kernel is a `@triton.jit` function that no other one refers to, or that `launch` is given by name; the rest are
    helpers, which are compiled into kernels.
    """
    functions: dict[tuple[Path, str], ast.FunctionDef] = {}
    imported: dict[tuple[Path, str], tuple[str, str]] = {}  # name in a file -> the module's last name, name there
    sites, named = set(), set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any(_last_name(d) == "jit" for d in node.decorator_list):
                functions[file, node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    imported[file, alias.asname or alias.name] = node.module, alias.name
            elif isinstance(node, ast.Call) and _last_name(node.func) == "launch":
                sites.add(Site(file, node.lineno, node.end_lineno or node.lineno))
                if node.args and isinstance(node.args[0], ast.Name):
                    named.add((file, node.args[0].id))

    def resolve(file: Path, name: str) -> tuple[Path, str] | None:
        if (file, name) in functions:
            return file, name
        module, original = imported.get((file, name), ("", ""))
        tail = module.replace(".", "/") + ".py"
        return next((f for f in functions if module and str(f[0]).endswith(tail) and f[1] == original), None)

    helpers = {
        resolve(file, node.id)
        for (file, name), function in functions.items()
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id != name
    }
    given = {resolve(file, name) for file, name in named} - {None}
    return (set(functions) - helpers) | given, sites  # type: ignore[return-value,operator]


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def uncovered(
    kernels: set[tuple[Path, str]], sites: set[Site], ran: set[tuple[Path, str]], reached: set[tuple[Path, int]]
) -> list[str]:
    """The kernels that no call launched and the launches that no call reached, in words."""
    found = [f"{short(file)}: {name} is launched by no call of tools/triton_calls.py" for file, name in kernels - ran]
    found += [
        f"{short(site.file)}:{site.first}: no call of tools/triton_calls.py reaches this launch"
        for site in sites
        if not any(file == site.file and site.first <= line <= site.last for file, line in reached)
    ]
    return sorted(found)


def short(file: Path) -> str:
    """Its path under pykernels/ops."""
    return str(file.relative_to(OPS)) if file.is_relative_to(OPS) else str(file)
