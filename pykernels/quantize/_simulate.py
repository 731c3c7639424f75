"""The steps of a quantised graph in float, rounded as int8 rounds, with gradients that pass straight through.

Straight-through estimation after Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic
neurons", 2013; batch norms are folded into the weights before they are rounded, as in Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", 2018, by their running statistics.
"""

from __future__ import annotations

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
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, mapped
from pykernels.optimize._norms import bind_norm, is_norm
from pykernels.optimize._program import Program
from pykernels.optimize._squeeze import is_squeeze
from pykernels.optimize._transposed import FusedTransposed
from pykernels.quantize._dynamic import DynamicLinear
from pykernels.quantize._glue import Affine, Dequantize, Lookup, Mean, Quantize, Squeeze, Sum, bind_affine
from pykernels.quantize._recurrent import Followed
from pykernels.quantize._steps import Int8Layer


def rounded(x: Tensor, grid: Grid) -> Tensor:
    """``x`` on ``grid``; the gradient is that of the part which is not clamped."""
    return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, -128, 127)


def rounded_filters(weight: Tensor, per_channel: bool) -> Tensor:
    """``weight`` (K, ...) as int8 numbers times scales, of each channel or of all."""
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(1) if per_channel else rows.abs().amax().expand(rows.shape[0])
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    zero = torch.zeros(rows.shape[0], dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def evaluate(program: Program, inputs: list[Tensor], live: Callable[[Tensor], Tensor]) -> Any:
    """What ``program`` gives for ``inputs``; ``live`` gives what stands for a tensor of the model."""
    values: dict[Value, Any] = dict(zip(program.graph.inputs, inputs, strict=True))

    def leaf(x: Any) -> Any:
        if not isinstance(x, Value):
            return x
        return live(x.tensor) if x not in values and x.tensor is not None else values[x]

    norms: dict[Value, Step] = {}
    for step in program.folded:
        if step.function in (bind_norm, bind_affine):
            norms[step.results()[0]] = step
        else:
            _spread(step.outputs, step.function(*mapped(step.args, leaf), **mapped(step.kwargs, leaf)), values)
    steps = program.graph.steps
    alone = _alone(steps)
    for step in steps:
        if step in alone:  # a gradient may need what is overwritten
            values[step.args[0]] = values[step.args[0]].clone()
        if is_norm(step):
            result = _norm(step, norms[step.args[1]], leaf)
        elif isinstance(step.function, Affine):
            result = _affine(step, norms[step.args[1]], leaf)
        else:
            args, kwargs = mapped(step.args, leaf), mapped(step.kwargs, leaf)
            result = _run(step, args, kwargs, leaf, live)
        _spread(step.outputs, result, values)
    return mapped(program.graph.result, leaf)


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


def _run(step: Step, args: Any, kwargs: Any, leaf: Callable[[Any], Any], live: Callable[[Tensor], Tensor]) -> Any:
    function: Any = step.function
    if isinstance(function, FusedConv):
        x, residual = args
        return _layer(function, x, residual, leaf)
    if isinstance(function, Quantize):
        return rounded(args[0], function.grid)
    if isinstance(function, Dequantize):
        return args[0]
    if isinstance(function, Squeeze):
        x, w1, b1, w2, b2 = args
        return rounded(_squeeze(x, w1, b1, w2, b2, *function.codes), function.out)
    if isinstance(function, Mean):
        return function.simulate(args[0])
    if isinstance(function, Sum | Lookup):
        return rounded(function.simulate(*args), function.out)
    if isinstance(function, OurCall):
        return function.in_trace(*args)
    if is_squeeze(step):
        return _squeeze(*args)
    if isinstance(function, nn.Module):
        # Int8 forms have no gradient: an LSTM trains in float.
        module = function.source if isinstance(function, Followed) else function
        with_live = {name: live(p) for name, p in module.named_parameters()}
        result = torch.func.functional_call(module, with_live, args, kwargs)
        if isinstance(function, Followed) and function.is_last_step:
            return result[0][:, -1] if module.batch_first else result[0][-1]
        return result
    return function(*args, **kwargs)


def _layer(layer: Any, x: Tensor, residual: Tensor | None, leaf: Callable[[Any], Any]) -> Tensor:
    if isinstance(layer, FusedTransposed):
        return _transposed(layer, x, residual, leaf)
    weight, bias = _filters(layer, leaf(layer.weight)), leaf(layer.bias)
    if layer.norm is not None:
        mean, var, scale, shift = map(leaf, layer.norm)
        factor = torch.rsqrt(var + layer.eps)
        factor = factor if scale is None else factor * scale
        bias = (-mean if bias is None else bias - mean) * factor
        bias = bias if shift is None else bias + shift
        weight = weight * factor.reshape(-1, 1, 1, 1)
    is_int8 = isinstance(layer, Int8Layer)
    if is_int8 or isinstance(layer, DynamicLinear):
        weight = rounded_filters(weight, layer.per_channel)
    rows = None
    if layer.rank == 2:
        rows = x.shape[:-1]
        x = x.reshape(-1, x.shape[-1], 1, 1)
        residual = None if residual is None else residual.reshape(-1, residual.shape[-1], 1, 1)
    if isinstance(layer, DynamicLinear):
        x = _rounded_rows(x)
    g = layer.geometry()
    x, padding = padded(x, g)
    y = F.conv2d(x, weight, bias, g.stride, padding, g.dilation, g.groups)
    y = y if residual is None else y + residual
    y = _activated(y, layer, leaf)
    if is_int8 and layer.out is not None:
        y = rounded(y, layer.out)
    return y if rows is None else y.reshape(*rows, -1)


def _transposed(layer: FusedTransposed, x: Tensor, residual: Tensor | None, leaf: Callable[[Any], Any]) -> Tensor:
    weight = leaf(layer.weight)
    weight = weight if weight.dim() == 4 else weight.unsqueeze(2)
    y = F.conv_transpose2d(x, weight, leaf(layer.bias), **layer.options)
    if layer.norm is not None:
        mean, var, scale, shift = map(leaf, layer.norm)
        y = F.batch_norm(y, mean, var, scale, shift, False, 0.0, layer.eps)
    return _activated(y if residual is None else y + residual, layer, leaf)


def _filters(layer: Any, weight: Tensor) -> Tensor:
    """``weight`` as that of a convolution of images, with its gradients."""
    if getattr(layer, "turned", False):
        weight = weight.t()
    return weight if weight.dim() == 4 else weight.unsqueeze(2) if weight.dim() == 3 else weight[:, :, None, None]


def _rounded_rows(x: Tensor) -> Tensor:
    """Rows (N, C, 1, 1), each by its own largest magnitude."""
    largest = x.detach().abs().amax((1, 2, 3))
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return torch.fake_quantize_per_channel_affine(x, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127)


def _activated(y: Tensor, layer: Any, leaf: Callable[[Any], Any]) -> Tensor:
    act = layer.act
    if act.slopes is not None:
        return F.prelu(y, leaf(act.slopes))
    if act.constants:
        values: Mapping[Any, Any] = {}
        return act.in_place(values)(y.clone())
    return apply_activation(y, act.name, act.slope)


def _norm(step: Step, made: Step, leaf: Callable[[Any], Any]) -> Tensor:
    pieces, _, residual = step.args
    _, mean, var, weight, bias, eps, activation, slope, constants, slopes = made.args
    x = torch.cat([leaf(v) for v in pieces], 1) if len(pieces) > 1 else leaf(pieces[0])
    y = F.batch_norm(x, leaf(mean), leaf(var), leaf(weight), leaf(bias), False, 0.0, eps)
    y = y if residual is None else y + leaf(residual)
    if slopes is not None:
        return F.prelu(y, leaf(slopes))
    act = Act(activation, slope, constants)
    return act.in_place({})(y.clone()) if constants else apply_activation(y, activation, slope)  # type: ignore[misc]


def _affine(step: Step, made: Step, leaf: Callable[[Any], Any]) -> Tensor:
    mean, var, weight, bias, eps, *_ = made.args
    x = torch.cat([leaf(v) for v in step.args[0]], 1)
    y = F.batch_norm(x, leaf(mean), leaf(var), leaf(weight), leaf(bias), False, 0.0, eps)
    _, _, code, slope = step.function.numbers.tolist()
    return rounded(apply_activation(y, ACTIVATIONS[int(code)], slope), step.function.out)


def _squeeze(x: Tensor, w1: Tensor, b1: Any, w2: Tensor, b2: Any, act: int, gate: int) -> Tensor:
    mean = x.mean((2, 3))
    hidden = apply_activation(F.linear(mean, w1.flatten(1), b1), ACTIVATIONS[act], 0.01)
    gates = apply_activation(F.linear(hidden, w2.flatten(1), b2), ACTIVATIONS[gate], 0.01)
    return x * gates[:, :, None, None]


def _spread(outputs: Any, result: Any, values: dict[Value, Any]) -> None:
    if isinstance(outputs, Value):
        values[outputs] = result
    elif outputs is not None:
        for part, got in zip(outputs, result, strict=True):
            _spread(part, got, values)
