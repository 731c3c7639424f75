"""Time, memory and error of one contender in this process. numpy only."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: The largest relative L2 error that still counts as the right answer, against the float64 reference.
#: float32: sums of up to 4608 products over some twenty layers, times Winograd's amplification in ncnn's F(6,3).
#: bfloat16: its rounding (2^-8) compounded over fifty layers. int8: dynamic quantisation, one scale a tensor.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 1.5e-1, "exact": 0.0}


def _by_path(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: ``import pykernels`` would bring torch, which other engines' processes must be without.
_measure = _by_path(Path(__file__).parents[3] / "_measure.py")


def worst_error(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Over the outputs that both have: some engines drop an LSTM's state, some a dimension of 1."""
    if not got:
        return float("inf")
    return max(_measure.relative_l2(g.ravel(), e.ravel()) for g, e in zip(got, expected, strict=False))


def time_calls(call: Callable[[], Any], seconds: float, least: int = 5, most: int = 5000) -> dict[str, float]:
    """Calls again and again for about ``seconds``, and for ``least`` calls if those are done in five times that.

    Returns the median and the best in milliseconds, the number of calls, the minor page faults per call (at large
    batches an allocator that gives its pages back can cost more than the work), and how many CPUs others kept busy
    meanwhile: with two threads on two CPUs, a compiler that runs beside makes every pool wait at its barriers.
    """
    collecting = gc.isenabled()
    gc.disable()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    busy, own, began = busy_elsewhere_s(), time.process_time(), time.perf_counter()
    try:
        (taken,) = _measure.interleaved([call], seconds, least=least, most=most, patience=5 * seconds)
    finally:
        if collecting:
            gc.enable()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    wall = time.perf_counter() - began
    return {
        "median_ms": 1e3 * statistics.median(taken),
        "best_ms": 1e3 * min(taken),
        "calls": len(taken),
        "faults": faults / len(taken),
        "cpus": (time.process_time() - own) / wall,
        "others": max(0.0, busy_elsewhere_s() - busy) / wall,
    }


def busy_elsewhere_s() -> float:
    """CPU seconds since boot that went to other processes, other machines on the same host (steal) included."""
    try:
        with open("/proc/stat") as stat:
            ticks = [int(t) for t in stat.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    idle = ticks[3] + ticks[4]
    own = os.times()
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def forget_peak() -> None:
    """Sets the peak back to what is resident now, freed pages given back first. Linux; elsewhere it does nothing."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def memory_mb() -> tuple[float, float]:
    """This process's resident memory now and at its peak, in MB (10^6 bytes)."""
    found = {"VmRSS:": 0.0, "VmHWM:": 0.0}
    try:
        with open("/proc/self/status") as status:
            for line in status:
                name, *rest = line.split()
                if name in found:
                    found[name] = int(rest[0]) * 1024 / 1e6
    except OSError:
        found["VmRSS:"] = found["VmHWM:"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return found["VmRSS:"], found["VmHWM:"]
