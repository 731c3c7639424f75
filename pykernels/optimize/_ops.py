"""torch.lstm and the package's own ops in a graph of Dynamo's, as steps whose weights are packed.

Dynamo looks into modules, ours among them, and so finds the ops that take plain weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels import _native
from pykernels.nn import LSTM
from pykernels.ops import _dispatch
from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.conv_bn_act.arguments import ConvCall
from pykernels.ops.lstm.op import LSTM as LSTM_OP
from pykernels.optimize._graph import Graph, Step, Value

_FUNCTIONS = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu6": F.relu6, "hardsigmoid": F.hardsigmoid, "mish": F.mish,
    "gelu_tanh": partial(F.gelu, approximate="tanh"), "softplus": F.softplus,
}  # fmt: skip


def pack_ops(graph: Graph, source: Callable[[Tensor], Value], unlike: Callable[[str], Value]) -> None:
    """Rewrites the steps of ``graph``. ``source`` makes a value of a tensor, ``unlike`` one in no memory."""
    if _native.error is not None:
        return
    ops = torch.ops.pykernels
    steps: list[Step] = []
    for step in graph.steps:
        if step.function in (ops.conv_bn_act, ops.conv_bn_act.default):
            steps += _convolution(step, source, unlike)
            continue
        if step.function in (ops.lstm, ops.lstm.default):
            _our_lstm(step)
        steps.append(step)
    graph.steps = steps


def pack_lstms(graph: Graph) -> None:
    """Puts our module in the place of torch.lstm with constant weights."""
    for step in graph.steps:
        if step.kind == "call" and getattr(step.function, "__name__", "") == "lstm" and len(step.args) == 9:
            _torchs_lstm(step)


def _torchs_lstm(step: Step) -> None:
    x, hx, weights, has_biases, num_layers, _, training, bidirectional, batch_first = step.args
    lstm = None if training else _lstm(x, weights, has_biases, num_layers, bidirectional, batch_first)
    if lstm is not None:
        output, h, c = step.outputs
        step.function, step.args, step.outputs = lstm, (x, hx), (output, (h, c))
        step.kind, step.note = "module", "LSTM"


def _our_lstm(step: Step) -> None:
    x, h, c, weights, batch_sizes, num_layers, bidirectional, batch_first, has_biases, save = step.args
    packed = save or batch_sizes is not None or len(x.shape) != 3
    lstm = None if packed else _lstm(x, weights, has_biases, num_layers, bidirectional, batch_first)
    if lstm is not None:
        output, h_n, c_n, _ = step.outputs  # nothing but a backward pass reads the last
        step.function, step.args, step.outputs = lstm, (x, (h, c)), (output, (h_n, c_n))
        step.kind, step.note = "module", "LSTM"


def _lstm(
    x: Value, weights: list[Value], has_biases: bool, num_layers: int, bidirectional: bool, batch_first: bool
) -> LSTM | None:
    """Our module with these weights; None where it can't take them: projections are one more for each layer."""
    tensors = [v.tensor for v in weights]
    rows = num_layers * (2 if bidirectional else 1)
    if len(weights) != rows * (4 if has_biases else 2) or any(type(t) is not nn.Parameter for t in tensors):
        return None
    if any((v.dtype, v.device) != (x.dtype, x.device) for v in weights):
        return None
    if x.dtype not in LSTM_OP.takes(x.device.type) or not _dispatch.has_native(LSTM_OP, x.device):
        return None
    inputs, hidden = weights[0].shape[1], weights[1].shape[1]
    lstm = LSTM(inputs, hidden, num_layers, has_biases, batch_first, 0.0, bidirectional, device="meta").eval()
    for name, t in zip(lstm._flat_weights_names, tensors, strict=True):
        setattr(lstm, name, t)
    lstm._init_flat_weights()
    return lstm


def _convolution(step: Step, source: Callable[[Tensor], Value], unlike: Callable[[str], Value]) -> list[Step]:
    """The torch functions that a call of conv_bn_act stands for, which are fused again; with its constants, then."""
    x, weight, scale, shift, residual, *flat = step.args
    call = ConvCall.of(*flat)
    name = ACTIVATIONS[call.activation]
    top, left, bottom, right = call.geometry.padding
    if weight.kind != "source" or (top, left) != (bottom, right) or (name != "none" and name not in _FUNCTIONS):
        return [step]
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    stride, _, dilation, groups = call.geometry
    calls.append((torch.conv2d, (weight, None, stride, (top, left), dilation, groups)))
    if scale is not None or shift is not None:
        zeros, ones = (source(torch.full(weight.shape[:1], fill, device=weight.device)) for fill in (0.0, 1.0))
        norm = (zeros, ones, ones if scale is None else scale, zeros if shift is None else shift, False, 0.0, 0.0)
        calls.append((F.batch_norm, norm))
    if residual is not None:
        calls.append((torch.add, (residual,)))
    if name != "none":
        calls.append((_FUNCTIONS[name], (call.negative_slope,) if name == "leaky_relu" else ()))
    steps = []
    for i, (function, rest) in enumerate(calls):
        made = step.outputs
        if i < len(calls) - 1:
            unique = unlike("step")
            made = step.outputs.like(unique.index)
            made.storage = unique.storage
        steps.append(Step(function, (x, *rest), {}, made, (), "call", step.where))
        x = made
    return steps
