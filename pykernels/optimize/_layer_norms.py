"""Layer norms on the CPU as our steps. What a model does to rows of pixels becomes what is done to the image.

ConvNeXt permutes an image to (N, H, W, C) for a layer norm, linear layers and activations, and back again. On images
these are a layer norm over channels and 1x1 convolutions, which include what follows: the layer's scale and the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels import _native
from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.ops.layer_norm.arguments import LayerNormCall
from pykernels.ops.layer_norm.op import LAYER_NORM
from pykernels.optimize import _rules
from pykernels.optimize._activations import activation_of
from pykernels.optimize._calls import OurCall
from pykernels.optimize._fused import FusedConv, pixel_scale
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs, layout_of, mapped, strides_in
from pykernels.optimize._linear import FusedLinear, linear_of

_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
#: From an image to rows of channels, and back.
_TO_ROWS, _TO_IMAGE = (0, 2, 3, 1), (0, 3, 1, 2)
_POINT = Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1)


class LayerNorm(OurCall):
    """A layer norm over the last dimensions, or (``dims`` is 0) over the channels of an image, for channels_last."""

    def __init__(self, call: LayerNormCall) -> None:
        super().__init__("layer_norm", "layer_norm", "layer_norm", torch.tensor(call, dtype=torch.float64))
        self._call = call
        self._run = torch.ops.pykernels.layer_norm_bound.default

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """In new memory."""
        return self._run(x if self._call.dims else _channels_last(x), weight, bias, self.numbers)

    def in_trace(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """The same by `pykernels.ops`'s op."""
        if not self._call.dims:
            x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.pykernels.layer_norm(x, weight, bias, *self._call)


def _channels_last(x: Tensor) -> Tensor:
    # Of a slice of channels pixels are as far apart as ever.
    h, w = x.shape[2:]
    if x.stride(1) == 1 and (h == 1 or w == 1 or x.stride(2) == w * x.stride(3)):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def use_our_layer_norms(graph: Graph) -> None:
    """Puts our kernel in the place of torch's, over last dimensions."""
    if not _dispatch.has_native(LAYER_NORM, torch.device("cpu")):
        return
    for step in graph.steps:
        found = _norm_of(step)
        if found is not None:
            call, args = found
            step.function, step.args, step.kwargs = LayerNorm(call), args, {}


def _norm_of(step: Step) -> tuple[LayerNormCall, tuple[Any, ...]] | None:
    """A layer norm that our kernel takes, and its input, weight and bias."""
    if step.kind != "call" or step.writes or step.function not in (F.layer_norm, torch.layer_norm):
        return None
    given, y = bound(step, _NORM), step.outputs
    x, weight, bias = (given.get(k) for k in ("input", "weight", "bias"))
    shape, eps = given.get("normalized_shape"), given.get("eps", 1e-5)
    if not isinstance(x, Value) or not isinstance(y, Value) or type(eps) is not float or eps < 0:
        return None
    if not isinstance(shape, list | tuple) or not shape or not all(type(n) is int for n in shape):
        return None
    whole = tuple(shape) == x.shape[-len(shape) :] and set(given) <= set(_NORM)
    if not whole or x.device.type != "cpu" or x.dtype not in LAYER_NORM.takes("cpu"):
        return None
    if (y.dtype, y.layout) != (x.dtype, "contiguous"):
        return None
    vectors = [v for v in (weight, bias) if v is not None]
    for v in vectors:
        if not isinstance(v, Value) or v.layout != "contiguous" or v.dtype is not vectors[0].dtype:
            return None
        if v.dtype not in (x.dtype, torch.float32):
            return None
    return LayerNormCall(len(shape), eps), (x, weight, bias)


def pixel_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of every pixel's channels."""
    return F.conv2d(x, weight[:, :, None, None], bias)


class FusedPixels(FusedConv):
    """The constants of a fused `pixel_linear`."""

    name = "linear"
    pads = False

    def __init__(self, weight: Value, bias: Value | None) -> None:
        super().__init__(weight, bias, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1})

    def filters(self, weight: Any) -> Any:
        """(K, C, 1, 1), in the same memory."""
        return weight.detach()[:, :, None, None]

    def filter_shape(self) -> tuple[int, ...]:
        """(K, C, 1, 1)."""
        return (*self.weight.shape, 1, 1)

    def geometry(self) -> Geometry:
        """That of 1x1."""
        return _POINT

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Why torch runs it for an input of this shape; "" where our kernel does."""
        if self.is_held:
            return ""
        k, c = self.weight.shape
        bf16 = self.weight.dtype is torch.bfloat16
        isa = _native.introspect().active_isa()
        rows = shape[0] * prod(shape[2:])
        return _rules.linear_torchs_because(rows, c, k, self.act.name, bf16, isa)


def pixels_of(step: Step) -> tuple[FusedPixels, Value] | None:
    """A `pixel_linear`, and its image."""
    if step.function is not pixel_linear:
        return None
    x, weight, bias = step.args
    return FusedPixels(weight, bias), x


def rows_as_images(graph: Graph, constants: set[Value]) -> None:
    """Rewrites what happens to rows of channels between two permutations so that it happens to images."""
    if not _dispatch.has_native(LAYER_NORM, torch.device("cpu")):
        return
    users = graph.users()
    index = graph.next_index()
    gone: set[Step] = set()
    made: dict[Step, Step] = {}
    for first in graph.steps:
        chain = _chain_from(first, users, constants)
        if chain is None:
            continue
        *steps, last = chain
        gone |= {first, last}
        image: Value = first.args[0]
        for step in steps:
            rows: Value = next(v for v in step.reads() if v not in constants)
            result = last.outputs if step is steps[-1] else _image_of(step.outputs, index)
            index += 1
            made[step] = _on_image(step, rows, image, result)
            image = result
    graph.steps = [made.get(s, s) for s in graph.steps if s not in gone]


def _chain_from(first: Step, users: dict[Value, list[Step | None]], constants: set[Value]) -> list[Step] | None:
    """The steps between a permutation to rows and the one back, with that; None where something else reads them."""
    if not _permutes(first, _TO_ROWS) or first.outputs.device.type != "cpu":
        return None
    chain: list[Step] = []
    value: Value = first.outputs
    while True:
        following = users.get(value, [])
        step = following[0] if len(following) == 1 else None
        if step is None or step.kind != "call" or step.writes or not isinstance(step.outputs, Value):
            return None
        if _permutes(step, _TO_IMAGE):
            return [*chain, step] if chain else None
        norm, linear = _norm_of(step), linear_of(step)
        if norm is not None:
            fits = norm[0].dims == 1 and norm[1][0] is value
        elif linear is not None:
            layer, x = linear
            fits = x is value and not layer.turned and all(v in constants for v in layer.parameters())
        elif chain and linear_of(chain[-1]) is not None and _scale_of(step, value) in constants:
            fits = True
        else:
            act = activation_of(step)
            fits = act is not None and act.slopes is None and list(step.reads()) == [value]
        if not fits or step.outputs.dtype is not value.dtype:
            return None
        chain.append(step)
        value = step.outputs


def _permutes(step: Step, dims: tuple[int, ...]) -> bool:
    if step.kind != "call" or not is_torchs(step.function, "permute") or not isinstance(step.outputs, Value):
        return False
    x, *rest = step.args or (None,)
    if "dims" in step.kwargs:
        rest = [step.kwargs["dims"]]
    given = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    if not isinstance(x, Value) or len(x.shape) != 4 or set(step.kwargs) - {"dims"}:
        return False
    return len(given) == 4 and all(type(d) is int for d in given) and tuple(d % 4 for d in given) == dims


def _scale_of(step: Step, value: Value) -> Value | None:
    """The factors of the last dimension that ``step`` multiplies ``value`` by."""
    if not is_torchs(step.function, "mul", "__mul__", "__rmul__", "multiply") or len(step.args) != 2 or step.kwargs:
        return None
    other = step.args[1] if step.args[0] is value else step.args[0]
    if value not in step.args or not isinstance(other, Value) or other.shape != value.shape[-1:]:
        return None
    return other if other.dtype is value.dtype else None


def _on_image(step: Step, rows: Value, image: Value, result: Value) -> Step:
    """What ``step`` does to ``rows``, done to ``image``."""
    norm, linear = _norm_of(step), linear_of(step)
    if norm is not None:
        call, (_, weight, bias) = norm
        function: Any = LayerNorm(call._replace(dims=0))
        args: tuple[Any, ...] = image, weight, bias
    elif linear is not None:
        layer: FusedLinear = linear[0]
        function, args = pixel_linear, (image, layer.weight, layer.bias)
    elif (scale := _scale_of(step, rows)) is not None:
        function, args = pixel_scale, (image, scale)
    else:
        args, kwargs = (mapped(nest, lambda v: image if v is rows else v) for nest in (step.args, step.kwargs))
        return Step(step.function, args, kwargs, result, (), "call", step.where)
    return Step(function, args, {}, result, (), "call", step.where)


def _image_of(v: Value, index: int) -> Value:
    """(N, C, H, W), in the memory of ``v`` of (N, H, W, C)."""
    made = v.like(index)
    made.kind, made.tensor = "step", None
    stride = v.stride or strides_in("contiguous", v.shape)
    made.shape, made.stride = (tuple(t[d] for d in _TO_IMAGE) for t in (v.shape, stride))
    made.layout = layout_of(torch.empty_strided(made.shape, made.stride, device="meta"))
    return made
