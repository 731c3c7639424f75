"""squeeze_excite: maps times a gate that their means make, in two passes over them."""

from __future__ import annotations

from torch import Tensor

from pykernels.ops._arguments import check_tensor
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.squeeze_excite import autograd as autograd
from pykernels.ops.squeeze_excite.arguments import OP, check_call
from pykernels.ops.squeeze_excite.op import SQUEEZE_EXCITE
from pykernels.ops.squeeze_excite.reference import reference


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
    backend: str | None = None,
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018): each channel times a gate that depends on the means of all.

    It computes the same as::

        hidden = activation(F.linear(x.mean((-2, -1)), reduce_weight, reduce_bias))
        y = x * gate(F.linear(hidden, expand_weight, expand_bias))[..., None, None]

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        reduce_weight: (M, C), or (M, C, 1, 1) as a 1x1 convolution has it.
        reduce_bias: (M,) or None.
        expand_weight: (C, M), or (C, M, 1, 1).
        expand_bias: (C,) or None.
        activation: Between the two products, one of ``pykernels.ops.ACTIVATIONS``; "leaky_relu" with torch's slope of
            0.01.
        gate: After them, of the same names; "sigmoid" and "hardsigmoid" are the usual ones.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``x``'s shape, dtype and memory format.

    Differentiable any number of times. The CPU kernel takes float32 and bfloat16 and computes in float32; elsewhere
    torch's own ops run, on a GPU too. Under autocast ``x`` keeps its dtype, and the weights and biases are cast to it.

    Raises:
        TypeError: An argument has the wrong type, or ``x`` does not have a floating dtype.
        ValueError: A shape or a name is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    weights = reduce_weight, reduce_bias, expand_weight, expand_bias
    if autocast_dtype(check_tensor(OP, "x", x)) is not None:
        weights = cast(x.dtype, weights)
    call = check_call(x, *weights, activation, gate)
    where = choose(SQUEEZE_EXCITE, x.device, x.dtype, backend)
    if where == "reference":
        return reference(x, call)
    op = kernels(where, SQUEEZE_EXCITE).squeeze_excite
    return op(x, *call) if x.dim() == 4 else op(x[None], *call)[0]
