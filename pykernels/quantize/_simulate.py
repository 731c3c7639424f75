"""The steps of a quantised graph in float, rounded as int8 rounds, with gradients that pass straight through.

Straight-through estimation after Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic
neurons", 2013; batch norms are folded into the weights before they are rounded, as in Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", 2018, by their running statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels.nn.int8_conv import Grid
from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.conv_bn_act.arguments import padded
from pykernels.optimize._activations import Act
from pykernels.optimize._calls import OurCall
from pykernels.optimize._export import realised
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, mapped
from pykernels.optimize._int8_tensors import rounded_rows
from pykernels.optimize._norms import bind_norm, is_norm
from pykernels.optimize._program import Program
from pykernels.optimize._squeeze import is_squeeze
from pykernels.optimize._transposed import FusedTransposed
from pykernels.optimize._watch import SKIPPED, kind_of
from pykernels.quantize._dynamic import DynamicLinear
from pykernels.quantize._glue import Affine, Dequantize, Lookup, Mean, Quantize, Squeeze, Sum, bind_affine
from pykernels.quantize._recurrent import Followed
from pykernels.quantize._steps import Int8Layer
from pykernels.quantize._tune import UNTUNED

#: What makes the constants of batch norms.
_BINDS = bind_norm, bind_affine


class Simulation:
    """Evaluates ``program``; ``live`` gives what stands for a tensor of the model."""

    def __init__(self, program: Program, live: Callable[[Tensor], Tensor]) -> None:
        self.program, self.live = program, live
        self.values: dict[Value, Any] = {}
        self._norms = {s.results()[0]: s for s in program.folded if s.function in _BINDS}

    def evaluate(self, inputs: list[Tensor]) -> Any:
        """What the program gives for ``inputs``."""
        graph = self.program.graph
        self.values.update(zip(graph.inputs, inputs, strict=True))
        self._fold()
        alone = _alone(graph.steps)
        for step in graph.steps:
            if step in alone:  # a gradient may need what is overwritten
                self.values[step.args[0]] = self.values[step.args[0]].clone()
            self._spread(step.outputs, self._run(step))
        return realised(mapped(graph.result, self.leaf))

    def leaf(self, x: Any) -> Any:
        """What a value is now; all else itself."""
        if not isinstance(x, Value):
            return x
        return self.live(x.tensor) if x not in self.values and x.tensor is not None else self.values[x]

    def _fold(self) -> None:
        """Computes what depends on the model's tensors alone."""
        for step in self.program.folded:
            if step.function not in _BINDS:
                args, kwargs = mapped(step.args, self.leaf), mapped(step.kwargs, self.leaf)
                self._spread(step.outputs, step.function(*args, **kwargs))

    def _spread(self, outputs: Any, result: Any) -> None:
        if isinstance(outputs, Value):
            self.values[outputs] = result
        elif outputs is not None:
            for part, got in zip(outputs, result, strict=True):
                self._spread(part, got)

    def rounded(self, x: Tensor, grid: Grid, _: Step) -> Tensor:
        """``x``, which a step gives, on ``grid``; the gradient is that of the part that is not clamped."""
        return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, -128, 127)

    def weights(self, layer: Any) -> tuple[Tensor, Tensor | None]:
        """The filters of a layer, rounded where they are int8, and the bias, with the batch norm in both."""
        leaf = self.leaf
        weight, bias = _filters(layer, leaf(layer.weight)), leaf(layer.bias)
        if layer.norm is not None:
            mean, var, scale, shift = map(leaf, layer.norm)
            factor = torch.rsqrt(var + layer.eps)
            factor = factor if scale is None else factor * scale
            bias = (-mean if bias is None else bias - mean) * factor
            bias = bias if shift is None else bias + shift
            weight = weight * factor.reshape(-1, 1, 1, 1)
        if not isinstance(layer, Int8Layer | DynamicLinear):
            return weight, bias
        tuning = layer.tuning if isinstance(layer, Int8Layer) else UNTUNED
        weight, bias = tuning.scaled(weight, bias)
        rounded = rounded_filters(weight, layer.per_channel)
        return rounded, tuning.corrected(weight.detach(), rounded.detach(), bias)

    def _run(self, step: Step) -> Any:
        function: Any = step.function
        if is_norm(step):
            return self._norm(step)
        if isinstance(step.function, Affine):
            return self._affine(step)
        args: Any = realised(mapped(step.args, self.leaf))
        kwargs: dict[str, Any] = realised(mapped(step.kwargs, self.leaf))
        if isinstance(function, FusedTransposed):
            return self._transposed(function, *args)
        if isinstance(function, FusedConv):
            return self._layer(step, *args)
        if isinstance(function, Quantize):
            return self.rounded(args[0], function.grid, step)
        if isinstance(function, Dequantize):
            return args[0]
        if isinstance(function, Squeeze):
            x, w1, b1, w2, b2 = args
            return self.rounded(_squeeze(x, w1, b1, w2, b2, *function.codes), function.out, step)
        if isinstance(function, Mean):
            return function.simulate(args[0])
        if isinstance(function, Sum | Lookup):
            return self.rounded(function.simulate(*args), function.out, step)
        if is_squeeze(step):
            return _squeeze(*args)
        return self.other(step, args, kwargs)

    def other(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a step gives that neither is a layer nor computes on int8 numbers."""
        function: Any = step.function
        if isinstance(function, OurCall):
            return function.in_trace(*args)
        if isinstance(function, nn.Module):
            # Int8 forms have no gradient: an LSTM trains in float.
            module = function.source if isinstance(function, Followed) else function
            return self.called(function, {name: self.live(p) for name, p in module.named_parameters()}, args, kwargs)
        return function(*args, **kwargs)

    def called(self, function: Any, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a module, in float, with these ``weights``."""
        module = function.source if isinstance(function, Followed) else function
        result = torch.func.functional_call(_apart(module), weights, args, kwargs)
        if isinstance(function, Followed) and function.is_last_step:
            return result[0][:, -1] if module.batch_first else result[0][-1]
        return result

    def _layer(self, step: Step, x: Tensor, residual: Tensor | None) -> Tensor:
        layer: Any = step.function
        weight, bias = self.weights(layer)
        if isinstance(layer, DynamicLinear) and layer.rounds_rows:
            x = rounded_rows(x)  # in ONNX: nobody trains one
        if layer.rank == 2:
            y = F.linear(x, weight.flatten(1), bias)
        else:
            g = layer.geometry()
            x, padding = padded(x, g)
            y = F.conv2d(x, weight, bias, g.stride, padding, g.dilation, g.groups)
        y = self._activated(y if residual is None else y + residual, layer)
        is_int8 = isinstance(layer, Int8Layer) and layer.out is not None
        return self.rounded(y, layer.out, step) if is_int8 else y

    def _transposed(self, layer: FusedTransposed, x: Tensor, residual: Tensor | None) -> Tensor:
        weight = self.leaf(layer.weight)
        weight = weight if weight.dim() == 4 else weight.unsqueeze(2)
        y = F.conv_transpose2d(x, weight, self.leaf(layer.bias), **layer.options)
        if layer.norm is not None:
            mean, var, scale, shift = map(self.leaf, layer.norm)
            y = F.batch_norm(y, mean, var, scale, shift, False, 0.0, layer.eps)
        return self._activated(y if residual is None else y + residual, layer)

    def _activated(self, y: Tensor, layer: Any) -> Tensor:
        act = layer.act
        if act.slopes is not None:
            return F.prelu(y, self.leaf(act.slopes))
        if act.constants:
            values: Mapping[Any, Any] = {}
            return act.in_place(values)(y.clone())
        return apply_activation(y, act.name, act.slope)

    def _norm(self, step: Step) -> Tensor:
        pieces, _, residual = step.args
        leaf, made = self.leaf, self._norms[step.args[1]]
        _, mean, var, weight, bias, eps, activation, slope, constants, slopes = made.args
        x = torch.cat([leaf(v) for v in pieces], 1) if len(pieces) > 1 else leaf(pieces[0])
        y = F.batch_norm(x, leaf(mean), leaf(var), leaf(weight), leaf(bias), False, 0.0, eps)
        y = y if residual is None else y + leaf(residual)
        if slopes is not None:
            return F.prelu(y, leaf(slopes))
        act = Act(activation, slope, constants)
        return act.in_place({})(y.clone()) if constants else apply_activation(y, activation, slope)  # type: ignore[misc]

    def _affine(self, step: Step) -> Tensor:
        leaf = self.leaf
        mean, var, weight, bias, eps, *_ = self._norms[step.args[1]].args
        x = torch.cat([leaf(v) for v in step.args[0]], 1)
        y = F.batch_norm(x, leaf(mean), leaf(var), leaf(weight), leaf(bias), False, 0.0, eps)
        function: Any = step.function
        _, _, code, slope = function.numbers.tolist()
        return self.rounded(apply_activation(y, ACTIVATIONS[int(code)], slope), function.out, step)


def _apart(module: nn.Module) -> nn.Module:
    """A copy of ``module`` that shares its tensors.

    ``functional_call`` swaps them for a while, which nobody may do to an optimised model; and calls of the copy go past
    what stands in front of the model's.
    """
    made: Any = object.__new__(kind_of(module))
    kept = {k: v for k, v in vars(module).items() if k not in SKIPPED}
    vars(made).update({k: copy.copy(v) if type(v) in (dict, list) else v for k, v in kept.items()})
    made._modules = {name: None if m is None else _apart(m) for name, m in module._modules.items()}
    return made


def rounded_filters(weight: Tensor, per_channel: bool) -> Tensor:
    """``weight`` (K, ...) as int8 numbers times scales, of each channel or of all."""
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(1) if per_channel else rows.abs().amax().expand(rows.shape[0])
    scale = _scale(largest)
    zero = torch.zeros(rows.shape[0], dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _scale(largest: Tensor) -> Tensor:
    """The scales of grids for numbers up to ``largest``; NaN of NaN."""
    return torch.where(largest == 0, torch.ones_like(largest), largest / 127)


def _alone(steps: list[Step]) -> set[Step]:
    """Those that write into a value whose memory nobody reads later, but by what they give."""
    read: set[Value] = set()
    found: set[Step] = set()
    for step in reversed(steps):
        x = step.args[0] if step.args else None
        storage = x.storage if isinstance(x, Value) and x.kind == "step" and step.writes == (x,) else None
        if storage is not None and isinstance(step.outputs, Value):
            others = (v for v in read if v.storage == storage and v is not step.outputs)
            if next(others, None) is None:
                found.add(step)
        read |= set(step.reads())
    return found


def _filters(layer: Any, weight: Tensor) -> Tensor:
    """``weight`` as that of a convolution of images, with its gradients."""
    if getattr(layer, "turned", False):
        weight = weight.t()
    return weight if weight.dim() == 4 else weight.unsqueeze(2) if weight.dim() == 3 else weight[:, :, None, None]


def _squeeze(x: Tensor, w1: Tensor, b1: Any, w2: Tensor, b2: Any, act: int, gate: int) -> Tensor:
    mean = x.mean((2, 3))
    hidden = apply_activation(F.linear(mean, w1.flatten(1), b1), ACTIVATIONS[act], 0.01)
    gates = apply_activation(F.linear(hidden, w2.flatten(1), b2), ACTIVATIONS[gate], 0.01)
    return x * gates[:, :, None, None]
