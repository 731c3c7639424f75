"""Models as torchao's PT2E flow writes them down, made without torchao: an exported graph that rounds what its layers
read, with int8 weights. And tensors that look like torchao's."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the ops

_OPS = torch.ops.quantized_decomposed
_LAYERS = ("conv1d", "conv2d", "linear")
_BOUNDS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def converted(
    model: nn.Module, x: Tensor, *, dynamic: bool = False, dtype: torch.dtype = torch.uint8, high: int | None = None,
    zero: int = 0, skip: tuple[str, ...] = (),
) -> fx.GraphModule:  # fmt: skip
    """``model`` with its layers, sums and concatenations quantised for the values that ``x`` gives.

    Activations are rounded to ``dtype``, up to ``high``; weights have the zero point ``zero``; ``skip`` are the layers,
    by the names of their weights, that get what they read as it is.
    """
    gm: Any = torch.export.export(model.eval(), (x,)).module()
    seen = _Ranges(gm)
    with torch.no_grad():
        seen.run(x)
    low, most = _BOUNDS[dtype]
    bounds = low, most if high is None else high, dtype
    rounded: dict[fx.Node, tuple[Any, tuple[Any, ...]]] = {}

    def rounding(v: fx.Node) -> fx.Node:
        """``v`` after a rounding: there is one for each tensor, and what makes floats again for each reader."""
        with gm.graph.inserting_after(v):
            if v not in rounded and dynamic:
                chosen = gm.graph.call_function(_OPS.choose_qparams.tensor, (v, *bounds[:2], 2.0**-12, dtype))
                with gm.graph.inserting_after(chosen):
                    second = gm.graph.call_function(_getitem, (chosen, 1))
                    first = gm.graph.call_function(_getitem, (chosen, 0))
                with gm.graph.inserting_after(second):
                    grid = (first, second, *bounds)
                    rounded[v] = gm.graph.call_function(_OPS.quantize_per_tensor.tensor, (v, *grid)), grid
            elif v not in rounded:
                grid = (*_grid(*seen.ranges[v], *bounds[:2]), *bounds)
                rounded[v] = gm.graph.call_function(_OPS.quantize_per_tensor.default, (v, *grid)), grid
        q, grid = rounded[v]
        back = _OPS.dequantize_per_tensor
        with gm.graph.inserting_after(q):
            return gm.graph.call_function(back.tensor if dynamic else back.default, (q, *grid))

    for i, node in enumerate(list(gm.graph.nodes)):
        name = str(getattr(node.target, "__name__", "")).split(".")[0]
        if node.op != "call_function":
            continue
        if name in _LAYERS and node.args[1].target not in skip:
            x_, weight, *rest = node.args
            node.args = (rounding(x_), _int8(gm, weight, i, zero), *rest)
        elif not dynamic and name in ("add", "add_") and all(isinstance(a, fx.Node) for a in node.args):
            node.args = (node.args[0], rounding(node.args[1]))
        elif not dynamic and name == "cat":
            node.args = ([rounding(v) for v in node.args[0]], *node.args[1:])
    gm.graph.lint()
    gm.recompile()
    return gm


def _getitem(pair: Any, i: int) -> Any:
    return pair[i]


class _Ranges(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.ranges: dict[fx.Node, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            self.ranges[n] = float(result.min()), float(result.max())
        return result


def _grid(low: float, high: float, first: int, last: int) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (last - first) or 1.0
    return scale, min(max(first - round(low / scale), first), last)


def _int8(gm: Any, weight: fx.Node, i: int, zero: int) -> fx.Node:
    """An int8 form of ``weight`` as a buffer, made float again."""
    w = gm.get_parameter(str(weight.target)).detach()
    scale = w.abs().flatten(1).amax(1) / 127.5
    q = (w / scale.reshape(-1, *[1] * (w.dim() - 1))).round().clamp(-128, 127).to(torch.int8)
    for name, t in (("q", q), ("scale", scale), ("zero", torch.full_like(scale, zero, dtype=torch.int64))):
        gm.register_buffer(f"_{name}{i}", t)
    with gm.graph.inserting_after(weight):
        nodes = [gm.graph.get_attr(f"_{name}{i}") for name in ("zero", "scale", "q")]
    with gm.graph.inserting_after(nodes[0]):
        return gm.graph.call_function(_OPS.dequantize_per_channel.default, (*nodes[::-1], 0, -128, 127, torch.int8))


class _PerRow:
    dim = -1


_PerRow.__name__ = "PerRow"


class _Mapping:
    name = "SYMMETRIC"


class _How:
    granularity, mapping_type, reduce_range = _PerRow(), _Mapping(), False


class SevenBits(_How):
    """Another rounding of the rows, which we have no kernels for."""

    reduce_range = True


class Int8Tensor(Tensor):
    """Stands in for torchao's: a weight in int8 whose layers round each row of what they read."""

    qdata: Tensor
    scale: Tensor
    act_quant_kwargs: Any

    @staticmethod
    def of(weight: Tensor, how: Any = _How) -> Int8Tensor:
        """``weight`` (K, C) in int8; ``how`` None: the layer's input stays float."""
        made: Any = Tensor._make_wrapper_subclass(Int8Tensor, weight.shape, dtype=weight.dtype)
        made.scale = weight.detach().abs().amax(1, keepdim=True) / 127.5
        made.qdata = (weight.detach() / made.scale).round().clamp(-128, 127).to(torch.int8)
        made.act_quant_kwargs = how and how()
        return made

    def __deepcopy__(self, memo: Any) -> Any:
        made: Any = Tensor._make_wrapper_subclass(Int8Tensor, self.shape, dtype=self.dtype)
        made.scale, made.qdata, made.act_quant_kwargs = self.scale, self.qdata, self.act_quant_kwargs
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        x, w, *rest = args
        if w.act_quant_kwargs is not None:
            step = x.abs().amax(-1, keepdim=True) / 127.5
            x = (x / step).round().clamp(-128, 127) * step
        return F.linear(x, w.qdata * w.scale, *rest)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


Int8Tensor.__module__ = "torchao.stand_in"


def with_int8_tensors(model: nn.Module, how: Any = _How) -> nn.Module:
    """``model`` with such weights in its linear layers."""
    for m in model.modules():
        if isinstance(m, nn.Linear):
            m.weight = nn.Parameter(Int8Tensor.of(m.weight, how), requires_grad=False)
    return model.eval()
