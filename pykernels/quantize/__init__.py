"""`quantize`: your model in int8, on the programs of `pykernels.optimize`.

`_calibrate` watches float programs run and finds ranges, `_grid` makes grids of them. `_plan` keeps them by graph, and
`_rewrite` puts the steps of `_steps` into the graphs of later calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pykernels.ops._arguments import fail
from pykernels.optimize._face import Optimized, face
from pykernels.quantize._calibrate import OP, calibrate, calls_of
from pykernels.quantize._grid import OBSERVERS
from pykernels.quantize._model import Quantized
from pykernels.quantize._plan import Plan

if TYPE_CHECKING:
    from pykernels.optimize._face import Callee, P, R

__all__ = ["Quantized", "quantize"]


def quantize(
    model: Callee[P, R],
    batches: Iterable[Any] | None = None,
    *,
    dynamic: bool = False,
    skip: Sequence[str] = (),
    per_channel: bool = True,
    observer: str = "minmax",
) -> Quantized[P, R]:
    """Makes an evaluation-mode twin of ``model`` that computes in int8.
    """
    if not isinstance(model, nn.Module):
        fail(TypeError, OP, "model", "a torch.nn.Module", type(model).__name__)
    if isinstance(model, Optimized):
        fail(TypeError, OP, "model", "an original model", "one that is optimised already")
    if observer not in OBSERVERS:
        fail(ValueError, OP, "observer", f"one of {', '.join(map(repr, OBSERVERS))}", repr(observer))
    plan = Plan(per_channel=per_channel, skip=tuple(skip), dynamic=dynamic)
    twin = face(model, torch.float32, torch.float32, None, Quantized, plan)
    if batches is not None:
        calibrate(twin, plan, calls_of(model, batches), observer)
    return twin
