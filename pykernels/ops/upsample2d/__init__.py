"""upsample2d: torch's interpolate of images by nearest pixels or bilinearly, for inference on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pykernels.ops._arguments import check_image
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.upsample2d import autograd as autograd
from pykernels.ops.upsample2d.arguments import OP, upsample_call
from pykernels.ops.upsample2d.op import UPSAMPLE2D
from pykernels.ops.upsample2d.reference import reference


def upsample2d(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Resizes an image; it may have fewer pixels afterwards, without anti-aliasing.

    It computes the same as::

        y = F.interpolate(x, size, scale_factor, mode, align_corners)

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        size: The size of the result, one int or (height, width); None if ``scale_factor`` is given.
        scale_factor: One number or (vertical, horizontal); the sizes of the result are rounded down.
        mode: "nearest", "nearest-exact" or "bilinear".
        align_corners: For "bilinear": whether the corner pixels of ``x`` are those of the result.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C, P, Q) or (C, P, Q), of ``x``'s dtype and memory format.

    Differentiable any number of times, by torch's own backward op. The CPU kernels take float32, bfloat16 and int8;
    elsewhere torch's own op runs, on a GPU too. Nearest pixels are torch's to the bit. Bilinear weights are computed in
    float64 and rounded once, so that a result is exact but for a few roundings of its four parts, however large the
    image; torch's float32 weights lose as many bits as the coordinates have. An int8 image keeps its grid, whichever
    that is: the result is rounded to nearest even, and its bits are the same everywhere.

    Raises:
        TypeError: An argument has the wrong type, or ``x`` is neither of a floating dtype nor int8.
        ValueError: A shape or another value is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    x = check_image(OP, x, int8=True)
    call = upsample_call(x, size, scale_factor, mode, align_corners)
    where = choose(UPSAMPLE2D, x.device, x.dtype, backend)
    images = x if x.dim() == 4 else x[None]
    if where == "reference":
        y = reference(images, call)
    else:
        y = kernels(where, UPSAMPLE2D).upsample2d(images, call.given, *call.scales, call.mode)
    return y if x.dim() == 4 else y[0]
