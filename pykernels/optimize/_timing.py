"""How long each step of a program takes, on random inputs of the sizes that it ran last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, mapped
from pykernels.optimize._layout import FIXES, as_channels_last

if TYPE_CHECKING:
    from pykernels.optimize._program import Program

_ROUNDS = 7


def seconds_by_step(program: Program) -> dict[Step, float]:
    """The least time of each step in a few calls; nothing if the random inputs do not suit the program.

    It does not call what pykernels cannot follow, because that may have effects.
    """
    least: dict[Step, float] = {}
    with torch.no_grad(), torch.random.fork_rng():  # the random inputs leave the user's random numbers alone
        for _ in range(_ROUNDS):
            inputs = {v: _made_up(v, s) for v, s in zip(program.graph.inputs, program.sizes, strict=True)}
            try:
                for step, took in _once(program, inputs):
                    least[step] = min(took, least.get(step, took))
            except (RuntimeError, IndexError, ValueError, TypeError):
                return {}
    return least


def _made_up(v: Value, shape: tuple[int, ...] | None = None) -> Tensor:
    shape = tuple(v.shape) if shape is None else shape
    make = torch.rand if v.dtype.is_floating_point or v.dtype.is_complex else torch.zeros
    t = make(shape, dtype=v.dtype, device=v.device)
    return as_channels_last(t) if v.layout == "channels_last" else t


def _once(program: Program, values: dict[Value, Any]) -> list[tuple[Step, float]]:
    bound = program.current()
    values.update(bound.values)
    took: list[tuple[Step, float]] = []
    convs = {step: i for i, step in enumerate(program.fused)}

    def tensor(x: Any) -> Any:
        if not isinstance(x, Value):
            return x
        return x.tensor if x.kind == "source" and x not in values else values[x]

    for step in program.graph.steps:
        if step.kind == "opaque":
            values.update((v, _made_up(v)) for v in step.results())
            continue
        args, kwargs = mapped(step.args, tensor), mapped(step.kwargs, tensor)
        call: Any = step.function
        if isinstance(step.function, FusedConv):
            call, x = _fused(program, bound, step, convs[step], args[0])
            args = x, args[1]
        _wait(values)
        start = time.perf_counter()
        result = call(*args, **kwargs)
        _wait(values)
        took.append((step, time.perf_counter() - start))
        _assign(step.outputs, result, values)
    return took


def _fused(program: Program, bound: Any, step: Step, i: int, x: Tensor) -> tuple[Any, Tensor]:
    conv: FusedConv = step.function
    given = as_channels_last(x) if conv.channels_last else x
    run = program.chosen(bound, i, given)[1]
    fix, turn = FIXES.get(conv.fix), as_channels_last if conv.channels_last else None

    def call(x: Tensor, residual: Tensor | None) -> Tensor:
        y = run(x if turn is None else turn(x), residual)
        return y if fix is None else fix(y)

    return call, x


def _wait(values: dict[Value, Any]) -> None:
    if torch.cuda.is_available() and any(v.device.type == "cuda" for v in values):
        torch.cuda.synchronize()


def _assign(outputs: Any, result: Any, values: dict[Value, Any]) -> None:
    if isinstance(outputs, Value):
        values[outputs] = result
    elif isinstance(outputs, tuple):
        for o, r in zip(outputs, result, strict=True):
            _assign(o, r, values)
