"""Pools of images on the CPU as our steps: torch's make indices that nobody reads, and are slow on contiguous images.

Of the shapes that we measured none was slower (float32, AVX2, one thread: docs/kernels/pool2d/cpu.md), so there is no
rule for sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops import _dispatch
from pykernels.ops._arguments import pair
from pykernels.ops.pool2d.arguments import PoolCall
from pykernels.ops.pool2d.op import MAX_POOL2D
from pykernels.optimize._calls import OurCall, takes_image
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs

_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
WHOLE = PoolCall(True, (0, 0))


class Pool(OurCall):
    """What a step calls: a pool of an image, with eager's strides. ``keeps``: does a mean keep the map's dimensions?"""

    def __init__(self, name: str, call: PoolCall, keeps: bool = True) -> None:
        op = "global_avg_pool2d" if call == WHOLE else name
        super().__init__(name, op, "pool2d", torch.tensor(call.numbers()))
        self.pool, self.keeps = call, keeps
        # Not the op of that name, whose gradients are in Python: they cost more than a small pool even where none are
        # wanted.
        self._run: Callable[..., Tensor] = torch.ops.pykernels.pool2d_bound.default
        self._is_mean = name == "mean"

    def __call__(self, x: Tensor) -> Tensor:
        """The pool of ``x``, in new memory."""
        y = self._run(x, self.numbers)
        if not self._is_mean:
            return y
        y = y.view(*y.shape[:2])
        return y.view(*y.shape, 1, 1) if self.keeps else y  # contiguous as torch's is, whatever x is

    def in_trace(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The same by the op that it is named after."""
        call, op = self.pool, getattr(torch.ops.pykernels, self.op)
        if call == WHOLE:
            y: Tensor = op(x, not self._is_mean)
            return y.view(*y.shape, 1, 1) if self._is_mean and self.keeps else y
        return op(x, *call[1:4], *call[5:]) if call.average else op(x, *call[1:6])


def use_our_pools(graph: Graph) -> None:
    """Puts our pools in the place of torch's."""
    if not _dispatch.has_native(MAX_POOL2D, torch.device("cpu")):
        return
    for step in graph.steps:
        found = pool_of(step)
        if found is not None:
            pool, x = found
            step.function, step.args, step.kwargs = pool, (x,), {}


def pool_of(step: Step) -> tuple[Pool, Value] | None:
    """The pool of an image that our kernels take, and the image."""
    if step.kind != "call" or step.writes:
        return None
    found = _maximum(step) or _average(step) or mean_of_map(step)
    return found if found is not None and takes_image(MAX_POOL2D, step, found[1]) else None


def _maximum(step: Step) -> tuple[Pool, Any] | None:
    if step.function not in (F.max_pool2d, torch.max_pool2d):
        return None
    given = bound(step, _MAX)
    if given.get("return_indices", False) is not False:
        return None
    return _windows(False, given, given.get("dilation", 1))


def _average(step: Step) -> tuple[Pool, Any] | None:
    return _windows(True, bound(step, _AVG), 1) if step.function is F.avg_pool2d else None


def _windows(average: bool, given: dict[str, Any], dilation: Any) -> tuple[Pool, Any] | None:
    name = "avg_pool2d" if average else "max_pool2d"
    divisor = given.get("divisor_override") or 0
    flags = given.get("ceil_mode", False), given.get("count_include_pad", True)
    if type(divisor) is not int or not all(type(flag) is bool for flag in flags):
        return None
    size, stride = given.get("kernel_size"), given.get("stride")
    try:
        size = pair(name, "kernel_size", size, 1)  # type: ignore[arg-type]
        stride = pair(name, "stride", stride, 1) if stride else size  # torch takes () for None
        pads, steps = pair(name, "padding", given.get("padding", 0), 0), pair(name, "dilation", dilation, 1)
    except (TypeError, ValueError):  # a size that is a value of the graph
        return None
    return Pool(name, PoolCall(average, size, stride, pads, steps, *flags, divisor)), given.get("input")


def mean_of_map(step: Step) -> tuple[Pool, Any] | None:
    """The mean of whole maps that ``step`` takes, and of what."""
    if step.function is F.adaptive_avg_pool2d:
        given = bound(step, ("input", "output_size"))
        size = given.get("output_size")
        one = size == 1 if type(size) is int else isinstance(size, tuple | list) and list(size) in ([1], [1, 1])
        return (Pool("adaptive_avg_pool2d", WHOLE), given.get("input")) if one else None
    if not is_torchs(step.function, "mean"):
        return None
    given = bound(step, ("input", "dim", "keepdim"))
    dims, keeps = given.get("dim"), given.get("keepdim", False)
    if not isinstance(dims, tuple | list) or not all(type(d) is int for d in dims) or type(keeps) is not bool:
        return None
    if not set(given) <= {"input", "dim", "keepdim"} or sorted(d % 4 for d in dims) != [2, 3]:
        return None
    return Pool("mean", WHOLE, keeps), given.get("input")
