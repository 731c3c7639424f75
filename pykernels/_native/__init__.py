"""Loads the native library once, at import, and remembers why it could not be.

``error`` is None when the kernels are there. Otherwise it is one sentence that says what is missing and how to mend it;
the reference ops go on working, and whatever needs the kernels raises it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

DIRECTORY = Path(__file__).parent
MEND = "build it with `pip install -e . --no-build-isolation` in the source tree, or reinstall pykernels"

#: Every op that the library has to define, for the package registers shapes and gradients for them.
OPS = (
    *("conv_bn_act", "conv_pack", "conv_bn_act_packed"),
    *("lstm", "lstm_backward", "lstm_pack", "lstm_packed", "lstm_cell", "lstm_cell_backward", "lstm_cell_packed"),
    *("int8_matmul", "int8_pack", "int8_matmul_packed", "int8_linear", "int8_linear_packed", "quantize_int8"),
)


def _torch_is_old() -> bool:
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return (int(major), int(minor)) < (2, 11)


def _is_cut_short(library: Path) -> bool:
    """Does the file end before the section table that its ELF header announces? To load it would be a SIGBUS."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return False  # the loader has words for that
    offset, entry, entries = (int.from_bytes(header[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return library.stat().st_size < offset + entry * entries


def _load() -> str | None:
    if _torch_is_old():
        return f"pykernels needs torch >= 2.11 for its stable ABI, this is torch {torch.__version__}; upgrade torch"
    library = DIRECTORY / "libpykernels_torch.so"
    if not library.exists():
        return f"the native library is not built ({library.name} is missing from {DIRECTORY}); {MEND}"
    for part in sorted(DIRECTORY.glob("*.so")):
        if _is_cut_short(part):
            return f"the native library is broken ({part.name} is cut short); {MEND}"
    try:
        torch.ops.load_library(library)
    except OSError as problem:
        # torch wraps the loader's own words, which name the missing file or symbol.
        return f"the native library is broken ({problem.__cause__ or problem}); {MEND}"
    missing = [name for name in OPS if not hasattr(torch.ops.pykernels, name)]
    if missing:
        return f"the native library is stale, of another version of pykernels (it has no {', '.join(missing)}); {MEND}"
    if not any(DIRECTORY.glob("_introspect*.so")):
        return f"the native library is broken (_introspect is missing from {DIRECTORY}); {MEND}"
    return None


def introspect() -> ModuleType:
    """The pybind11 module: ISA detected, chosen, compiled; build info. RuntimeError where there is none."""
    try:
        return importlib.import_module("pykernels._native._introspect")
    except ImportError as problem:
        raise RuntimeError(f"pykernels: {error or f'{problem}; {MEND}'}") from problem


error: str | None = _load()
