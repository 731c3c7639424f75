"""Int8Linear: a Linear with int8 weights, one scale for each output channel, on rows in int8 or float."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pykernels.nn._packed import Pack, PacksWeights, Slot
from pykernels.nn._replaceable import check_replaceable
from pykernels.ops._activation import activation_code
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops.int8_matmul import int8_linear, quantize_int8
from pykernels.ops.int8_matmul.op import INT8_MATMUL_SCALED
from pykernels.ops.weight_only_linear import weight_only_linear
from pykernels.ops.weight_only_linear.op import WEIGHT_ONLY_LINEAR


class Int8Linear(PacksWeights, nn.Module):
    """A Linear with int8 weights and an activation, for inference.

    It computes, with both factors of the product rounded to int8::

        y = act(F.linear(x, weight * weight_scale[:, None], bias))

    Each row of ``x`` is quantised by its own largest magnitude on the way into the kernel (dynamic quantisation), and
    each row of ``weight`` by its own beforehand. The products are summed exactly. The error is that of rounding both
    factors to 8 bits: about 1 % relative L2 for normally distributed numbers.

    With ``weight_only`` the rows of ``x`` stay float, and only the weight is rounded, which halves the error. For a row
    or a few, whose time is that of reading the weight, it is much faster than float32; for many rows it takes float32's
    time, or three quarters of it with VNNI.

    >>> fast = pk.nn.Int8Linear.from_torch(linear, activation="relu")
    >>> with torch.no_grad():
    ...     y = fast(x)                        # x: (*, in_features); y: (*, out_features), in x's dtype

    Args:
        in_features: The size of a row of ``x``.
        out_features: The size of a row of the result.
        bias: Whether to add a bias.
        device: The device to make the buffers on.
        dtype: The bias's dtype.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        weight_only: Whether ``x`` stays float.

    There are no parameters, but three buffers: ``weight`` (out_features, in_features) in int8; ``weight_scale``
    (out_features,), which stays float32 whatever the module is cast to; and ``bias`` (out_features,), or None.
    ``load_state_dict`` takes the module's own state_dict, and that of a `torch.nn.Linear`, which it quantises.

    Quantisation has no gradient: the module refuses an input that requires one, except under ``torch.no_grad()``. Under
    autocast ``x`` is cast as `torch.nn.Linear` casts it. The module packs its weight at the first call, and again when
    the weight has changed. The same input gives the same bits.

    Raises:
        ValueError: ``activation`` is unknown.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    weight_only: bool = False  # of older pickles
    _most_compared = 0  # packing saves less here than a comparison costs

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        weight_only: bool = False,
    ) -> None:
        super().__init__()
        self._assemble(nn.Linear(in_features, out_features, bias, device, dtype), activation, weight_only)

    @classmethod
    def from_torch(cls, linear: nn.Linear, activation: str = "none", *, weight_only: bool = False) -> Int8Linear:
        """Makes the int8 form of ``linear``, followed by ``activation``; ``linear`` stays as it is.

        Args:
            linear: A `torch.nn.Linear`.
            activation: One of `pykernels.ops.ACTIVATIONS`.
            weight_only: Whether ``x`` stays float.

        Raises:
            TypeError: ``linear`` is not a `torch.nn.Linear`, or overrides ``forward``.
            ValueError: ``linear`` has hooks, which would not run.
        """
        check_replaceable("Int8Linear.from_torch", "linear", linear, nn.Linear)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(linear, activation, weight_only)
        return self.train(linear.training)

    def _assemble(self, linear: nn.Linear, activation: str, weight_only: bool) -> None:
        activation_code("Int8Linear", activation)
        self.weight_only = weight_only
        self.in_features, self.out_features, self.activation = linear.in_features, linear.out_features, activation
        q, scale = _quantize_rows(linear.weight)
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Computes the quantised product.

        Args:
            x: (*, in_features), of any floating dtype.

        Returns:
            (*, out_features), in ``x``'s dtype, or in autocast's.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: The last size of ``x`` is not in_features.
            RuntimeError: ``x`` requires a gradient.
        """
        if hasattr(x, "shape") and x.shape[-1:] != (self.in_features,):
            raise ValueError(f"pykernels.Int8Linear: x: expected (*, {self.in_features}), got shape {tuple(x.shape)}")
        # None where a compiled graph, which is to hold no copies, or the reference runs.
        op = WEIGHT_ONLY_LINEAR if self.weight_only else INT8_MATMUL_SCALED
        pack = self._current_pack(op, (x,), torch.int8)
        if pack is None:
            return self._run_plain(x)
        try:
            return self._run_packed(x, pack)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, x)

    if TYPE_CHECKING:
        __call__ = forward

    def _run_plain(self, x: Tensor) -> Tensor:
        if self.weight_only:
            return weight_only_linear(x, self.weight, self.weight_scale, self.bias, self.activation)
        if not hasattr(x, "shape"):  # the op says that x is not a tensor
            return int8_linear(x, self.weight, self.weight_scale, self.bias, self.activation)
        rows = x[None] if x.dim() == 1 else x.flatten(0, -2)
        y = int8_linear(rows, self.weight, self.weight_scale, self.bias, self.activation)
        return y.view(*x.shape[:-1], self.out_features)

    def _run_packed(self, x: Tensor, pack: Pack) -> Tensor:
        if torch._C._is_any_autocast_enabled():
            x = cast(autocast_dtype(x), x)
        is_matrix = x.dim() == 2
        with torch._C._AutoDispatchBelowAutograd():  # no gradient is wanted; the op's own check of that takes longer
            run = _linear_packed(self.weight_only)
            y = run(x if is_matrix else x.reshape(-1, self.in_features), *pack.value)
        return y if is_matrix else y.view(*x.shape[:-1], self.out_features)

    def _slots(self) -> Sequence[Slot]:
        buffers = self._buffers
        return [(buffers, "weight"), (buffers, "weight_scale"), (buffers, "bias")]

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        return super()._new_pack(slots, dtype, key) if self.weight.dtype is torch.int8 else None

    def _key(self) -> Hashable:
        return self.activation, self.weight_only

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> Any:
        weight, scale, bias = tensors
        if self.weight_only:
            bias = None if bias is None else bias.float()
            packed = torch.ops.pykernels.weight_only_linear_pack.default(weight, scale.float(), bias)
            return packed, weight.shape[0], activation_code("Int8Linear", self.activation)
        packed = torch.ops.pykernels.int8_pack.default(weight.t())
        bias = None if bias is None else bias.float()
        return packed, weight.shape[0], scale.float(), bias, activation_code("Int8Linear", self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:  # half() and bfloat16() would cost the weight its precision
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.is_floating_point():
            q, scale = _quantize_rows(weight)
            state_dict = {**state_dict, f"{prefix}weight": q, f"{prefix}weight_scale": scale}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """As nn.Linear's, the activation, and ``weight_only`` if it is set."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation!r}{', weight_only=True' if self.weight_only else ''}"
        )


@functools.cache
def _linear_packed(weight_only: bool) -> Callable[..., Tensor]:
    ops = torch.ops.pykernels
    return ops.weight_only_linear_packed.default if weight_only else ops.int8_linear_packed.default


def _quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    q, scale, _ = quantize_int8(weight.detach(), axis=0, backend="reference")
    return q, scale.float()
