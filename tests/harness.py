"""check_op: one sample of one op on one backend, ISA and dtype, against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import pykernels as pk
from pykernels import _native
from pykernels.ops._spec import OpSpec, Sample


def map_tensors(value: Any, f: Any) -> Any:
    """``f`` on every tensor inside nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, f) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, f) for v in value)
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(value, lambda t: found.append(t) or t)
    return found


def to_double(value: Any) -> Any:
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def relative_l2(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| / |expected|, in float64; infinite if one has a NaN or an infinity that the other has not."""
    got, expected = got.double(), expected.double()
    if got.numel() == 0:
        return 0.0
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(got)) or not torch.equal(
        got[~finite].nan_to_num(2.0, 1.0, -1.0), expected[~finite].nan_to_num(2.0, 1.0, -1.0)
    ):
        return float("inf")
    difference = (got - expected)[finite].norm().item()
    norm = expected[finite].norm().item()
    return difference / norm if norm > 0 else difference


def host_isas() -> list[str]:
    """The ISAs that this build has and this machine runs; one if there is no native library."""
    if _native.error is not None:
        return ["none"]
    native = _native.introspect()
    return [name for name in native.isas_compiled() if name in native.isas_supported()]


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    native = _native.introspect()
    native.force_isa(name)
    try:
        assert native.active_isa() == name
        yield
    finally:
        native.force_isa(None)


def inputs_of(sample: Sample, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return sample.make(dtype, torch.Generator().manual_seed(20261122))


def check_op(spec: OpSpec, sample: Sample, backend: str, dtype: torch.dtype) -> float:
    """Runs the sample and asserts dtype, shape and tolerance of every output; returns the worst relative L2 error."""
    args, kwargs = inputs_of(sample, dtype)
    with torch.no_grad(), pk.backend(backend):
        got = tensors_of(spec.function(*args, **kwargs))
    with torch.no_grad():
        expected = tensors_of(spec.reference(*to_double(args), **to_double(kwargs)))
        plain = tensors_of(spec.reference(*args, **kwargs))
    assert len(got) == len(expected)
    worst = 0.0
    for g, e, p in zip(got, expected, plain, strict=True):
        assert g.shape == e.shape
        assert g.dtype == p.dtype
        if not g.is_floating_point():
            assert torch.equal(g, p), f"{spec.name}[{sample.name}]: integer output differs from the reference"
            continue
        error, tolerance = relative_l2(g, e), spec.tolerance(dtype, sample)
        assert error <= tolerance, f"{spec.name}[{sample.name}] {backend} {dtype}: error {error:.3g} > {tolerance:.3g}"
        worst = max(worst, error)
    return worst
