"""Loads the native libraries once, at import, and remembers why it could not load one.

``error`` is None when the CPU kernels are there. Otherwise it is one sentence that says what is missing and how to
repair it. The reference ops still work, and whatever needs the kernels raises that sentence. ``cuda_error`` is the same
for the CUDA kernels. They are loaded only where torch is a CUDA build, and if they fail the CPU kernels still work.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

from pykernels._native import _cuda

DIRECTORY = Path(__file__).parent
MEND = "build it with `pip install -e . --no-build-isolation` in the source tree, or reinstall pykernels"

#: Every op that the library has to define, because the package registers shapes and gradients for it.
OPS = (
    *("conv_bn_act", "conv_pack", "conv_bn_act_packed", "conv_bind", "conv_pack_bound", "conv_bn_act_bound"),
    *("conv_bn_act_bound_out", "conv_bn_act_bound_workspace", "conv_bn_act_chain_out"),
    *("linear_bound", "linear_bound_out", "linear_bound_workspace"),
    *("conv_statistics", "batch_norm_statistics", "batch_norm_act", "batch_norm_act_backward"),
    *("batch_norm_act_bind", "batch_norm_act_bound", "batch_norm_act_bound_out"),
    *("max_pool2d", "avg_pool2d", "global_avg_pool2d", "pool2d_bound", "pool2d_out"),
    *("int8_global_avg_pool2d", "int8_global_avg_pool2d_out"),
    *("upsample2d", "upsample2d_bound", "upsample2d_out"),
    *("group_norm_act", "group_norm_act_bound", "group_norm_act_out"),
    *("layer_norm", "layer_norm_bound", "layer_norm_out"),
    *("shuffle", "shuffle_bound", "shuffle_out"),
    *("squeeze_excite", "squeeze_excite_out", "int8_squeeze_excite", "int8_squeeze_excite_out"),
    *("lstm", "lstm_backward", "lstm_pack", "lstm_packed", "lstm_cell", "lstm_cell_backward", "lstm_cell_packed"),
    *("int8_matmul", "int8_pack", "int8_matmul_packed", "int8_linear", "int8_linear_packed", "quantize_int8"),
    *("int8_conv2d", "int8_conv_bind", "int8_conv2d_bound", "int8_conv2d_bound_out", "int8_conv2d_bound_workspace"),
    *("int8_conv2d_chain_out", "int8_linear_bound", "int8_linear_bound_out", "int8_linear_bound_workspace"),
    *("int8_quantize", "int8_quantize_out", "int8_dequantize", "int8_dequantize_out"),
    *("int8_add", "int8_add_out", "int8_lookup", "int8_lookup_out", "int8_affine", "int8_affine_out"),
    *("int8_lstm", "int8_lstm_pack", "int8_lstm_packed", "int8_lstm_cell", "int8_lstm_cell_packed"),
    *("weight_only_linear", "weight_only_linear_pack", "weight_only_linear_packed"),
    *("note_tensors", "are_as_noted", "kept_weight_bytes", "forget_kept_weights", "on_huge_pages"),
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


def _first_cut_short(*, cuda: bool) -> str | None:
    ours = [p for p in sorted(DIRECTORY.glob("*.so")) if (p in (_cuda.KERNELS, _cuda.BINDING)) == cuda]
    return next((part.name for part in ours if _is_cut_short(part)), None)


def _load() -> str | None:
    if _torch_is_old():
        return f"pykernels needs torch >= 2.11 for its stable ABI, this is torch {torch.__version__}; upgrade torch"
    library = DIRECTORY / "libpykernels_torch.so"
    if not library.exists():
        return f"the native library is not built ({library.name} is missing from {DIRECTORY}); {MEND}"
    cut_short = _first_cut_short(cuda=False)
    if cut_short is not None:
        return f"the native library is broken ({cut_short} is cut short); {MEND}"
    try:
        torch.ops.load_library(library)
    except OSError as problem:
        # torch wraps the loader's own words, which name the missing file or symbol.
        return f"the native library is broken ({problem.__cause__ or problem}); {MEND}"
    missing = [name for name in OPS if not hasattr(torch.ops.pykernels, name)]
    if missing:
        return f"the native library is stale, of another version of pykernels (it has no {', '.join(missing)}); {MEND}"
    absent = [name for name in ("_introspect", "_guard") if not any(DIRECTORY.glob(f"{name}*.so"))]
    if absent:
        return f"the native library is broken ({absent[0]} is missing from {DIRECTORY}); {MEND}"
    return None


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"pykernels._native.{name}")
    except ImportError as problem:
        raise RuntimeError(f"pykernels: {error or f'{problem}; {MEND}'}") from problem


def introspect() -> ModuleType:
    """The module that knows which ISAs the CPU and the build have. RuntimeError if it is missing."""
    return _module("_introspect")


def guard() -> ModuleType:
    """The module that checks and makes calls for `pykernels.optimize`. RuntimeError if it is missing."""
    return _module("_guard")


def why_not(backend: str, device: torch.device) -> str | None:
    """Why the kernels of ``backend`` cannot run on ``device``; None if they can."""
    if backend != "cuda":
        return error
    if cuda_error is not None or torch.compiler.is_compiling():
        return cuda_error
    return _cuda.device_error(device.index)


def cuda_build() -> dict[str, str] | None:
    """What the CUDA kernels were built for and with; None if they are missing. It works without CUDA."""
    return _cuda.build()


error: str | None = _load()
cuda_error: str | None = error if error is not None else _cuda.load(_first_cut_short(cuda=True))
