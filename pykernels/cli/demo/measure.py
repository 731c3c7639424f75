"""Answers first, then times: each contender against the float64 reference, then all of them in turn."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import pykernels as pk
from pykernels._measure import relative_l2
from pykernels.cli.bench.peers.measure import busy_elsewhere_s
from pykernels.cli.bench.result import Result, time_here
from pykernels.cli.demo.tasks import Task, logits

#: Contender -> its dtype, and the worst relative L2 error that is right. The first is the baseline.
CONTENDERS = {
    "plain PyTorch": (torch.float32, 1e-5),
    "pykernels": (torch.float32, 1e-5),
    "pykernels bf16": (torch.bfloat16, 2e-2),
}


@torch.no_grad()
def measure(task: Task, seconds: float, least: int, step: Callable[[str], None]) -> tuple[list[Result], Any]:
    """Every contender's worst error over the task's inputs, and its times on the first; the report of `optimize`.

    Rounds go on for about ``seconds``, at least ``least`` of them. ``step`` is called with what comes next.
    """
    step(f"{task.name}: float64 reference")
    oracle = copy.deepcopy(task.model).double()
    expected = [logits(oracle(batch.double() if batch.is_floating_point() else batch)) for batch in task.batches]
    step(f"{task.name}: pk.optimize")
    ours: Any = pk.optimize(task.model)
    models = (task.model, ours, pk.optimize(task.model, dtype=torch.bfloat16))
    step(f"{task.name}: answers")
    results = []
    for (name, (_, limit)), model in zip(CONTENDERS.items(), models, strict=True):
        answers = [logits(model(batch)) for batch in task.batches]
        error = max(relative_l2(a, e) for a, e in zip(answers, expected, strict=True))
        # A NaN is wrong too; what is wrong is timed all the same: the picture has a place for it.
        reason = None if error <= limit else f"WRONG: error {error:.2g}"
        results.append(Result(task.name, name, torch.get_num_threads(), 1, task.flops, reason=reason, error=error))
    step(f"{task.name}: times")
    busy, began = busy_elsewhere_s(), time.perf_counter()
    time_here(results, [partial(model, task.batches[0]) for model in models], seconds, least)
    others = max(0.0, busy_elsewhere_s() - busy) / (time.perf_counter() - began)
    for result in results:
        result.others = others
    return results, ours.report()
