"""``bench ops``: every op's bench samples in this process, eager against ours, beside what the machine could do."""

from __future__ import annotations

from functools import partial

import torch

import pykernels as pk
from pykernels import _native
from pykernels._measure import interleaved
from pykernels.cli.bench.eager import eager
from pykernels.cli.bench.machine import Peaks
from pykernels.cli.bench.result import Result, time_here
from pykernels.ops._check import compare, inputs_of
from pykernels.ops._spec import OpSpec, Sample, all_specs
from pykernels_cli._options import check_choice


def bench_samples(wanted: str | None = None) -> list[tuple[OpSpec, Sample]]:
    """The specs' large samples; of one op if it is named (`ValueError` where there is no such op)."""
    specs = all_specs()
    check_choice("op", wanted, [s.name for s in specs])
    return [(s, sample) for s in specs if wanted in (None, s.name) for sample in s.samples if sample.bench]


def time_op(spec: OpSpec, sample: Sample, peaks: Peaks, seconds: float) -> tuple[Result, Result]:
    """Eager and ours, float32 on the CPU."""
    plain, ours = both = tuple(
        Result(f"{spec.name} {sample.name}", who, peaks.threads, None, sample.flops) for who in ("eager", "ours")
    )
    ours.reason = spec.op.backends.get("cpu") or _native.error
    if ours.reason is not None:
        ours.status = "skipped"
        return plain, ours
    outcome = compare(spec, sample, "cpu", torch.float32)
    ours.error = outcome.error
    if outcome.problem is not None:
        ours.status, ours.reason = "wrong", f"WRONG: {outcome.problem}"
        return plain, ours
    args, kwargs = inputs_of(sample, torch.float32)
    with torch.no_grad(), pk.backend("cpu"):
        calls = [partial(eager(spec), *args, **kwargs), partial(spec.function, *args, **kwargs)]
        interleaved(calls, 0.0)
        time_here(both, calls, seconds)
    assert ours.median_ms is not None
    ours.gbps = sample.bytes / ours.median_ms / 1e6
    ours.of_roof = 1e-6 * max(sample.flops / peaks.gflops, sample.bytes / peaks.gbps) / ours.median_ms
    return plain, ours
