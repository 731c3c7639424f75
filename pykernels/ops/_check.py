"""One sample of one op on one backend, ISA and dtype, against the float64 reference.

The tests (``tests/harness.py``) and ``python -m pykernels check`` both use it: users check on their own machines what
the suite proved on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pykernels import _native
from pykernels._measure import relative_l2
from pykernels.ops._dispatch import backend as backend_block
from pykernels.ops._spec import OpSpec, Sample

SEED = 20261122


@dataclass(frozen=True)
class Outcome:
    """The result of one comparison: the worst relative L2 error of all outputs, and the allowed one."""

    error: float
    tolerance: float
    #: What is wrong, in words; None if nothing is.
    problem: str | None


def map_tensors(value: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``f`` on every tensor inside nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, f) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, f) for v in value)
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor inside nested tuples, lists and dicts, in order."""
    found: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        found.append(t)
        return t

    map_tensors(value, keep)
    return found


def to_double(value: Any) -> Any:
    """The same value with every floating tensor widened to float64."""
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def on_device(value: Any, device: torch.device | str) -> Any:
    """The same value with its tensors on ``device``, but for int64 ones: batch_sizes stay on the CPU, as in torch."""
    return map_tensors(value, lambda t: t if t.dtype == torch.int64 else t.to(device))


def host_isas() -> list[str]:
    """The ISAs that this build has and this machine runs; ``["none"]`` if there is no native library."""
    if _native.error is not None:
        return ["none"]
    native = _native.introspect()
    return [name for name in native.isas_compiled() if name in native.isas_supported()]


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels of one ISA inside the block, and of no other."""
    native = _native.introspect()
    native.force_isa(name)
    try:
        assert native.active_isa() == name
        yield
    finally:
        native.force_isa(None)


def inputs_of(sample: Sample, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The sample's ``(args, kwargs)`` on the CPU, the same at every call."""
    return sample.make(dtype, torch.Generator().manual_seed(SEED))


def compare(spec: OpSpec, sample: Sample, backend: str, dtype: torch.dtype) -> Outcome:
    """Runs the sample on one backend; dtype, shape and tolerance of every output against the float64 reference.

    Integer outputs have to equal the reference's to the bit. Whatever the op raises goes to the caller.
    """
    args, kwargs = inputs_of(sample, dtype)
    tolerance = spec.tolerance(dtype, sample) * (spec.reference_growth if backend == "reference" else 1.0)
    interpreted = backend == "triton" and not torch.cuda.is_available()
    device = "cuda" if backend in ("cuda", "triton") and not interpreted else "cpu"
    with torch.no_grad():
        with backend_block(backend):
            there = on_device((args, kwargs), device)
            got = [t.cpu() for t in tensors_of(spec.function(*there[0], **there[1]))]
        expected = tensors_of(spec.reference(*to_double(args), **to_double(kwargs)))
        plain = tensors_of(spec.reference(*args, **kwargs))
    if len(got) != len(expected):
        return Outcome(float("inf"), tolerance, f"{len(got)} outputs, expected {len(expected)}")
    worst = 0.0
    for i, (g, e, p) in enumerate(zip(got, expected, plain, strict=True)):
        where = f"output {i}" if len(got) > 1 else "the output"
        if g.shape != e.shape:
            return Outcome(float("inf"), tolerance, f"{where} has shape {tuple(g.shape)}, expected {tuple(e.shape)}")
        if g.dtype != p.dtype:
            return Outcome(float("inf"), tolerance, f"{where} is {g.dtype}, expected {p.dtype}")
        if not g.is_floating_point():
            off = (g.double() - p.double()).abs()
            if off.numel() and (off.max() > (spec.off_by_one > 0) or off.mean() > spec.off_by_one):
                return Outcome(float("inf"), 0.0, f"{where}: integers differ from the reference")
            continue
        error = relative_l2(g, e)
        if not error <= tolerance:  # and not `error > tolerance`: a NaN has to fail
            return Outcome(error, tolerance, f"{where}: error {error:.3g} > {tolerance:.3g}")
        worst = max(worst, error)
    return Outcome(worst, tolerance, None)
