"""What a figure needs beside it: the machine, the versions, the commit, the date, and the machine's peaks."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pykernels._measure import interleaved

ENGINES = ("onnxruntime", "openvino", "ncnn", "executorch", "MNN")
PACKAGES = ("torch", "pykernels", *ENGINES, "pnnx", "onnx", "onnxscript", "numpy")


def describe() -> dict[str, Any]:
    """The machine and the software, as JSON takes it."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": _isa(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
    }


def cpu_name() -> str:
    """The CPU's marketing name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def isa_in_force() -> str:
    """The ISA of the CPU kernels, or "no kernels" if none can run; `pykernels info` says why."""
    from pykernels import _native

    try:
        return str(_native.introspect().active_isa())
    except (RuntimeError, ValueError):
        return "no kernels"


def _isa() -> str:
    from pykernels import _native

    return "none: " + _native.error if _native.error is not None else str(_native.introspect().active_isa())


def version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    if name == "torch":
        return str(torch.__version__)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a plus sign if the tree has changes; None outside of a source tree."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class Peaks:
    """What the machine reached in a short measurement: float32 GFLOP/s, and GB/s.

    ``gbps`` counts what a copy reads and writes in memory, ``cache_gbps`` what a core reads from its own caches.
    """

    gflops: float
    gbps: float
    threads: int
    cache_gbps: float


def measure_peaks(seconds: float = 0.6) -> Peaks:
    """The roofs of a roofline at torch's current thread count.

    Arithmetic: the best of matrix products and a convolution that run from the caches. Bandwidth: the best copy of a
    block several times the size of the last cache; from caches, the product of a vector with a matrix of 512 KB for
    each thread. All of these are what a very good program reaches, not what the data sheet says.
    """
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    with torch.no_grad():
        for n in (256, 512, 1024):
            a, b = (torch.randn(n, n, generator=generator) for _ in range(2))
            out = torch.empty(n, n)
            best = max(best, 2 * n**3 / _best(partial(torch.mm, a, b, out=out), seconds / 5))
        x = torch.randn(1, 128, 28, 28, generator=generator).contiguous(memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
        work = 2 * 28 * 28 * 128 * 128 * 9
        best = max(best, work / _best(lambda: torch.conv2d(x, w, padding=1), seconds / 5))
        source = torch.ones(64 * 2**20)
        target = torch.empty_like(source)
        moved = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds / 5)
        matrix, vector, product = torch.ones(threads * 512, 256), torch.ones(256), torch.empty(threads * 512)
        read = matrix.nbytes / _best(lambda: torch.mv(matrix, vector, out=product), seconds / 5)
    return Peaks(best / 1e9, moved / 1e9, threads, read / 1e9)


def _best(call: Callable[[], Any], seconds: float) -> float:
    call()
    return min(interleaved([call], seconds)[0])
