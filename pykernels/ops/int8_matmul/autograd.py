"""What PyTorch needs to know of the int8 ops, native and Triton's: shapes without data, gradients, autocast.

Integers have no gradient. Scales and bias do: with the sums S as constants, y = act(a_scale * b_scale * S + bias) is an
ordinary formula, and the backward differentiates it as plain PyTorch, S being computed again by the exact kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pykernels import _native
from pykernels.ops._autocast import register_autocast
from pykernels.ops.int8_matmul.arguments import Epilogue
from pykernels.ops.int8_matmul.reference import epilogue


def _fake_matmul(a: Any, b: Any, *call: Any) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=Epilogue(*call).out_dtype)


def _fake_matmul_packed(a: Any, packed: Any, n: Any, *call: Any) -> torch.Tensor:
    return a.new_empty((a.shape[0], n), dtype=Epilogue(*call).out_dtype)


def _fake_pack(b: torch.Tensor) -> torch.Tensor:
    if b.device.type == "cuda":  # make_packing_plan of csrc/include/pykernels/cuda/int8_matmul.h
        k, n = b.shape
        return b.new_empty((n * ((k + 31) // 32 * 32 + 4) + k % 32,), dtype=torch.uint8)
    # make_packing_plan of csrc/include/pykernels/int8_matmul.h: the same for every instruction set.
    columns = (b.shape[1] + 31) // 32 * 32
    return b.new_empty((64 + 4 * columns + (b.shape[0] + 3) // 4 * 4 * columns,), dtype=torch.uint8)


def _fake_linear(x: Any, b: Any, b_scale: Any, bias: Any, activation: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], b.shape[1]))


def _fake_linear_packed(x: Any, packed: Any, n: Any, b_scale: Any, bias: Any, activation: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], n))


def _fake_quantize(x: torch.Tensor, axis: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    slices = () if axis < 0 else (x.shape[axis],)
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(slices, dtype=torch.float32),
        x.new_empty(slices, dtype=torch.int32),
    )


def setup_matmul(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What `matmul_backward` needs, from the arguments of an int8_matmul op."""
    a, b, *rest = inputs
    call = Epilogue(*rest)
    ctx.flat = call[4:]
    ctx.save_for_backward(a, b, *call[:4])


def matmul_backward(matmul: Callable[..., torch.Tensor]) -> Callable[..., tuple[Any, ...]]:
    """The backward of an int8_matmul op; ``matmul`` is the op, which computes the sums again."""

    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[Any, ...]:
        a, b, *tensors = ctx.saved_tensors
        call = Epilogue(*tensors, *ctx.flat)
        again = torch.is_grad_enabled()  # the backward is itself to be differentiated
        gradients: list[Any] = [None] * 8
        wanted = [i for i in (2, 3, 5) if ctx.needs_input_grad[i]]  # a_scale, b_scale, bias
        if not wanted:
            return tuple(gradients)
        sums = matmul(a, b, *Epilogue(a_zero_point=call.a_zero_point))
        with torch.enable_grad():
            if not again:
                tensors = [None if t is None or i == 2 else t.detach().requires_grad_() for i, t in enumerate(tensors)]
            found = torch.autograd.grad(
                epilogue(sums, Epilogue(*tensors, *ctx.flat)),
                [tensors[i - 2] for i in wanted],
                grad_y,
                create_graph=again,
            )
        for i, g in zip(wanted, found, strict=True):
            gradients[i] = g
        return tuple(gradients)

    return backward


def refuse_backward(op: str) -> Any:
    """The backward of an op that quantises: it raises, because there is no gradient."""

    def backward(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(
            f"pykernels.{op}: quantisation has no gradient; detach its inputs, or call it under torch.no_grad()"
        )

    return backward


def _register() -> None:
    fakes: dict[str, Any] = {
        "int8_matmul": _fake_matmul,
        "int8_matmul_packed": _fake_matmul_packed,
        "int8_pack": _fake_pack,
        "int8_linear": _fake_linear,
        "int8_linear_packed": _fake_linear_packed,
        "quantize_int8": _fake_quantize,
    }
    for op, fake in fakes.items():
        torch.library.register_fake(f"pykernels::{op}", fake)
    torch.library.register_autograd(
        "pykernels::int8_matmul", matmul_backward(torch.ops.pykernels.int8_matmul), setup_context=setup_matmul
    )
    for op in ("int8_matmul_packed", "int8_linear", "int8_linear_packed", "quantize_int8"):
        torch.library.register_autograd(f"pykernels::{op}", refuse_backward(op))
    for op in ("int8_linear", "int8_linear_packed"):
        register_autocast(_library, op, casts=(0,))


if _native.error is None:
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _register()
