"""The arguments of the int8 ops, checked and refused by name."""

from __future__ import annotations

import torch

#: The longest sums that no int32 can wrap: K * 2^14 < 2^31, and with zero points K * 255 * 128 < 2^31.
MAX_K = 131071
MAX_K_WITH_ZERO_POINT = 65793

OUT_DTYPES = (torch.int32, torch.float32, torch.bfloat16, torch.float16, torch.int8)


def check_tensor(op: str, name: str, value: object) -> None:
    """TypeError if ``value`` is no tensor, ValueError if it is a sparse one."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"pykernels.{op}: {name}: expected a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"pykernels.{op}: {name}: expected a dense tensor, got layout {value.layout}")


def check_product(op: str, a: torch.Tensor, b: torch.Tensor, zero_point: bool) -> None:
    """``a`` (M, K) and ``b`` (K, N), int8, of one device, and K within the limit."""
    for name, t in (("a", a), ("b", b)):
        check_tensor(op, name, t)
        if t.dtype != torch.int8:
            raise TypeError(f"pykernels.{op}: {name}: expected torch.int8, got {t.dtype}")
        if t.dim() != 2:
            raise ValueError(f"pykernels.{op}: {name}: expected a matrix, got shape {tuple(t.shape)}")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"pykernels.{op}: b: expected {a.shape[1]} rows, as a has columns, got shape {tuple(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"pykernels.{op}: b: expected a's device {a.device}, got {b.device}")
    limit = MAX_K_WITH_ZERO_POINT if zero_point else MAX_K
    if a.shape[1] > limit:
        with_zero_point = " with a zero point" if zero_point else ""
        raise ValueError(
            f"pykernels.{op}: a: expected at most {limit} columns{with_zero_point}, beyond which int32 sums may wrap, "
            f"got {a.shape[1]}"
        )


def vector(
    op: str,
    name: str,
    t: torch.Tensor | None,
    n: int,
    shape: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> torch.Tensor | None:
    """``t`` as a vector of 1 or ``n`` elements; ``shape`` is its matrix form, "(n, 1)" or "(1, n)"; None stays.

    ``dtype`` None stands for any floating dtype.
    """
    if t is None:
        return None
    check_tensor(op, name, t)
    if (t.dtype != dtype) if dtype is not None else not t.is_floating_point():
        raise TypeError(f"pykernels.{op}: {name}: expected {dtype or 'a floating dtype'}, got {t.dtype}")
    if t.device != device:
        raise ValueError(f"pykernels.{op}: {name}: expected the device {device}, got {t.device}")
    matrix = (n, 1) if shape == "(n, 1)" else (1, n)
    if t.numel() != 1 and tuple(t.shape) not in ((n,), matrix):
        raise ValueError(
            f"pykernels.{op}: {name}: expected one element, ({n},) or {matrix}, got shape {tuple(t.shape)}"
        )
    return t.reshape(-1)


def check_bias(op: str, bias: torch.Tensor | None, n: int, device: torch.device) -> None:
    """``bias`` (n,), floating, on ``device``; or None."""
    if bias is None:
        return
    check_tensor(op, "bias", bias)
    if not bias.is_floating_point():
        raise TypeError(f"pykernels.{op}: bias: expected a floating dtype, got {bias.dtype}")
    if tuple(bias.shape) != (n,):
        raise ValueError(f"pykernels.{op}: bias: expected shape ({n},), got {tuple(bias.shape)}")
    if bias.device != device:
        raise ValueError(f"pykernels.{op}: bias: expected the device {device}, got {bias.device}")


def check_out_dtype(op: str, out_dtype: object, plain: bool) -> None:
    """``out_dtype`` is one of `OUT_DTYPES`, and int32 only for the ``plain`` sum."""
    if out_dtype not in OUT_DTYPES:
        names = ", ".join(map(str, OUT_DTYPES))
        raise ValueError(f"pykernels.{op}: out_dtype: expected one of {names}; got {out_dtype}")
    if out_dtype == torch.int32 and not plain:
        raise ValueError(
            f"pykernels.{op}: out_dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.int8, because "
            "scales, a bias or an activation are given; got torch.int32, which is for the plain sum"
        )


def widest(out_dtype: torch.dtype, *tensors: torch.Tensor | None) -> torch.dtype:
    """float64 or float16 if a tensor or the output is (not all kernels take those), else float32."""
    dtypes = {out_dtype, *(t.dtype for t in tensors if t is not None)}
    for dtype in (torch.float64, torch.float16):
        if dtype in dtypes:
            return dtype
    return torch.float32
