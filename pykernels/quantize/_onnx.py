"""A quantised program in ONNX, as QDQ: float operators between DequantizeLinear and QuantizeLinear.

What lies on a grid is rounded by a QuantizeLinear and read through a DequantizeLinear. Weights are int8 initializers
with a DequantizeLinear of a scale for each channel; biases are int32 ones, whose scales are those of the sums. Engines
such as ONNX Runtime and OpenVINO recognise the pattern and compute with integers.

ONNX has no operator for rows that are rounded by their own largest magnitude: ordinary ones compute that. Its LSTM
takes floats: the weights are int8 in the file, and the activations are not rounded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels.nn.int8_conv import Grid
from pykernels.ops.group_norm_act.reference import reference as group_norm_act
from pykernels.ops.layer_norm.reference import reference as layer_norm
from pykernels.ops.pool2d.reference import reference as pool2d
from pykernels.ops.shuffle.reference import reference as shuffle
from pykernels.optimize._export import TURNS, for_real
from pykernels.optimize._graph import Step
from pykernels.optimize._group_norms import GroupNorm
from pykernels.optimize._layer_norms import LayerNorm
from pykernels.optimize._pools import WHOLE, Pool
from pykernels.optimize._program import Program
from pykernels.optimize._resizes import Resize
from pykernels.optimize._shuffles import Shuffle
from pykernels.quantize._recurrent import Followed
from pykernels.quantize._simulate import Simulation
from pykernels.quantize._steps import Int8Layer, folded
from pykernels.quantize._tune import UNTUNED

_LEAST, _MOST = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max


class InONNX(Simulation):
    """Evaluates a program while `torch.onnx.export` looks on."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, lambda t: t)
        self._plan = program.graph.rewritten
        with for_real():
            self._constants = program.current().values

    def _fold(self) -> None:
        self.values.update((v, t) for v, t in self._constants.items() if v not in self.values)

    def rounded(self, x: Tensor, grid: Grid, _: Step) -> Tensor:
        """``x`` on ``grid``."""
        with for_real():
            scale, zero = torch.tensor(grid.scale, dtype=torch.float32), torch.tensor(grid.zero_point, dtype=torch.int8)
        onnx = torch.onnx.ops.symbolic
        q = onnx("::QuantizeLinear", (x, scale, zero), dtype=torch.int8, shape=x.shape)
        return onnx("::DequantizeLinear", (q, scale, zero), dtype=torch.float32, shape=x.shape)

    def weights(self, layer: Any) -> tuple[Tensor, Tensor | None]:
        """The filters of a layer, int8 where it is, and the bias, with the batch norm in both."""
        per_channel = getattr(layer, "per_channel", None)
        if per_channel is None:
            with for_real():
                return super().weights(layer)
        parts = layer.weight, layer.bias, *(layer.norm or (None,) * 4)
        with for_real():
            tensors = [self.leaf(v) for v in parts]
            q, steps, shift = folded(
                [layer.filters(tensors[0]), *tensors[1:]], layer.eps, per_channel, getattr(layer, "tuning", UNTUNED)
            )
            q = q.flatten(1) if layer.rank == 2 else q
            bias = None if shift is None else shift.detach().float()
            sums = steps * layer.x.scale if isinstance(layer, Int8Layer) else None
            steps = steps.contiguous()
            wide = None if bias is None or sums is None else (bias.double() / sums.double()).round()
            if wide is not None and bool(((wide >= _LEAST) & (wide <= _MOST)).all()):
                bias = wide.to(torch.int32)
        if bias is not None and bias.dtype is torch.int32:
            bias = _dequantized(bias, sums)
        return _dequantized(q, steps), bias

    def other(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a step gives that neither is a layer nor computes on int8 numbers; rounded if it moves such numbers."""
        is_module = isinstance(step.function, nn.Module)
        result = (self._module if is_module else _moved)(step, args, kwargs)
        grids = [self._plan.grid(v) for v in step.results()]
        if isinstance(result, Tensor):
            return result if grids[0] is None else self.rounded(result, grids[0], step)
        if all(g is None for g in grids):
            return result
        return [t if g is None else self.rounded(t, g, step) for t, g in zip(result, grids, strict=True)]

    def _module(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module gives, with its weights in int8 if those are what it computes with."""
        function: Any = step.function
        if not isinstance(function, Followed):
            return function(*args, **kwargs)
        int8 = dict(function.int8.named_buffers())
        weights = {
            name: _dequantized(t, int8[f"{name}_scale"]) if t.dtype is torch.int8 else t
            for name, t in int8.items()
            if not name.endswith("_scale")
        }
        return self.called(function, weights, args, kwargs)


def _dequantized(q: Tensor, scale: Tensor | None) -> Tensor:
    """``q`` (K, ...) times ``scale`` (K,)."""
    axis: Any = {"axis": 0}
    return torch.onnx.ops.symbolic("::DequantizeLinear", (q, scale), axis, dtype=torch.float32, shape=q.shape)


def _moved(step: Step, args: Any, kwargs: dict[str, Any]) -> Any:
    """A step in torch's functions."""
    function: Any = step.function
    if function in TURNS:  # memory formats, which ONNX lacks
        return args[0]
    if isinstance(function, Pool):
        if function.pool == WHOLE:
            return args[0].mean((2, 3), keepdim=function.keeps)
        return pool2d(args[0], function.pool._replace(zero_point=0))
    if isinstance(function, Resize):
        return _resized(function, args[0])
    if isinstance(function, Shuffle):
        (pieces,) = args
        return shuffle(pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), 1), function._call)
    if isinstance(function, LayerNorm):
        x, weight, bias = args
        return layer_norm(x, weight, bias, function._call)
    if isinstance(function, GroupNorm):
        x, weight, bias, residual = args
        return group_norm_act(x, weight, bias, residual, function._norm)
    return function(*args, **kwargs)


def _resized(resize: Resize, x: Tensor) -> Tensor:
    *scales, mode = resize._rest
    names = "nearest", "nearest-exact", "bilinear", "bilinear"
    corners = {} if mode < 2 else {"align_corners": mode == 3}
    size: dict[str, Any] = {"size": resize._size} if resize._size else {"scale_factor": scales}
    return F.interpolate(x, mode=names[int(mode)], **size, **corners)
