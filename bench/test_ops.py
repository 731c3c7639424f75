"""Every op's bench samples: what PyTorch does today against ours. Both answers are checked first."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk
from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.cli.bench.eager import eager
from pykernels.cli.bench.ops import bench_samples
from pykernels.ops._check import compare, inputs_of, tensors_of

PAIRS = bench_samples()


@pytest.mark.parametrize("who", ["eager", "ours"])
@pytest.mark.parametrize(("spec", "sample"), PAIRS, ids=[f"{spec.name}-{sample.name}" for spec, sample in PAIRS])
def test_op(spec, sample, who, benchmark):
    benchmark.group = f"{spec.name}-{sample.name}"
    args, kwargs = inputs_of(sample, torch.float32)
    function = eager(spec)
    if who == "ours":
        if (reason := spec.op.backends.get("cpu") or _native.error) is not None:
            pytest.skip(reason)
        outcome = compare(spec, sample, "cpu", torch.float32)
        assert outcome.problem is None
        function = spec.function
    else:
        with torch.no_grad():
            pairs = zip(tensors_of(function(*args, **kwargs)), tensors_of(spec.reference(*args, **kwargs)), strict=True)
            assert all(relative_l2(got, expected) <= 1e-5 for got, expected in pairs)
    with torch.no_grad(), pk.backend("cpu"):
        benchmark.pedantic(function, args, kwargs, rounds=10, iterations=1, warmup_rounds=2)
    benchmark.extra_info["gflops"] = sample.flops / benchmark.stats["median"] / 1e9
