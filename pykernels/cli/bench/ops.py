"""``bench ops``: every op's bench samples in this process, eager against ours, beside what the machine could do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

import pykernels as pk
from pykernels import _native
from pykernels._measure import interleaved
from pykernels.cli.bench.eager import eager
from pykernels.cli.bench.machine import Peaks
from pykernels.ops._check import compare, inputs_of
from pykernels.ops._spec import OpSpec, Sample, all_specs


@dataclass(frozen=True)
class Timing:
    """One sample: milliseconds of both, what ours reaches, and as a share of the roof that bounds it (``of_roof``)."""

    op: str
    sample: str
    error: float | None = None
    eager_ms: float | None = None
    ours_ms: float | None = None
    gflops: float | None = None
    gbps: float | None = None
    of_roof: float | None = None
    reason: str | None = None

    @property
    def ratio(self) -> float | None:
        """Eager time / ours."""
        return self.eager_ms / self.ours_ms if self.eager_ms and self.ours_ms else None


def bench_samples(wanted: str | None = None) -> list[tuple[OpSpec, Sample]]:
    """The specs' large samples; of one op if it is named (`ValueError` where there is no such op)."""
    specs = all_specs()
    if wanted is not None and wanted not in [s.name for s in specs]:
        raise ValueError(f"op: expected one of {', '.join(s.name for s in specs)}; got {wanted!r}")
    return [(s, sample) for s in specs if wanted in (None, s.name) for sample in s.samples if sample.bench]


def time_ops(pairs: list[tuple[OpSpec, Sample]], peaks: Peaks, seconds: float) -> Iterator[Timing]:
    """One `Timing` after the other, float32 on the CPU."""
    for spec, sample in pairs:
        yield _time(spec, sample, peaks, seconds)


def _time(spec: OpSpec, sample: Sample, peaks: Peaks, seconds: float) -> Timing:
    reason = spec.op.backends.get("cpu") or _native.error
    if reason is not None:
        return Timing(spec.name, sample.name, reason=reason)
    outcome = compare(spec, sample, "cpu", torch.float32)
    if outcome.problem is not None:
        return Timing(spec.name, sample.name, error=outcome.error, reason=f"WRONG: {outcome.problem}")
    args, kwargs = inputs_of(sample, torch.float32)
    plain = eager(spec)
    with torch.no_grad(), pk.backend("cpu"):
        # One torch pool serves both, so they may share a process.
        calls = [partial(plain, *args, **kwargs), partial(spec.function, *args, **kwargs)]
        interleaved(calls, 0.0)
        times = interleaved(calls, seconds, least=3)
    eager_ms, ours_ms = (1e3 * statistics.median(t) for t in times)
    gflops, gbps = sample.flops / ours_ms / 1e6, sample.bytes / ours_ms / 1e6
    roof_ms = 1e3 * max(sample.flops / peaks.gflops, sample.bytes / peaks.gbps) / 1e9
    return Timing(spec.name, sample.name, outcome.error, eager_ms, ours_ms, gflops, gbps, roof_ms / ours_ms)
