"""Images that change their size, on the CPU, as our steps. torch is slow on contiguous ones, and copies into slices.

Of the shapes that we measured none was slower (docs/kernels/upsample2d/cpu.md), so there is no rule for sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops import _dispatch
from pykernels.ops._arguments import pair
from pykernels.ops.upsample2d.arguments import CORNERS, MODES, check_scales
from pykernels.ops.upsample2d.op import UPSAMPLE2D
from pykernels.optimize._calls import OurCall, takes_image
from pykernels.optimize._graph import Graph, Step, Value, bound

_NAMES = (
    "input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias",
)  # fmt: skip


class Resize(OurCall):
    """Another size of an image: ``size``, or as ``scales`` tell."""

    def __init__(self, size: tuple[int, int] | None, scales: tuple[float, float], mode: int) -> None:
        super().__init__("interpolate", "upsample2d", "upsample2d", torch.tensor([mode, *scales], dtype=torch.float64))
        self._size, self._rest = size or (), (*scales, mode)
        self.is_nearest = mode not in (CORNERS, MODES.index("bilinear"))
        self._run = torch.ops.pykernels.upsample2d_bound.default

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with other pixels, in new memory."""
        return self._run(x, self._size, self.numbers)

    def in_trace(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The same by `pykernels.ops`'s op."""
        return torch.ops.pykernels.upsample2d(x, self._size, *self._rest)


def use_our_resizes(graph: Graph) -> None:
    """Puts our kernels in the place of torch's interpolate."""
    if not _dispatch.has_native(UPSAMPLE2D, torch.device("cpu")):
        return
    for step in graph.steps:
        found = resize_of(step)
        if found is not None:
            step.function, step.args, step.kwargs = found[0], (found[1],), {}


def resize_of(step: Step) -> tuple[Resize, Value] | None:
    """The resize of an image that our kernels take, and the image."""
    if step.kind != "call" or step.writes or step.function is not F.interpolate:
        return None
    given = {"mode": "nearest", **bound(step, _NAMES)}
    x, mode, corners = given.get("input"), given["mode"], given.get("align_corners")
    plain = not given.get("antialias") and given.get("recompute_scale_factor") in (None, False)
    if not plain or mode not in MODES or not isinstance(x, Value) or not takes_image(UPSAMPLE2D, step, x):
        return None
    if corners is not None and (type(corners) is not bool or mode != "bilinear"):
        return None
    resize = _to(given.get("size"), given.get("scale_factor"), CORNERS if corners else MODES.index(mode))
    return None if resize is None else (resize, x)


def _to(size: Any, scale: Any, mode: int) -> Resize | None:
    """None if torch reports what is wrong, or if values of the graph decide."""
    if (size is None) == (scale is None):
        return None
    both = tuple(size or scale) if isinstance(size or scale, list | tuple) else (size or scale,) * 2
    if not all(type(n) is int or (type(n) is float and size is None) for n in both):
        return None
    try:
        if size is None:
            return Resize(None, check_scales(both), mode)
        return Resize(pair(UPSAMPLE2D.name, "size", both, 1), (0.0, 0.0), mode)
    except ValueError:
        return None
