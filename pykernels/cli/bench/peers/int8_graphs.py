"""Writes the ONNX graphs of the int8 rows: what each engine is fastest with. It imports onnx when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pykernels.ops.int8_matmul.reference import quantize_int8_reference


class _Graph:
    """Nodes and constants of a graph with input x (m, k) and output y (m, n)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: torch.Tensor) -> None:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value.detach().numpy(), name))

    def node(self, op: str, inputs: str, output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs.split(), [output], **attributes))

    def save(self, path: Path, x: str, y: str, m: int, n: int, k: int) -> None:
        from onnx import TensorProto, helper, save

        value = helper.make_tensor_value_info
        ends = [value("x", getattr(TensorProto, x), [m, k])], [value("y", getattr(TensorProto, y), [m, n])]
        graph = helper.make_graph(self.nodes, "int8", *ends, self.constants)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def product(module: Any, a: torch.Tensor, folder: Path) -> None:
    """``model.onnx``, uint8 with zero point 128 times int8; ``static.onnx``, float32 that OpenVINO makes int8."""
    (m, k), n = a.shape, module.weight.shape[1]
    graph = _Graph()
    graph.constant("w", module.weight)
    graph.constant("zero", torch.tensor(128, dtype=torch.uint8))
    graph.node("MatMulInteger", "x w zero", "y")
    graph.save(folder / "model.onnx", "UINT8", "INT32", m, n, k)
    _static(module.weight, torch.ones(n), torch.tensor(1.0), None).save(
        folder / "static.onnx", "FLOAT", "FLOAT", m, n, k
    )


def linear(module: Any, x: torch.Tensor, folder: Path) -> None:
    """The layer of ``module`` in int8, with a scale for each column.

    ``dynamic.onnx`` is what ONNX Runtime's own tool makes; ``weights.onnx`` has int8 weights; ``static.onnx`` also has
    the scale of ``x``.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    layer: nn.Linear = module[0]
    (m, k), n = x.shape, layer.out_features
    graph = _Graph()
    graph.constant("w", layer.weight.t().contiguous())
    graph.constant("bias", layer.bias)
    graph.node("MatMul", "x w", "product")
    graph.node("Add", "product bias", "y")
    graph.save(folder / "model.onnx", "FLOAT", "FLOAT", m, n, k)
    quantize_dynamic(folder / "model.onnx", folder / "dynamic.onnx", per_channel=True, weight_type=QuantType.QInt8)

    q, scale, _ = quantize_int8_reference(layer.weight, axis=0)
    weight = q.t().contiguous()
    _weights(weight, scale, layer.bias).save(folder / "weights.onnx", "FLOAT", "FLOAT", m, n, k)
    _static(weight, scale, x.abs().max() / 127, layer.bias).save(folder / "static.onnx", "FLOAT", "FLOAT", m, n, k)


def _weights(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, x: str = "x") -> _Graph:
    graph = _Graph()
    graph.constant("w", weight)
    graph.constant("w_scale", scale)
    graph.constant("w_zero", torch.zeros_like(scale, dtype=torch.int8))
    graph.node("DequantizeLinear", "w w_scale w_zero", "w_float", axis=1)
    graph.node("MatMul", f"{x} w_float", "y" if bias is None else "product")
    if bias is not None:
        graph.constant("bias", bias)
        graph.node("Add", "product bias", "y")
    return graph


def _static(weight: torch.Tensor, scale: torch.Tensor, x_scale: torch.Tensor, bias: torch.Tensor | None) -> _Graph:
    graph = _weights(weight, scale, bias, "x_float")
    graph.constant("x_scale", x_scale)
    graph.constant("x_zero", torch.tensor(0, dtype=torch.int8))
    quantised = _Graph()
    quantised.node("QuantizeLinear", "x x_scale x_zero", "q")
    quantised.node("DequantizeLinear", "q x_scale x_zero", "x_float")
    graph.nodes = quantised.nodes + graph.nodes
    return graph
