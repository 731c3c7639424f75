"""What torch must know of the ops, native and Triton's: shapes without data, gradients, autocast.

The first backward is a kernel's. With create_graph (and where no reserve was saved) the reference recomputes the
forward, and autograd differentiates that: any order, at the reference's speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.ops._autocast import register_autocast
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.arguments import LSTMCall


def wanted(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for gradients, and the forward must save for the backward."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _differentiable(
    function: Callable[[list[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of ``function`` at ``inputs`` as a graph of their own, if grad mode is on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, for one input may be computed from another, and its gradient must not run on into that one here.
        aliases = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        outputs = function(aliases)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], aliases, [g for _, g in pairs], create_graph=keep, allow_unused=True
        )
    return list(found)


def _lstm_shapes(x: Tensor, h0: Tensor, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], directions * h0.shape[-1])), x.new_empty(h0.shape), x.new_empty(h0.shape)


def _reserve(x: Tensor, elements: Any) -> Tensor:
    """What the native forward keeps for the backward: float32 on the CPU, on CUDA of x's dtype."""
    return x.new_empty((elements,), dtype=x.dtype if x.device.type == "cuda" else torch.float32)


def _lstm_fake(
    x: Tensor, h0: Tensor, c0: Tensor, weights: Any, batch_sizes: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, save = LSTMCall(*rest[:-1]), rest[-1]
    rows, hidden = math.prod(x.shape[:-1]), h0.shape[-1]
    kept = 5 * call.num_layers + call.num_layers - 1  # the gates and c, and what a layer hands to the next
    reserve = kept * rows * call.directions * hidden
    shapes = _lstm_shapes(x, h0, call.directions)
    return (*shapes, _reserve(x, reserve if save else 0))


def lstm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What `lstm_backward` needs of a call of `lstm`."""
    x, h0, c0, weights, batch_sizes, *rest, ctx.saved = inputs
    ctx.call = LSTMCall(*rest)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h0, c0, batch_sizes, output[0], output[3], *weights)


def lstm_backward(op: str) -> Callable[..., Any]:
    """The backward of `lstm`, or of an op like it, whose first derivative the op of this name computes."""

    def backward(ctx: Any, grad_output: Tensor | None, grad_h: Tensor | None, grad_c: Tensor | None, _: Any) -> Any:
        x, h0, c0, batch_sizes, output, reserve, *weights = ctx.saved_tensors
        if torch.is_grad_enabled() or not ctx.saved:

            def function(inputs: list[Tensor]) -> Sequence[Tensor]:
                x, h0, c0, *weights = inputs
                output, (h_n, c_n) = reference.sequences(x, (h0, c0), weights, batch_sizes, ctx.call)
                return output, h_n, c_n

            grad_x, grad_h0, grad_c0, *grad_weights = _differentiable(
                function, [x, h0, c0, *weights], [grad_output, grad_h, grad_c]
            )
        else:
            grad_x, grad_h0, grad_c0, grad_weights = getattr(torch.ops.pykernels, op).default(
                grad_output, grad_h, grad_c, x, h0, c0, weights, batch_sizes, output, reserve, *ctx.call
            )
        return grad_x, grad_h0, grad_c0, list(grad_weights), *[None] * (2 + len(ctx.call))

    return backward


def _lstm_backward_fake(
    grad_output: Any, grad_h_n: Any, grad_c_n: Any, x: Tensor, h0: Tensor, c0: Tensor, weights: list[Tensor], *_: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return _like(x), _like(h0), _like(c0), [_like(w) for w in weights]


def _like(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


def _pack_fake(weights: list[Tensor], num_layers: int, bidirectional: bool, has_bias: bool) -> Tensor:
    if weights[0].device.type == "cuda":  # make_packing_plan of csrc/include/pykernels/cuda/lstm.h
        size: Any = 0
        vector = 16 // weights[0].element_size()
        for w_ih, w_hh in zip(weights[:: 4 if has_bias else 2], weights[1 :: 4 if has_bias else 2], strict=True):
            pitches = sum((w.shape[1] + vector - 1) // vector * vector for w in (w_ih, w_hh))
            size += w_ih.shape[0] * (pitches + vector // 4)  # and a float32 bias a row
        return weights[0].new_empty((size,))
    size = torch.library.get_ctx().new_dynamic_size()  # the layout is the ISA's
    return weights[0].new_empty((size,), dtype=torch.uint8)


def _lstm_packed_fake(x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, bidirectional, _batch_first = rest
    return _lstm_shapes(x, h0, 2 if bidirectional else 1)


def _cell_fake(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    save = rest[-1]
    return _like(h), _like(c), _reserve(x, h.numel() * 5 if save else 0)


def _cell_packed_fake(x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(h), _like(c)


def cell_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What `cell_backward` needs of a call of `lstm_cell`."""
    *tensors, ctx.saved = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2])


def cell_backward(op: str) -> Callable[..., Any]:
    """The same of `lstm_cell`."""

    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, _: Any) -> Any:
        x, h, c, w_ih, w_hh, b_ih, b_hh, reserve = ctx.saved_tensors
        biases = [] if b_ih is None else [b_ih, b_hh]
        if torch.is_grad_enabled() or not ctx.saved:
            found = _differentiable(
                lambda t: reference.lstm_cell(t[0], (t[1], t[2]), *t[3:]),
                [x, h, c, w_ih, w_hh, *biases],
                [grad_h, grad_c],
            )
        else:
            found = getattr(torch.ops.pykernels, op).default(grad_h, grad_c, x, h, c, w_ih, w_hh, reserve, bool(biases))
        found = list(found[: 5 + len(biases)])
        return *found, *[None] * (8 - len(found))

    return backward


def _cell_backward_fake(grad_h: Any, grad_c: Any, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, w_hh, _reserve, has_bias = rest
    bias = (w_hh.shape[0] if has_bias else 0,)
    return *map(_like, (*tensors, w_hh)), w_hh.new_empty(bias), w_hh.new_empty(bias)


def _register() -> torch.library.Library:
    fakes: dict[str, Callable[..., Any]] = {
        "lstm": _lstm_fake,
        "lstm_backward": _lstm_backward_fake,
        "lstm_pack": _pack_fake,
        "lstm_packed": _lstm_packed_fake,
        "lstm_cell": _cell_fake,
        "lstm_cell_backward": _cell_backward_fake,
        "lstm_cell_packed": _cell_packed_fake,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"pykernels::{name}", fake)
    torch.library.register_autograd("pykernels::lstm", lstm_backward("lstm_backward"), setup_context=lstm_setup)
    torch.library.register_autograd(
        "pykernels::lstm_cell", cell_backward("lstm_cell_backward"), setup_context=cell_setup
    )
    library = torch.library.Library("pykernels", "FRAGMENT")
    for name in ("lstm", "lstm_cell"):
        register_autocast(library, name)
    return library


# Torch drops what a Library registered when the Library dies.
_library = _register() if _native.error is None else None
