"""Calls of our ops with few arguments: the kernel writes to new memory, or to memory that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._op import Op
from pykernels.optimize._graph import Step, Value


class OurCall:
    """Called with the step's tensors; `into`, which takes ``numbers`` and ``out`` too, writes to ``out``."""

    def __init__(self, name: str, op: str, family: str, numbers: Tensor) -> None:
        self.__name__ = name
        #: In `pykernels.ops`.
        self.op = op
        #: All that is not a tensor.
        self.numbers = numbers
        self.into: Callable[..., Any] = getattr(torch.ops.pykernels, f"{family}_out").default

    def in_trace(self, *tensors: Tensor | None) -> Tensor:
        """What a call with these gives, by the op in `pykernels.ops`: a trace can tell the shape of its result."""
        raise NotImplementedError


def takes_image(op: Op, step: Step, x: Any) -> bool:
    """Whether ``x`` is an image that the kernels of ``op`` take on a CPU, and ``step`` gives another of its dtype."""
    if not isinstance(x, Value) or not isinstance(step.outputs, Value):
        return False
    # For other strides torch's result keeps the input's order of dimensions; ours does not.
    fits = len(x.shape) == 4 and x.layout in ("contiguous", "channels_last") and x.device.type == "cpu"
    return fits and x.dtype in op.takes("cpu") and step.outputs.dtype is x.dtype
