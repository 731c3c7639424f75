"""layer_norm: over the last dimensions, or over the channels of an image as it lies, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pykernels.ops._arguments import check_tensor
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.layer_norm import autograd as autograd
from pykernels.ops.layer_norm.arguments import OP, check_call
from pykernels.ops.layer_norm.op import LAYER_NORM
from pykernels.ops.layer_norm.reference import reference


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    channels_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Layer norm in one pass, over the last dimensions or over the channels of an image of either memory format.

    It computes the same as::

        y = F.layer_norm(x, normalized_shape, weight, bias, eps)
        y = F.layer_norm(x.movedim(1, -1), normalized_shape, weight, bias, eps).movedim(-1, 1)  # channels_first

    Args:
        x: Any shape; (N, C, ...) if ``channels_first``.
        normalized_shape: The sizes of the dimensions that are normalised over, the last ones; C if ``channels_first``.
        weight: Of ``normalized_shape``; 1 if None.
        bias: Of ``normalized_shape``; 0 if None.
        eps: Added to the variance.
        channels_first: Whether to normalise over dimension 1.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        A tensor of ``x``'s shape and dtype: contiguous, and with ``channels_first`` and four dimensions of ``x``'s
        memory format.

    Differentiable any number of times in all tensors, by plain PyTorch. The CPU kernels take float32 and bfloat16 and
    compute in float32; what is normalised is off by a few roundings, however large the mean is. The bits do not depend
    on the number of threads, nor on the other rows. Elsewhere torch's own ops run, on a GPU too. Under autocast ``x``
    keeps its dtype.

    Raises:
        TypeError: An argument is not a tensor, or has the wrong type.
        ValueError: A shape, a device, ``eps`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    check_tensor(OP, "x", x)
    call = check_call(x, normalized_shape, weight, bias, eps, channels_first)
    where = choose(LAYER_NORM, x.device, x.dtype, backend)
    if where == "reference" or x.numel() == 0:
        return reference(x, weight, bias, call)
    given = [t for t in (weight, bias) if t is not None]
    kept = x.dtype if all(t.dtype is x.dtype for t in given) else torch.float32
    weight, bias = (None if t is None else t.to(kept).contiguous() for t in (weight, bias))
    run = kernels(where, LAYER_NORM).layer_norm
    if call.dims or x.dim() == 4:
        return run(x, weight, bias, *call)
    image = x.flatten(3) if x.dim() > 4 else x[(...,) + (None,) * (4 - x.dim())]
    return run(image, weight, bias, *call).reshape(x.shape)
