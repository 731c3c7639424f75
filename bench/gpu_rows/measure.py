"""Timing: contenders on the same inputs, checked, captured in CUDA graphs where they can be, interleaved, medians.

A contender is a list of calls, one for each copy of the inputs; the copies together are larger than twice the L2
cache, so that no call finds its inputs there. All calls of a contender are one CUDA graph (mode "graph"), which leaves
out what Python and the launches cost; one that can't be captured runs on the stream (mode "stream"), where that counts.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pykernels._measure import gpu_seconds, interleaved, relative_l2, wall_seconds

Call = Callable[[], Any]
#: The rows of a section: a title, and what measures it.
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
#: Our own kernels: those in CUDA C++, and those in Triton.
TRITON = "ours, Triton"
OURS = ("ours", TRITON)

FLOORS = "gpu-floors-measured.json"


class Bench:
    """What the rows measure with; in a dry run on the CPU, with the reference for ours and no graphs."""

    def __init__(self, dry_run: bool, deadline: float) -> None:
        self.dry = dry_run
        self.deadline = deadline
        self.device = "cpu" if dry_run else "cuda"
        self.clock = wall_seconds if dry_run else gpu_seconds
        self.backend = "reference" if dry_run else "cuda"
        self.triton = "reference" if dry_run else "triton"
        self.half = torch.bfloat16 if dry_run else torch.float16  # 16 bits where there is a choice
        self.l2 = 1 << 16 if dry_run else torch.cuda.get_device_properties(0).L2_cache_size
        self.floors: dict[str, float] = {}
        torch.manual_seed(20261122)
        torch.backends.cudnn.benchmark = True  # peers at their best,
        torch.backends.cudnn.allow_tf32 = False  # and in float32 as exact as ours

    def left(self) -> float:
        """Seconds until the section has to end."""
        return self.deadline - time.monotonic()

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normally distributed, on the device."""
        return torch.randn(*shape, device=self.device).to(dtype)

    def int8(self, *shape: int) -> torch.Tensor:
        """Uniform, on the device."""
        return torch.randint(-127, 128, shape, device=self.device, dtype=torch.int8)

    def compile(self, function: Call, mode: str | None = None, dynamic: bool | None = None) -> Call:
        """torch.compile; in a dry run without a compiler."""
        if self.dry:
            return torch.compile(function, backend="eager", dynamic=dynamic)
        return torch.compile(function, mode=mode, dynamic=dynamic)

    def own(self, function: Callable[..., Any], inputs: Sequence[tuple[Any, ...]]) -> dict[str, Sequence[Call]]:
        """Our contenders: ``function`` of a backend and of each copy of the inputs."""
        backends = {"ours": self.backend, TRITON: self.triton}
        return {name: [partial(function, backend, *args) for args in inputs] for name, backend in backends.items()}

    def copies(self, bytes_of_one: int) -> int:
        """How many copies of the inputs it takes to go past L2 twice."""
        return max(1, min(2 if self.dry else 32, -(-2 * self.l2 // max(bytes_of_one, 1))))

    # ---- floors ----

    def describe(self) -> dict[str, Any]:
        """Device, driver, versions."""
        about: dict[str, Any] = {"python": platform.python_version(), "torch": str(torch.__version__)}
        if self.dry:
            return {"name": "dry run on the CPU", **about}
        from pykernels import _native

        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        try:
            told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as problem:
            told = f"nvidia-smi: {problem}"
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "l2 MiB": round(properties.L2_cache_size / 2**20, 1),
            "driver, clocks": told,
            "cuda of torch": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "kernels": _native.cuda_build(),
            "kernels usable": _native.why_not("cuda", torch.device("cuda")) or "yes",
            **about,
        }

    def measure_floors(self) -> dict[str, float]:
        """Copy bandwidth in GB/s (read and written), and matrix rates in TFLOP/s and TOP/s, on random data."""
        size = 64 if self.dry else 8192
        source = torch.randint(0, 255, (1 << (12 if self.dry else 30),), dtype=torch.uint8, device=self.device)
        to = torch.empty_like(source)
        copied = self._median([lambda: to.copy_(source)])
        floors = {"copy GB/s": 2 * source.numel() / copied / 1e3}
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            a, b = self.randn(size, size, dtype=dtype), self.randn(size, size, dtype=dtype)
            floors[f"{name} TFLOP/s"] = 2 * size**3 / self._median([lambda a=a, b=b: a @ b]) / 1e6
        a, b = self.int8(size, size), self.int8(size, size).t()
        floors["int8 TOP/s"] = 2 * size**3 / self._median([lambda: torch._int_mm(a, b)]) / 1e6
        return {name: float(f"{value:.4g}") for name, value in floors.items()}

    def use_floors(self, folder: Path) -> None:
        """Those that an earlier section of the same run measured, else measured now."""
        kept = folder / FLOORS
        if kept.exists() and time.time() - kept.stat().st_mtime < 1800:
            self.floors = json.loads(kept.read_text())
        else:
            self.floors = self.measure_floors()
            kept.write_text(json.dumps(self.floors))

    def floor_us(self, operations: float, moved: float, rate: str) -> float:
        """The larger of operations over the matrix rate and bytes over the bandwidth, in microseconds."""
        unit = "int8 TOP/s" if rate == "int8" else f"{rate} TFLOP/s"
        return max(operations / self.floors[unit] / 1e6, moved / self.floors["copy GB/s"] / 1e3)

    # ---- timing ----

    def row(
        self,
        contenders: dict[str, Sequence[Call]],
        expected: Callable[[], torch.Tensor],
        tolerance: float,
        *,
        pick: Callable[[Any], torch.Tensor] = lambda y: y,
        operations: float = 0,
        moved: float = 0,
        rate: str = "fp16",
        seconds: float = 1.5,
    ) -> dict[str, Any]:
        """Checks the first call of every contender against ``expected``, then times all of them in turns.

        The contender "ours" (CUDA C++) has to be right; another that fails or is wrong, `TRITON` too, is named, and
        not timed. The ratio is that of the best peer, which `TRITON` is not.
        """
        reference = expected()
        found: dict[str, dict[str, Any]] = {}
        runners: dict[str, tuple[Call, int]] = {}
        for name, calls in contenders.items():
            try:
                error = relative_l2(pick(calls[0]()), reference)
                found[name] = {"error": float(f"{error:.3g}")}
                if not error <= tolerance:
                    raise ArithmeticError(f"relative L2 error {error:.3g}, allowed {tolerance:.3g}")
                runners[name], found[name]["mode"] = self._runner(calls)
            except Exception as problem:
                if name == "ours":
                    raise
                found[name] = {"problem": f"{type(problem).__name__}: {str(problem)[:300]}"}
        times = interleaved(
            [runner for runner, _ in runners.values()],
            min(seconds, self.deadline - time.monotonic()),
            least=3,
            most=1 if self.dry else 200,
            clock=self.clock,
        )
        for (name, (_, count)), taken in zip(runners.items(), times, strict=True):
            values = [1e6 * t / count for t in taken]
            found[name] |= {
                "us": round(statistics.median(values), 3), "least us": round(min(values), 3), "samples": len(values)
            }  # fmt: skip
        row: dict[str, Any] = {"contenders": found, "tolerance": tolerance}
        if operations or moved:
            floor = self.floor_us(operations, moved, rate)
            row |= {"operations": operations, "bytes": moved, "floor us": round(floor, 3)}
            row["share of floor"] = round(floor / found["ours"]["us"], 4)
        peers = {name: about["us"] for name, about in found.items() if name not in OURS and "us" in about}
        if peers:
            row["peer"] = min(peers, key=peers.__getitem__)
            row["ratio"] = round(peers[row["peer"]] / found["ours"]["us"], 4)
        return row

    def _runner(self, calls: Sequence[Call]) -> tuple[tuple[Call, int], str]:
        """What runs the calls, as often as makes about a millisecond; how many those are; the mode."""
        for call in calls:
            call()
        all_us = 1e6 * self.clock(lambda: [call() for call in calls])
        repeats = max(1, min(64, round(1000 / max(all_us, 1))))
        if self.dry:
            repeats = 1

        def stream() -> None:
            for _ in range(repeats):
                for call in calls:
                    call()

        count = repeats * len(calls)
        if self.dry:
            return (stream, count), "stream"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            stream()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                stream()
        except Exception as problem:
            torch.cuda.synchronize()
            print(f"not captured: {type(problem).__name__}: {str(problem)[:200]}", flush=True)
            return (stream, count), "stream"
        return (graph.replay, count), "graph"

    def time(self, calls: Sequence[Call]) -> float:
        """The median, of a contender alone."""
        return round(self._median(calls), 3)

    def _median(self, calls: Sequence[Call]) -> float:
        (runner, count), _ = self._runner(calls)
        return 1e6 * statistics.median(self.clock(runner) / count for _ in range(2 if self.dry else 20))
