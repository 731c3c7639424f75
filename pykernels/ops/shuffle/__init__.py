"""channel_shuffle, pixel_shuffle and pixel_unshuffle in one pass, in either memory format, on a CPU."""

from __future__ import annotations

from torch import Tensor

from pykernels.ops._dispatch import choose
from pykernels.ops._op import Op
from pykernels.ops.shuffle.arguments import CHANNELS, DOWN, UP, ShuffleCall, check_call
from pykernels.ops.shuffle.autograd import shuffled
from pykernels.ops.shuffle.op import CHANNEL_SHUFFLE, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE
from pykernels.ops.shuffle.reference import reference


def channel_shuffle(x: Tensor, groups: int, *, backend: str | None = None) -> Tensor:
    """Interleaves groups of channels: channel g · C / groups + j becomes channel j · groups + g.

    It computes the same as ``F.channel_shuffle(x, groups)``.

    Args:
        x: (N, C, H, W), of any memory format.
        groups: A divisor of C.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format.

    Exact, and differentiable any number of times. The CPU kernels take float32, bfloat16 and int8, and up to 64
    groups; elsewhere plain PyTorch runs.

    Raises:
        TypeError: ``x`` is not a tensor of a floating dtype or int8, or ``groups`` is not an int.
        ValueError: A shape, ``groups`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    return _run(CHANNEL_SHUFFLE, x, ShuffleCall(CHANNELS, groups), "groups", backend)


def pixel_shuffle(x: Tensor, upscale_factor: int, *, backend: str | None = None) -> Tensor:
    """Makes a square of r x r pixels of every r² channels.

    It computes the same as ``F.pixel_shuffle(x, upscale_factor)``.

    Args:
        x: (N, C · r², H, W), of any memory format.
        upscale_factor: r.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C, H · r, W · r), of ``x``'s dtype and memory format.

    Exact, and differentiable any number of times. The CPU kernels take float32, bfloat16 and int8, and r up to 8;
    elsewhere plain PyTorch runs.

    Raises:
        TypeError: ``x`` is not a tensor of a floating dtype or int8, or ``upscale_factor`` is not an int.
        ValueError: A shape, ``upscale_factor`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    return _run(PIXEL_SHUFFLE, x, ShuffleCall(UP, upscale_factor), "upscale_factor", backend)


def pixel_unshuffle(x: Tensor, downscale_factor: int, *, backend: str | None = None) -> Tensor:
    """Makes r² channels of every square of r x r pixels; undoes `pixel_shuffle`.

    It computes the same as ``F.pixel_unshuffle(x, downscale_factor)``.

    Args:
        x: (N, C, H · r, W · r), of any memory format.
        downscale_factor: r.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C · r², H, W), of ``x``'s dtype and memory format.

    Exact, and differentiable any number of times. The CPU kernels take float32, bfloat16 and int8, and r up to 8;
    elsewhere plain PyTorch runs.

    Raises:
        TypeError: ``x`` is not a tensor of a floating dtype or int8, or ``downscale_factor`` is not an int.
        ValueError: A shape, ``downscale_factor`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    return _run(PIXEL_UNSHUFFLE, x, ShuffleCall(DOWN, downscale_factor), "downscale_factor", backend)


def _run(op: Op, x: Tensor, call: ShuffleCall, argument: str, backend: str | None) -> Tensor:
    check_call(x, call, argument)
    where = choose(op, x.device, x.dtype, backend)
    return reference(x, call) if where == "reference" or x.numel() == 0 else shuffled(x, call)
