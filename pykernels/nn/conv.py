"""ConvBNAct2d: Conv2d, BatchNorm2d, residual add and activation as one module. `_packed` says how it packs weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pykernels import _native
from pykernels._huge import gathered
from pykernels.nn._packed import Pack, PacksWeights, Slot
from pykernels.nn._replaceable import check_replaceable, is_replaceable
from pykernels.nn._unfolded import is_unfolded
from pykernels.ops import _dispatch
from pykernels.ops._activation import activation_code, apply_activation
from pykernels.ops._arguments import check_number, fail
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops.batch_norm_act import batch_norm_act
from pykernels.ops.batch_norm_act.op import BATCH_NORM_ACT
from pykernels.ops.conv_bn_act import conv_bn_act, fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import BatchNorm, ConvCall, Geometry, check_batch_norm, geometry, tf32_allowed
from pykernels.ops.conv_bn_act.autograd import packed_at
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.ops.conv_bn_act.statistics import conv_batch_norm_act

if TYPE_CHECKING:
    from typing_extensions import Self

torch.fx.wrap("conv_bn_act")  # one node in a symbolic trace
torch.fx.wrap("batch_norm_act")

_DIRECT = 0
_MOST_SHAPES = 256


class ConvBNAct(PacksWeights):
    """What the blocks for images and for sequences share."""

    conv: Any
    bn: Any
    activation: str
    negative_slope: float
    _most_compared = 1 << 18  # more work is done with each weight than in the others
    #: Torch's classes of the children, and the dimensions of a batch.
    _conv_class: Any = nn.Conv2d
    _norm_class: Any = nn.BatchNorm2d
    _rank = 4

    @classmethod
    def from_torch(cls, conv: Any, bn: Any = None, activation: str = "none", negative_slope: float = 0.01) -> Self:
        """Makes a block of two torch modules, which become its children. Their parameters are shared, not copied.

        The block is in training mode if ``bn`` is, or, without one, if ``conv`` is.

        Args:
            conv: A convolution of torch's class for this block.
            bn: The batch norm that follows it, or None.
            activation: One of `pykernels.ops.ACTIVATIONS`.
            negative_slope: The slope of leaky_relu below 0.

        Raises:
            TypeError: ``conv`` or ``bn`` is of another class than torch's, or overrides ``forward``.
            ValueError: ``bn`` has another number of channels than ``conv``'s result, or one of them has hooks, which
                would not run.
        """
        check_replaceable(cls.__name__, "conv", conv, cls._conv_class, "forward", "_conv_forward")
        if bn is not None:
            check_replaceable(cls.__name__, "bn", bn, cls._norm_class)
        if bn is not None and bn.num_features != conv.out_channels:
            expected = f"{conv.out_channels} features (conv's output channels)"
            fail(ValueError, cls.__name__, "bn", expected, bn.num_features)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._assemble(conv, bn, activation, negative_slope)
        self.training = conv.training if bn is None else bn.training
        return self

    def _assemble(self, conv: Any, bn: Any, activation: str, negative_slope: float) -> None:
        activation_code(type(self).__name__, activation)
        self.conv = conv
        self.register_module("bn", bn)  # a plain assignment of None would not register it
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Computes ``act(bn(conv(x)) + residual)``.

        Args:
            x: (N, C, H, W), or (C, H, W) unbatched, of the parameters' dtype and device, with any strides.
            residual: Added before the activation; of the result's shape and ``x``'s dtype.

        Returns:
            (N, K, P, Q), or (K, P, Q) for unbatched input, in ``x``'s dtype and memory format.

        Raises:
            TypeError: ``x`` or ``residual`` is not a tensor, or its dtype does not go with the parameters'.
            ValueError: A shape or a device is wrong. The message names it.
        """
        if is_unfolded():
            return self._unfolded(x, residual)
        # A compiled graph holds the plain op: it is never stale, and it runs on any machine.
        bn: Any = self._modules["bn"]
        # In training the statistics are the batch's.
        pack = None if bn is not None and bn.training else self._current_pack(CONV_BN_ACT, (x, residual))
        if pack is None:
            return self._forward(x, residual)
        try:
            return self._run(pack, x, residual)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._forward, x, residual)

    if TYPE_CHECKING:  # torch.nn.Module's says Any of each call
        __call__ = forward

    def extra_repr(self) -> str:
        """The activation; the children print the rest."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation!r}{slope}"

    def _unfolded(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """By torch's modules."""
        y = self.conv(x) if self.bn is None else self.bn(self.conv(x))
        return apply_activation(y if residual is None else y + residual, self.activation, self.negative_slope)

    def _forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """Differentiable, from the parameters as they are."""
        conv, bn = self.conv, self.bn
        x, padding = _pad(conv, x)
        if bn is None or not (bn.training or bn.running_mean is None):
            folded = () if bn is None else (bn.running_mean, bn.running_var, bn.weight, bn.bias)
            return conv_bn_act(
                x, conv.weight, conv.bias, *folded, eps=1e-5 if bn is None else bn.eps, residual=residual,
                activation=self.activation, negative_slope=self.negative_slope, **self._geometry(padding),
            )  # fmt: skip
        # Without a GPU Triton's kernels are interpreted, where that is asked for by name.
        if (conv.weight.is_cuda or _dispatch.asked_backend() == "triton") and is_replaceable(bn, nn.BatchNorm2d):
            if _has_kernels(conv, x):
                return self._train(bn, x, padding, residual)
            return self._normalise(bn, self._convolve(x, padding), residual)
        z = bn(conv_bn_act(x, conv.weight, conv.bias, activation="none", **self._geometry(padding)))
        return apply_activation(z if residual is None else z + residual, self.activation, self.negative_slope)

    def _geometry(self, padding: Any) -> dict[str, Any]:
        conv = self.conv
        return {"stride": conv.stride, "padding": padding, "dilation": conv.dilation, "groups": conv.groups}

    def _convolve(self, x: torch.Tensor, padding: Any) -> torch.Tensor:
        """The convolution alone. Where someone may want gradients it is torch's, which has a backward pass anyway."""
        conv, options = self.conv, self._geometry(padding)
        if torch.is_grad_enabled():
            return F.conv2d(x, conv.weight, conv.bias, **options)
        return conv_bn_act(x, conv.weight, conv.bias, activation="none", **options)

    def _normalise(self, bn: nn.BatchNorm2d, z: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """What follows the convolution with the batch's statistics, in one op; moves ``bn``'s state as ``bn`` would."""
        tracks, momentum = _count_batch(bn)
        unbatched = z.dim() == 3
        if unbatched:
            z, residual = z[None], None if residual is None else residual[None]
        y = batch_norm_act(
            z, bn.running_mean if tracks else None, bn.running_var if tracks else None, bn.weight, bn.bias,
            training=True, momentum=momentum, eps=bn.eps, residual=residual, activation=self.activation,
            negative_slope=self.negative_slope,
        )  # fmt: skip
        return y[0] if unbatched else y

    def _train(self, bn: nn.BatchNorm2d, x: torch.Tensor, padding: Any, residual: torch.Tensor | None) -> torch.Tensor:
        """The whole block with the batch's statistics: the convolution leaves them, and one pass does the rest."""
        conv = self.conv
        tracks, momentum = _count_batch(bn)
        unbatched = x.dim() == 3
        if unbatched:
            x, residual = x[None], None if residual is None else residual[None]
        y = conv_batch_norm_act(
            x, conv.weight, conv.bias, bn.running_mean if tracks else None, bn.running_var if tracks else None,
            bn.weight, bn.bias, momentum=momentum, eps=bn.eps, residual=residual, activation=self.activation,
            negative_slope=self.negative_slope, **self._geometry(padding),
        )  # fmt: skip
        return y[0] if unbatched else y

    def _run(self, pack: ConvPack, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if x.dtype is not pack.dtype:  # autocast
            x = x.to(pack.dtype)
        if residual is not None and residual.dtype is not pack.dtype:
            residual = cast(autocast_dtype(residual), residual)
        if pack.pads:
            x, _ = _pad(self.conv, x)
        return self._run_images(pack, x, residual)

    def _run_images(self, pack: ConvPack, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        unbatched = x.dim() == 3
        if unbatched:
            x, residual = x[None], None if residual is None else residual[None]
        if pack.index < 0:
            bound = pack.by_shape.get(x.shape)
            y = pack.op(x, pack.bound_for(x.shape) if bound is None else bound, residual)
        else:
            y = pack.on_cuda(x, residual)
        return y[0] if unbatched else y

    def _wants_gradients(self) -> bool:
        return any(t.requires_grad for t in (*self.parameters(), *self.buffers()))

    def _slots(self) -> Sequence[Slot]:
        """Where the modules keep weight, bias, running_mean, running_var, the batch norm's weight and its bias."""
        conv, bn = self.conv, self.bn
        slots: list[Any] = [(conv._parameters, "weight"), (conv._parameters, "bias")]
        if bn is not None:
            slots += [(bn._buffers, "running_mean"), (bn._buffers, "running_var")]
            slots += [(bn._parameters, "weight"), (bn._parameters, "bias")]
        return slots

    def _takes(self, tensors: list[Any], dtype: torch.dtype) -> bool:
        return tensors[0].dtype is dtype

    def _key(self) -> Hashable:
        modules: Any = self._modules  # nn.Module's own attribute lookup takes as long as all the rest
        conv, bn = modules["conv"], modules["bn"]
        eps = 0.0 if bn is None else bn.eps
        # Torch's batch norm writes to its statistics without counting a version, but it counts its batches.
        batches = None if bn is None else bn._buffers.get("num_batches_tracked")
        seen = None if batches is None or batches.is_inference() else batches._version
        geometry = frozen(conv.stride), frozen(conv.padding), frozen(conv.dilation), conv.groups, conv.padding_mode
        return conv, bn, eps, self.activation, self.negative_slope, (geometry, seen)

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Any) -> Pack | None:
        if self.bn is not None and self.bn.running_mean is None:  # the statistics of the batch
            return None
        weight, *vectors = (owner[name] for owner, name in slots)
        if weight.dim() != self._rank:  # the op says so
            return None
        check_number("conv_bn_act", "negative_slope", self.negative_slope)
        norm = BatchNorm(*vectors)._replace(eps=key[2])
        check_batch_norm(weight, self._features(weight), norm)
        return self._pack_of(slots, dtype, key)

    def _features(self, weight: torch.Tensor) -> int:
        """How many channels the result has."""
        return weight.shape[0]

    def _pack_of(self, slots: Sequence[Slot], dtype: torch.dtype, key: Any) -> ConvPack:
        conv = self.conv
        x_is_padded = conv.padding_mode != "zeros"
        padding = 0 if x_is_padded else conv.padding
        pack = ConvPack(slots, dtype, self._geometry_of(conv, padding), Epilogue(*key[2:5]), key)
        pack.pads = x_is_padded
        return pack

    def _geometry_of(self, conv: Any, padding: Any) -> Geometry:
        """That of images, with zeros around them by ``padding``."""
        return geometry(conv.weight.shape[2:], conv.stride, padding, conv.dilation, conv.groups)


class ConvBNAct2d(ConvBNAct):
    """Conv2d, BatchNorm2d, residual add and activation as one module.

    It computes what these modules of torch compute one after the other, in one pass over memory::

        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        bn = nn.BatchNorm2d(out_channels, eps, momentum)
        y = act(bn(conv(x)) + residual)

    >>> block = pk.nn.ConvBNAct2d(64, 128, 3, padding=1, activation="relu").eval()
    >>> with torch.no_grad():
    ...     y = block(x)                       # x: (N, 64, H, W); y: (N, 128, H, W)

    Args:
        in_channels: C, the channels of ``x``.
        out_channels: K, the channels of the result.
        kernel_size: One int or (R, S).
        stride: One int or (vertical, horizontal).
        padding: One int, (vertical, horizontal), ``"valid"``, or ``"same"`` (stride 1 only).
        dilation: One int or (vertical, horizontal).
        groups: Divides C and K.
        bias: Whether the convolution has a bias. Unlike torch's, it has none unless asked for: a batch norm follows.
        padding_mode: What the padding holds, as for `torch.nn.Conv2d`.
        device: The device to make the parameters on.
        dtype: The parameters' dtype.
        batch_norm: False leaves the batch norm out (``bn`` is then None).
        eps: Added to the variance.
        momentum: The share of a batch in the running statistics; None for a cumulative average.
        affine: Whether the batch norm has a weight and a bias.
        track_running_stats: Whether it keeps running statistics; without them it always takes each batch's own.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.

    The children ``conv`` and ``bn`` are torch's own modules. So the keys of the state_dict are ``conv.weight``,
    ``conv.bias``, ``bn.weight``, ``bn.running_mean`` and so on, and `from_torch` makes a block of two modules.

    **Training.** Everything is differentiable. In training mode the batch norm takes the statistics of the batch and
    updates the running ones, as `torch.nn.BatchNorm2d` does.

    **Inference.** Where no gradient is recorded (``torch.no_grad()``, ``torch.inference_mode()``, or nothing requires
    one), the module packs its weights once. It packs them again when a parameter or buffer is written to or replaced,
    when the dtype, the instruction set or the geometry changes, and once for each algorithm that the input's shape asks
    for. It cannot see a write that torch counts no version for (through ``p.data``, a NumPy view or another process):
    call `repack` after one. Any number of threads may call the module at once.

    Hooks and an own ``forward`` of ``conv`` never run; those of ``bn`` run in training only.

    Raises:
        ValueError: ``activation`` is unknown, or torch's own modules refuse an argument.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None

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


def frozen(value: Any) -> Any:
    """``value`` as it is now: a list that is changed in place equals itself afterwards too."""
    return tuple(value) if type(value) is list else value


class Epilogue(NamedTuple):
    """What follows the sums, besides tensors."""

    #: The batch norm's; 0.0 where there is none.
    eps: float
    activation: str
    negative_slope: float
    #: The activation's own constants, in the place of the usual ones.
    constants: tuple[float, ...] = ()


class ConvPack(Pack):
    """All of a block except its inputs, as the kernels take it.

    ``slots`` name the weight, the bias, the batch norm's mean, variance, weight and bias, and the activation's slopes.
    All except the weight may be None, or left out at the end.

    On the CPU the pack has one tensor of ``conv_bind`` for each algorithm that a call wanted. The input's shape decides
    which algorithm is fastest, so the pack packs the weight when the first input that wants one comes. On CUDA it has
    the packed weight, the shape of the plain one, and the folded batch norm.
    """

    #: Is the image padded before, by another mode than zeros?
    pads = False
    #: What tells more of the sources than their versions do, where pykernels.optimize makes the pack.
    moments: Any = None
    #: The weight, if it exists only in packed form.
    held: Any = None

    def __init__(
        self,
        slots: Sequence[Slot],
        dtype: torch.dtype,
        geometry: Geometry,
        epilogue: Epilogue,
        key: Hashable = None,
    ) -> None:
        eps, activation, negative_slope, constants = epilogue
        self.geometry = geometry
        call = ConvCall(geometry, activation_code("ConvBNAct2d", activation), negative_slope)
        #: Without tf32 and with it.
        self.calls = tuple(call._replace(tf32=tf32).flat() for tf32 in (False, True))
        self.by_algorithm: dict[int, torch.Tensor] = {}
        #: The same memory but for what lies before the packed weight.
        self.tails: dict[int, torch.Tensor] = {}
        self.by_shape: dict[torch.Size, torch.Tensor] = {}
        #: The activation's constants by channel: the epilogue's, or the slopes.
        self.own: torch.Tensor | None = None

        def make(tensors: list[Any]) -> Any:
            weight, bias, *rest = tensors
            mean, var, bn_weight, bn_bias, slope = (*rest, *(None,) * 5)[:5]
            if slope is not None or constants:
                rows = torch.tensor(constants)[:, None] if slope is None else slope.float().reshape(1, -1)
                self.own = rows.expand(-1, weight.shape[0]).contiguous()
            folded = fold_batch_norm(bias, mean, var, bn_weight, bn_bias, eps)
            if self.index < 0:
                return folded
            return self._packed(_DIRECT), tuple(filters_of(weight).shape), *folded

        super().__init__(slots, dtype, key, make)
        ops = torch.ops.pykernels
        self.op = (ops.conv_bn_act_bound if self.index < 0 else ops.conv_bn_act_packed).default

    def _packed(self, algorithm: int) -> torch.Tensor:
        weight = filters_of(self.twins[0])
        return torch.ops.pykernels.conv_pack(weight.to(self.dtype), self.geometry.groups, algorithm)

    def _bind(self, algorithm: int) -> torch.Tensor:
        weight = filters_of(self.twins[0]).to(self.dtype)
        return torch.ops.pykernels.conv_pack_bound(weight, algorithm, *self.value, *self.calls[False], self.own)

    def tensors(self) -> list[torch.Tensor]:
        """All that is packed."""
        values = self.by_algorithm.values() if self.index < 0 else self.value
        return [t for t in values if isinstance(t, torch.Tensor)]

    def on_cuda(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """The block's output there."""
        return self.op(x, *self.value, residual, *self.calls[tf32_allowed(self.device)])

    def _algorithm(self, x: torch.Size) -> int:
        """The one to pack for, for an input of shape ``x``."""
        weight = filters_of(self.twins[0])
        if len(x) != 4:
            return _DIRECT
        try:
            found: int = _native.introspect().conv_algorithm(tuple(x), tuple(weight.shape), *self.geometry)
        except TypeError as problem:  # a number beyond int64
            raise RuntimeError("the geometry is out of range") from problem
        return found

    def bound_for(self, x: torch.Size) -> torch.Tensor:
        """What ``conv_bn_act_bound`` is to run for an input of shape ``x`` on the CPU."""
        weight = filters_of(self.twins[0])
        algorithm = self._algorithm(x)
        bound = self.by_algorithm.get(algorithm)
        if bound is None:
            if not self.is_of_isa():
                raise RuntimeError("the weights were packed for another ISA")  # all of a pack is of one
            with torch.inference_mode(False), torch.no_grad():
                bound = gathered(self._bind(algorithm))
                self.tails[algorithm] = bound[packed_at(weight.shape[0], self.value[0], self.value[1], self.own) :]
            self.by_algorithm[algorithm] = bound
        if len(self.by_shape) >= _MOST_SHAPES:
            self.by_shape.clear()
        self.by_shape[x] = bound
        return bound


def filters_of(weight: Any) -> torch.Tensor:
    """(K, C / groups, R, S), in the same memory: those for sequences are of one row."""
    return weight if weight.dim() == 4 else weight.unsqueeze(2)


def _has_kernels(conv: nn.Conv2d, x: torch.Tensor) -> bool:
    """Whether one backend's GPU kernels take this batch in training, both the convolution's and batch norm's."""
    if not isinstance(x, torch.Tensor):  # a symbolic trace
        return False
    dtype = autocast_dtype(x) or x.dtype
    where = {_dispatch.choose(spec, conv.weight.device, dtype) for spec in (CONV_BN_ACT, BATCH_NORM_ACT)}
    return where in ({"cuda"}, {"triton"})


def _count_batch(bn: nn.BatchNorm2d) -> tuple[bool, float]:
    """Whether to move the running statistics, and by which share. Counts the batch, as ``bn`` itself would."""
    momentum = 0.0 if bn.momentum is None else bn.momentum
    tracks = bn.training and bn.track_running_stats
    if tracks and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            momentum = 1.0 / float(bn.num_batches_tracked)
    return tracks, momentum


def _pad(conv: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """``x`` padded where the mode is not zeros, and the zero padding that is left to the convolution."""
    # The op reports what is not an image.
    rank = conv.weight.dim()
    no_image = x.dim() not in (rank - 1, rank) if isinstance(x, torch.Tensor) else not hasattr(x, "shape")
    if conv.padding_mode == "zeros" or no_image:
        return x, conv.padding
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
