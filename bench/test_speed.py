"""Ops and models under pytest-benchmark: ``make bench``, or ``python -m pytest bench --benchmark-only``.

Eager and ours share a process and torch's thread pool here, so these figures are for watching a change from one
commit to the next (``--benchmark-autosave``, ``--benchmark-compare``). For the engines there is
``python -m pykernels bench peers``. Every answer is checked first.
"""

from __future__ import annotations

import os

import pytest
import torch

import pykernels as pk
from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.cli.bench.eager import eager
from pykernels.cli.bench.ops import bench_samples
from pykernels.cli.bench.peers.measure import TOLERANCE
from pykernels.cli.bench.peers.rows import select
from pykernels.cli.bench.peers.subjects import build
from pykernels.ops._check import compare, inputs_of, tensors_of, to_double

DTYPES = {"eager": None, "ours": None, "ours_bf16": torch.bfloat16}


@pytest.fixture
def time(benchmark):
    """Times a call without gradients: on one thread, unless PYKERNELS_BENCH_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("PYKERNELS_BENCH_THREADS", "1")))

    def run(group, flops, function, args, kwargs=None, *, rounds, warmup_rounds):
        benchmark.group = group
        with torch.no_grad(), pk.backend("cpu" if _native.error is None else "auto"):
            benchmark.pedantic(function, args, kwargs, rounds=rounds, iterations=1, warmup_rounds=warmup_rounds)
        benchmark.extra_info["gflops"] = flops / benchmark.stats["median"] / 1e9

    return run


@pytest.mark.parametrize("who", ["eager", "ours"])
@pytest.mark.parametrize(("spec", "sample"), bench_samples(), ids=lambda value: value.name)
def test_op(spec, sample, who, time):
    args, kwargs = inputs_of(sample, torch.float32)
    function = eager(spec)
    if who == "ours":
        if (reason := spec.op.backends.get("cpu") or _native.error) is not None:
            pytest.skip(reason)
        assert compare(spec, sample, "cpu", torch.float32).problem is None
        function = spec.function
    else:
        with torch.no_grad():
            pairs = zip(tensors_of(function(*args, **kwargs)), tensors_of(spec.reference(*args, **kwargs)), strict=True)
            assert all(relative_l2(got, expected) <= 1e-5 for got, expected in pairs)
    time(f"{spec.name}-{sample.name}", sample.flops, function, args, kwargs, rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("who", list(DTYPES))
@pytest.mark.parametrize("row", select("models", ["*_b1"]), ids=lambda row: row.name)
def test_model(row, who, time):
    model, inputs = build(row)
    if who != "eager":
        if _native.error is not None:
            pytest.skip(_native.error)
        dtype = DTYPES[who]
        fast = pk.optimize(model, dtype=dtype)
        with torch.no_grad():
            inputs = tuple(t.to(dtype) if dtype and t.is_floating_point() else t for t in inputs)
            got = tensors_of(fast(*inputs))[0]
            expected = tensors_of(model.double()(*to_double(inputs)))[0]
        assert relative_l2(got, expected) <= TOLERANCE["float32" if dtype is None else "bfloat16"]
        model = fast
    time(row.name, row.flops, model, inputs, rounds=5, warmup_rounds=1)
