"""check_op: one sample of one op on one backend, ISA and dtype, against the float64 reference."""

from __future__ import annotations

import torch

from pykernels.ops._check import (
    compare,
    forced_isa,
    host_isas,
    inputs_of,
    map_tensors,
    relative_l2,
    tensors_of,
    to_double,
)
from pykernels.ops._spec import OpSpec, Sample

__all__ = [
    "check_op",
    "forced_isa",
    "host_isas",
    "inputs_of",
    "map_tensors",
    "relative_l2",
    "tensors_of",
    "to_double",
]


def check_op(spec: OpSpec, sample: Sample, backend: str, dtype: torch.dtype) -> float:
    """Runs the sample and asserts dtype, shape and tolerance of every output; returns the worst relative L2 error."""
    outcome = compare(spec, sample, backend, dtype)
    assert outcome.problem is None, f"{spec.name}[{sample.name}] {backend} {dtype}: {outcome.problem}"
    return outcome.error
