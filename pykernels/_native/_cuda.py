"""The CUDA libraries: why they cannot be used, what they were built for, and whether that covers a GPU.

Two files beside this one: ``libpykernels_cuda.so`` has the kernels and needs neither torch nor a driver to be loaded;
``libpykernels_torch_cuda.so`` registers them with torch's dispatcher, and is loaded only where torch is a CUDA build.
Nothing here touches a device at import.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import torch

DIRECTORY = Path(__file__).parent
KERNELS = DIRECTORY / "libpykernels_cuda.so"
BINDING = DIRECTORY / "libpykernels_torch_cuda.so"
MEND = "build them with `PK_CUDA=1 pip install -e . --no-build-isolation` in the source tree, where nvcc is"

#: Every op that the binding has CUDA kernels for.
OPS: tuple[str, ...] = (
    *("conv_statistics", "batch_norm_statistics", "batch_norm_act", "batch_norm_act_backward"),
    *("conv_bn_act", "conv_pack", "conv_bn_act_packed"),
    *("lstm", "lstm_backward", "lstm_pack", "lstm_packed", "lstm_cell", "lstm_cell_backward", "lstm_cell_packed"),
    *("int8_matmul", "int8_pack", "int8_matmul_packed", "int8_linear", "int8_linear_packed", "quantize_int8"),
    "int8_conv2d",
)


def load(cut_short: str | None) -> str | None:
    """Registers the CUDA kernels; None, or one sentence that says why they cannot be used.

    ``cut_short``: the name of a library of ours that ends too early to be mapped, if there is one.
    """
    missing = [library.name for library in (KERNELS, BINDING) if not library.exists()]
    if torch.version.cuda is None:
        kind = "a ROCm build" if torch.version.hip else "built for the CPU only"
        built = ", and the CUDA kernels are not built" if missing else ""
        return f"torch {torch.__version__} is {kind}{built}; install a CUDA build of torch"
    if missing:
        return f"the CUDA kernels are not built ({', '.join(missing)} missing from {DIRECTORY}); {MEND}"
    if cut_short is not None:
        return f"the CUDA library is broken ({cut_short} is cut short); {MEND}"
    try:
        torch.ops.load_library(BINDING)
    except OSError as problem:
        return f"the CUDA library is broken ({problem.__cause__ or problem}); {MEND}"
    absent = [op for op in OPS if not has_kernel(op)]
    if absent:
        return f"the CUDA library is stale, of another version of pykernels (it has no {', '.join(absent)}); {MEND}"
    return None


def has_kernel(op: str) -> bool:
    """Whether a loaded library has a CUDA kernel for ``op``."""
    defined = hasattr(torch.ops.pykernels, op)
    return defined and torch._C._dispatch_has_kernel_for_dispatch_key(f"pykernels::{op}", "CUDA")


@functools.cache
def build(library: Path = KERNELS) -> dict[str, str] | None:
    """What the kernels were built for and with: ``{"archs": "80+ptx 90a", "nvcc": "13.0.88"}``; None if unreadable."""
    if not library.exists():
        return None
    try:
        tell = ctypes.CDLL(str(library)).pykernels_cuda_build
    except (OSError, AttributeError):
        return None
    tell.restype = ctypes.c_char_p
    pairs = (part.split("=", 1) for part in tell().decode().split(";"))
    return dict(pairs)


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for ``archs`` have an image that a GPU of this compute capability can run.

    Machine code runs on its own major version, from its own minor one on. The driver compiles PTX for anything newer.
    Code for 90a runs on 9.0 only.
    """
    major, minor = capability
    for number, only, ptx in re.findall(r"(\d+)([af]?)(\+ptx)?", archs):
        built = divmod(int(number), 10)
        if only:
            if built == capability:
                return True
        elif (built[0] == major and built[1] <= minor) or (ptx and built <= capability):
            return True
    return False


@functools.cache
def device_error(index: int | None) -> str | None:
    """Why the kernels cannot run on one GPU (the current one: None); None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    built = build()
    if built is None:
        return f"the CUDA library is broken (it does not tell what it was built for); {MEND}"
    capability = torch.cuda.get_device_capability(index)
    if covers(built["archs"], capability):
        return None
    number = f"{capability[0]}{capability[1]}"
    # Older ones lack cp.async and the tensor cores' int8 and bfloat16, which no choice of targets brings.
    mend = f"build them with PK_CUDA_ARCHS={number}" if capability >= (8, 0) else "they need sm_80 (Ampere) or later"
    return (
        f"the CUDA kernels were built for {built['archs']} and have no kernel image for this GPU "
        f"({torch.cuda.get_device_name(index)}, sm_{number}); {mend}"
    )
