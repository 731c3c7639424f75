"""Every model at the sizes of the peers table: eager, ours, ours in bfloat16. Our answers are checked first."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk
from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.cli.bench.peers.measure import TOLERANCE
from pykernels.cli.bench.peers.prepare import as_double, flat_tensors
from pykernels.cli.bench.peers.rows import select
from pykernels.cli.bench.peers.subjects import build

ROWS = select("models", ["*_b1"])
DTYPES = {"eager": None, "ours": None, "ours_bf16": torch.bfloat16}


@pytest.mark.parametrize("who", list(DTYPES))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_model(row, who, benchmark):
    benchmark.group = row.name
    model, inputs = build(row)
    if who != "eager":
        if _native.error is not None:
            pytest.skip(_native.error)
        dtype = DTYPES[who]
        fast = pk.optimize(model, dtype=dtype)
        with torch.no_grad():
            inputs = tuple(t.to(dtype) if dtype and t.is_floating_point() else t for t in inputs)
            got = flat_tensors(fast(*inputs))[0]
            expected = flat_tensors(model.double()(*[as_double(t) for t in inputs]))[0]
        assert relative_l2(got, expected) <= TOLERANCE["float32" if dtype is None else "bfloat16"]
        model = fast
    with torch.no_grad():
        benchmark.pedantic(model, inputs, rounds=5, iterations=1, warmup_rounds=1)
    benchmark.extra_info["gflops"] = row.flops / benchmark.stats["median"] / 1e9
