"""Relative errors and times, which the tests, the command line and the benches share.

This file imports only the standard library, because the benches' workers load it by its path in processes that must not
load torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[], Any]


def relative_l2(got: Any, expected: Any) -> float:
    """|got - expected| / |expected|, in float64, of two tensors or two NumPy arrays.

    Infinite if the shapes differ, or one has a NaN or an infinity that the other has not.
    """
    got, expected = _float64(got), _float64(expected)
    if got.shape != expected.shape:
        return math.inf
    finite = abs(expected) < math.inf
    g, e = got[~finite], expected[~finite]
    got, expected = got[finite], expected[finite]
    if not bool(((g == e) | ((g != g) & (e != e))).all()) or not bool((abs(got) < math.inf).all()):
        return math.inf
    difference, norm = (math.sqrt(float((t * t).sum())) for t in (got - expected, expected))
    return difference / norm if norm > 0 else difference


def _float64(values: Any) -> Any:
    return values.detach().double() if hasattr(values, "detach") else values.astype("float64")


def wall_seconds(call: Call) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def gpu_seconds(call: Call) -> float:
    """Seconds of one call on the current CUDA stream, between two events."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def interleaved(
    calls: Sequence[Call],
    seconds: float,
    *,
    least: int = 1,
    most: float = math.inf,
    patience: float = math.inf,
    clock: Callable[[Call], float] = wall_seconds,
) -> list[list[float]]:
    """Seconds of each call. The calls take turns, so that whatever disturbs the machine disturbs all of them.

    Rounds go on for about ``seconds``, and then until there are ``least`` of them, but not beyond ``patience`` seconds.
    There are never more than ``most``.
    """
    taken: list[list[float]] = [[] for _ in calls]
    began, rounds = time.perf_counter(), 0
    while rounds < most:
        for call, times in zip(calls, taken, strict=True):
            times.append(clock(call))
        rounds += 1
        spent = time.perf_counter() - began
        if spent >= seconds and (rounds >= least or spent >= patience):
            break
    return taken
