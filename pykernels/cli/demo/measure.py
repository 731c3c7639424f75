"""Answers first, then times: each contender against the float64 reference, then all of them in turn."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

import pykernels as pk
from pykernels._measure import interleaved, relative_l2
from pykernels.cli.demo.tasks import Task, logits

#: The worst relative L2 error that is right: of float32 and of bfloat16 models.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass
class Row:
    """One contender on one task."""

    contender: str
    dtype: torch.dtype
    error: float
    times: list[float] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Within the limit? A NaN is not."""
        return self.error <= LIMITS[self.dtype]

    @property
    def ms(self) -> float:
        """The median latency."""
        return 1e3 * statistics.median(self.times)


@dataclass
class Result:
    """All contenders on one task: plain PyTorch first, then ours, then ours in bfloat16."""

    task: Task
    rows: list[Row]
    #: What `pykernels.optimize` replaced, and what not.
    report: Any

    def speedup(self, row: Row) -> float:
        """Plain PyTorch's median over the row's."""
        return self.rows[0].ms / row.ms


@torch.no_grad()
def measure(task: Task, seconds: float, least: int, step: Callable[[str], None]) -> Result:
    """Every contender's worst error over the task's inputs, and its times on the first, interleaved.

    Rounds go on for about ``seconds``, at least ``least`` of them. ``step`` is told what comes next.
    """
    step("float64 reference")
    oracle = copy.deepcopy(task.model).double()
    expected = [logits(oracle(batch.double() if batch.is_floating_point() else batch)) for batch in task.batches]
    step("pk.optimize")
    ours: Any = pk.optimize(task.model)
    narrow = pk.optimize(task.model, dtype=torch.bfloat16)
    contenders: list[tuple[str, torch.dtype, nn.Module]] = [
        ("plain PyTorch", torch.float32, task.model),
        ("pykernels", torch.float32, ours),
        ("pykernels bf16", torch.bfloat16, narrow),
    ]
    step("answers")
    rows = []
    for name, dtype, model in contenders:
        answers = [logits(model(batch)) for batch in task.batches]
        errors = [relative_l2(a, e) for a, e in zip(answers, expected, strict=True)]
        rows.append(Row(name, dtype, max(errors)))
    step("times")
    first = task.batches[0]
    calls = [partial(model, first) for _, _, model in contenders]
    for row, times in zip(rows, interleaved(calls, seconds, least=least), strict=True):
        row.times = times
    return Result(task, rows, ours.report())
