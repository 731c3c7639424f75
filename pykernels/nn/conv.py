"""ConvBNAct2d: Conv2d, BatchNorm2d, residual add and activation as one module.

Without gradients to record it runs on packed weights: the weight in the kernels' layout and the folded batch norm, made
at the first call and made again whenever something that they came from has changed. They live in a plain attribute, not
in buffers, because buffers that come and go would end in every `torch.export`, and would shift whatever pairs the
buffers of two models. Copies, pickles and state_dicts are without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from pykernels import _backend, _native
from pykernels.ops._activation import ACTIVATIONS, activation_code, apply_activation
from pykernels.ops.conv_bn_act import conv_bn_act, fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import geometry
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT

torch.fx.wrap("conv_bn_act")  # one node in a symbolic trace

_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_DIRECT = 0

#: weight, bias, running_mean, running_var, bn weight, bn bias
Sources = tuple[
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
]


class ConvBNAct2d(nn.Module):
    """``act(bn(conv(x)) + residual)``, the same as the torch modules one after the other, in one pass.

    The arguments are those of `torch.nn.Conv2d`, then those of `torch.nn.BatchNorm2d` (``batch_norm=False`` for none),
    then the activation of `pykernels.ops.conv_bn_act`. The children ``conv`` and ``bn`` are torch's own modules, so the
    state_dict's keys are ``conv.weight``, ``conv.bias``, ``bn.weight``, ``bn.running_mean`` and so on.

    In training the batch norm takes the statistics of the batch and updates the running ones, as `nn.BatchNorm2d` does;
    so it does in eval mode with ``track_running_stats=False``. Everything is differentiable. Where no gradient is to be
    recorded (``torch.no_grad()``, ``torch.inference_mode()``, or nothing requires one), the weights are packed once and
    packed again when a source tensor is changed in place or replaced, or when the dtype, the instruction set or the
    geometry changes. Only a change behind autograd's back goes unseen, that is one through ``tensor.data`` in place;
    call `repack` after it. Any number of threads may call at once.

    >>> block = pk.nn.ConvBNAct2d(64, 128, 3, padding=1, activation="relu").eval()
    >>> with torch.no_grad():
    ...     y = block(x, residual)             # x: (N, 64, H, W) or (64, H, W); residual: y's shape, or None

    Hooks of ``conv`` and ``bn`` do not run in eval mode, because neither does their ``forward``.

    Raises:
        ValueError: An argument is wrong; those of torch's modules are named by torch.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None
    activation: str
    negative_slope: float

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        batch_norm: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        bn = None
        if batch_norm:
            bn = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, device, dtype)
        self._assemble(conv, bn, activation, negative_slope)

    @classmethod
    def from_torch(
        cls, conv: nn.Conv2d, bn: nn.BatchNorm2d | None = None, activation: str = "none", negative_slope: float = 0.01
    ) -> ConvBNAct2d:
        """The block of two torch modules, which become its children: their parameters are shared, not copied.

        It is in training mode if ``bn``, or without one ``conv``, is.

        Raises:
            TypeError: ``conv`` is no `nn.Conv2d`, or ``bn`` neither an `nn.BatchNorm2d` nor None.
            ValueError: ``bn`` has other than ``conv``'s output channels, or one of them has hooks, which would not run.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"pykernels.ConvBNAct2d: conv: expected a torch.nn.Conv2d, got {type(conv).__name__}")
        if bn is not None and not isinstance(bn, nn.BatchNorm2d):
            raise TypeError(f"pykernels.ConvBNAct2d: bn: expected a torch.nn.BatchNorm2d, got {type(bn).__name__}")
        if bn is not None and bn.num_features != conv.out_channels:
            raise ValueError(
                f"pykernels.ConvBNAct2d: bn: expected {conv.out_channels} features (conv's output channels), "
                f"got {bn.num_features}"
            )
        for name, module in (("conv", conv), ("bn", bn)):
            if module is not None and (module._forward_hooks or module._forward_pre_hooks):
                raise ValueError(f"pykernels.ConvBNAct2d: {name}: expected a module without forward hooks, got some")
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(conv, bn, activation, negative_slope)
        self.training = conv.training if bn is None else bn.training
        return self

    def _assemble(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, activation: str, negative_slope: float) -> None:
        activation_code("ConvBNAct2d", activation)
        self.conv = conv
        self.register_module("bn", bn)  # a plain assignment of None would not register it
        self.activation = activation
        self.negative_slope = negative_slope
        self._pack: _Pack | None = None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) or (C, H, W) to (N, K, P, Q) or (K, P, Q), in ``x``'s dtype and memory format."""
        # A compiled graph holds the plain op: it is never stale, and it runs on any machine.
        if not torch.compiler.is_compiling() and _plain(x) and (residual is None or _plain(residual)):
            pack = self._current_pack(x, residual) if _backend._current() in ("auto", "cpu") else None
            if pack is not None:
                return self._run(pack, x, residual)
        return self._forward(x, residual)

    def repack(self) -> None:
        """Forget the packed weights; the next call makes them again."""
        self._pack = None

    def train(self, mode: bool = True) -> ConvBNAct2d:
        """As `nn.Module.train`; training drops the packed weights."""
        if mode:
            self._pack = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """The activation; the rest is told by the children."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation!r}{slope}"

    def _apply(self, fn: Any, recurse: bool = True) -> ConvBNAct2d:
        self._pack = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pack": None}

    def _forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """Differentiable, from the parameters as they are."""
        conv, bn = self.conv, self.bn
        x, padding = _pad(conv, x)
        frozen = bn is None or (not bn.training and bn.running_mean is not None)
        if bn is None or frozen:
            folded = () if bn is None else (bn.running_mean, bn.running_var, bn.weight, bn.bias)
            return conv_bn_act(
                x, conv.weight, conv.bias, *folded, eps=1e-5 if bn is None else bn.eps, residual=residual,
                stride=conv.stride, padding=padding, dilation=conv.dilation, groups=conv.groups,
                activation=self.activation, negative_slope=self.negative_slope,
            )  # fmt: skip
        z = conv_bn_act(
            x, conv.weight, conv.bias, stride=conv.stride, padding=padding, dilation=conv.dilation, groups=conv.groups,
            activation="none",
        )  # fmt: skip
        z = bn(z)
        return apply_activation(z if residual is None else z + residual, self.activation, self.negative_slope)

    def _run(self, pack: _Pack, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if x.dtype is not pack.dtype:  # autocast
            x = x.to(pack.dtype)
        if residual is not None and residual.dtype is not pack.dtype and torch.is_autocast_enabled("cpu"):
            residual = residual.to(pack.dtype)
        if pack.pad:
            x, _ = _pad(self.conv, x)
        unbatched = x.dim() == 3
        if unbatched:
            x = x[None]
            residual = None if residual is None else residual[None]
        g = pack.geometry
        y = torch.ops.pykernels.conv_bn_act_packed.default(
            x, pack.packed, pack.weight_shape, pack.scale, pack.shift, residual, g.stride, g.padding, g.dilation,
            g.groups, _CODES[self.activation], self.negative_slope,
        )  # fmt: skip
        return y[0] if unbatched else y

    def _current_pack(self, x: torch.Tensor, residual: torch.Tensor | None) -> _Pack | None:
        """The packed weights for this call, made if need be; None where the plain op has to run."""
        modules = self._modules  # nn.Module's own attribute lookup takes as long as all the rest
        conv: Any = modules["conv"]
        bn: Any = modules["bn"]
        sources = _sources(conv, bn)
        if bn is not None and (bn.training or sources[2] is None):
            return None
        if torch.is_grad_enabled() and (
            x.requires_grad
            or (residual is not None and residual.requires_grad)
            or any(t is not None and t.requires_grad for t in sources)
        ):
            return None
        dtype = x.dtype
        if dtype is not torch.float64 and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        # A pack is immutable and published in one assignment. Threads that meet here may each make one; any will do.
        pack = self._pack
        if pack is None or not pack.is_of(conv, bn, sources, dtype):
            pack = _make_pack(conv, bn, sources, dtype)
            self._pack = pack
        return pack


class _Pack:
    """Packed weights, the tensors and settings they were made from, and the geometry for the kernel."""

    __slots__ = (
        "dtype",
        "eps",
        "geometry",
        "isa",
        "packed",
        "pad",
        "pointers",
        "scale",
        "settings",
        "shift",
        "sources",
        "storages",
        "versions",
        "weight_shape",
    )  # fmt: skip

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, sources: Sources, dtype: torch.dtype) -> None:
        # The versions first: if another thread changes a tensor from here on, the next call sees it.
        self.sources = sources
        self.versions = tuple(-1 if t is None else t._version for t in sources)
        self.pointers = tuple(-1 if t is None else t.data_ptr() for t in sources)
        # Kept alive, so that storage that replaces them (``parameter.data = other``) cannot get their addresses.
        self.storages = tuple(None if t is None else t.detach() for t in sources)
        self.settings = _settings(conv)
        self.eps = 0.0 if bn is None else bn.eps
        self.isa = _active_isa()
        self.dtype = dtype
        self.pad = conv.padding_mode != "zeros"
        weight, bias, mean, var, bn_weight, bn_bias = self.storages
        assert weight is not None
        padding = 0 if self.pad else conv.padding
        self.geometry = geometry(weight.shape[2:], conv.stride, padding, conv.dilation, conv.groups)
        self.weight_shape = tuple(weight.shape)
        self.scale, self.shift = fold_batch_norm(bias, mean, var, bn_weight, bn_bias, self.eps)
        self.packed = torch.ops.pykernels.conv_pack(weight.to(dtype), conv.groups, _DIRECT)

    def is_of(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, sources: Sources, dtype: torch.dtype) -> bool:
        """Would packing these anew give the same?"""
        for now, then, version, pointer in zip(sources, self.sources, self.versions, self.pointers, strict=True):
            if now is not then:
                return False
            if now is not None and (now._version != version or now.data_ptr() != pointer):
                return False
        return (
            dtype is self.dtype
            and self.settings == _settings(conv)
            and (bn is None or bn.eps == self.eps)
            and self.isa == _active_isa()
        )


def _make_pack(conv: nn.Conv2d, bn: nn.BatchNorm2d | None, sources: Sources, dtype: torch.dtype) -> _Pack | None:
    """The pack, or None where the kernels don't take these tensors: the plain op then says why, or does without."""
    weight = sources[0]
    assert weight is not None
    if _native.error is not None or dtype not in CONV_BN_ACT.dtypes or weight.numel() == 0:
        return None
    if weight.dtype != dtype and not torch.is_autocast_enabled("cpu"):
        return None
    # Tensors made under inference_mode count no versions, so a change of theirs would go unseen.
    if any(t is not None and (not _plain(t) or t.is_inference()) for t in sources):
        return None
    with torch.inference_mode(False), torch.no_grad():
        return _Pack(conv, bn, sources, dtype)


def _sources(conv: Any, bn: Any) -> Sources:
    try:
        p = conv._parameters
        if bn is None:
            return p["weight"], p["bias"], None, None, None, None
        q, b = bn._parameters, bn._buffers
        return p["weight"], p["bias"], b["running_mean"], b["running_var"], q["weight"], q["bias"]
    except KeyError:  # parametrized: a property computes it
        if bn is None:
            return conv.weight, conv.bias, None, None, None, None
        return conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias


def _settings(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


def _plain(t: Any) -> bool:
    """An ordinary CPU tensor, that no tracer, mode or transform looks at?"""
    return (
        (type(t) is torch.Tensor or type(t) is nn.Parameter)
        and t.is_cpu
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def _pad(conv: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """``x`` padded where the mode is not zeros, and the zero padding that is left to the convolution."""
    if conv.padding_mode == "zeros":
        return x, conv.padding
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


@functools.cache
def _isa_function() -> Callable[[], str]:
    return _native.introspect().active_isa


def _active_isa() -> str:
    return _isa_function()()
