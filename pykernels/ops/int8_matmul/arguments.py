"""The arguments of the int8 ops. This module checks them, names the wrong one, and makes int8_matmul's `Epilogue`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pykernels.ops._arguments import (
    check_choice,
    check_device,
    check_dtype,
    check_floating,
    check_shape,
    check_tensor,
    fail,
)

#: The longest sums that no int32 can wrap: K * 2^14 < 2^31, and with zero points K * 255 * 128 < 2^31.
MAX_K = 131071
MAX_K_WITH_ZERO_POINT = 65793

OUT_DTYPES = (torch.int32, torch.float32, torch.bfloat16, torch.float16, torch.int8)


class Epilogue(NamedTuple):
    """What int8_matmul takes besides its factors, in the order of the op's schema.

    The vectors are 1-D, of one element or of one for each row (``a_...``) or column.
    """

    a_scale: torch.Tensor | None = None
    b_scale: torch.Tensor | None = None
    a_zero_point: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    #: `activation_code`'s
    activation: int = 0
    out_dtype: torch.dtype = torch.int32

    def floats(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """a_scale, b_scale and bias."""
        return self.a_scale, self.b_scale, self.bias

    def narrow(self) -> Epilogue:
        """As the kernels take it: scales and bias float32."""
        a_scale, b_scale, bias = (None if t is None else t.float() for t in self.floats())
        return Epilogue(a_scale, b_scale, self.a_zero_point, bias, *self[4:])


def check_int8(op: str, name: str, value: torch.Tensor) -> None:
    """Raises unless ``value`` is a dense int8 tensor."""
    check_tensor(op, name, value)
    check_dtype(op, name, value, torch.int8)


def check_product(op: str, a: torch.Tensor, b: torch.Tensor, zero_point: bool) -> None:
    """``a`` (M, K) and ``b`` (K, N), int8, of one device, and K within the limit."""
    check_int8(op, "a", a)
    check_int8(op, "b", b)
    if a.dim() != 2:
        fail(ValueError, op, "a", "a matrix", f"shape {tuple(a.shape)}")
    k = a.shape[1]
    if b.dim() != 2:
        fail(ValueError, op, "b", "a matrix", f"shape {tuple(b.shape)}")
    if b.shape[0] != k:
        fail(ValueError, op, "b", f"{k} rows, as a has columns", f"shape {tuple(b.shape)}")
    check_device(op, "b", b, a.device, "a's")
    limit = MAX_K_WITH_ZERO_POINT if zero_point else MAX_K
    if k > limit:
        with_zero_point = " with a zero point" if zero_point else ""
        fail(ValueError, op, "a", f"at most {limit} columns{with_zero_point}, beyond which int32 sums may wrap", k)


def vector(
    op: str, name: str, t: torch.Tensor | None, matrix: tuple[int, int], device: torch.device, whose: str = "x's",
    dtype: torch.dtype | None = None,
) -> torch.Tensor | None:  # fmt: skip
    """``t`` as a vector, of one element or of those of a ``matrix`` of this shape, (n, 1) or (1, n); None stays.

    ``dtype`` None stands for any floating dtype; ``whose`` the ``device`` is.
    """
    if t is None:
        return None
    check_tensor(op, name, t)
    if dtype is None:
        check_floating(op, name, t)
    else:
        check_dtype(op, name, t, dtype)
    check_device(op, name, t, device, whose)
    n = matrix[0] * matrix[1]
    if t.numel() != 1 and tuple(t.shape) not in ((n,), matrix):
        fail(ValueError, op, name, f"one element, ({n},) or {matrix}", f"shape {tuple(t.shape)}")
    return t.reshape(-1)


def check_bias(op: str, bias: torch.Tensor | None, n: int, device: torch.device, whose: str = "x's") -> None:
    """``bias`` (n,), floating, on ``device``, which is ``whose``; or None."""
    if bias is not None:
        check_tensor(op, "bias", bias)
        check_floating(op, "bias", bias)
        check_device(op, "bias", bias, device, whose)
        check_shape(op, "bias", bias, (n,))


def check_out_dtype(op: str, out_dtype: object, plain: bool) -> None:
    """``out_dtype`` is one of `OUT_DTYPES`, and int32 only for the ``plain`` sum."""
    check_choice(op, "out_dtype", out_dtype, OUT_DTYPES)
    if out_dtype == torch.int32 and not plain:
        floats = "torch.float32, torch.bfloat16, torch.float16 or torch.int8"
        because = "because more than the plain sums is asked for: a scale, a bias, a residual or an activation"
        fail(ValueError, op, "out_dtype", f"{floats}, {because}", out_dtype)


def widest(out_dtype: torch.dtype, *tensors: torch.Tensor | None) -> torch.dtype:
    """float64 or float16 if a tensor or the output is (not all kernels take those), else float32."""
    dtypes = {out_dtype, *(t.dtype for t in tensors if t is not None)}
    for dtype in (torch.float64, torch.float16):
        if dtype in dtypes:
            return dtype
    return torch.float32
