"""Reads a graph: which nodes are a convolution, a batch norm, an addition, an activation; what writes in place."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pykernels.optimize._trace import has_hooks

_CONV_FUNCTIONS = (F.conv2d, torch.conv2d)
_ADDS = (operator.add, operator.iadd, torch.add)
_ADD_METHODS = ("add", "add_")

#: Functions and methods without parameters.
_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", torch.sigmoid_: "sigmoid",
    F.tanh: "tanh", torch.tanh: "tanh", torch.tanh_: "tanh",
    F.silu: "silu", F.hardswish: "hardswish",
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh",
}  # fmt: skip
_ACTIVATION_MODULES: dict[type, str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu", nn.Hardswish: "hardswish",
}  # fmt: skip
#: In evaluation these hand their input on.
_PASS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Activation:
    """Name and slope, as the ops take them."""

    name: str
    negative_slope: float = 0.01


class GraphReader:
    """A graph and the module that its names refer to."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.graph = graph
        self.modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node, kind: type) -> Any:
        """The module that ``node`` calls, if it is of exactly this type and carries no hooks."""
        if node.op != "call_module":
            return None
        found = self.modules.get(str(node.target))  # None: put in by the rewrite
        return found if found is not None and type(found) is kind and not has_hooks(found) else None

    def attribute(self, value: Any) -> Any:
        """The tensor that a ``get_attr`` node reads; other values as they are."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return value
        found: Any = self.root
        for part in str(value.target).split("."):
            found = getattr(found, part)
        return found

    def conv(self, node: fx.Node) -> nn.Conv2d | None:
        """The convolution that ``node`` computes, as a module (a functional one is put into a new shell)."""
        found = self.module(node, nn.Conv2d)
        if found is not None or node.op != "call_function" or node.target not in _CONV_FUNCTIONS:
            return found
        bound = _bind(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
        weight, bias = self.attribute(bound.get("weight")), self.attribute(bound.get("bias"))
        rest = {k: bound[k] for k in ("stride", "padding", "dilation", "groups") if k in bound}
        if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None) or _has_nodes(rest):
            return None
        groups = rest.get("groups", 1)
        out_channels, per_group, *size = weight.shape
        conv = nn.Conv2d(
            per_group * groups, out_channels, (size[0], size[1]), bias=bias is not None, device="meta", **rest
        )
        conv.weight, conv.bias = weight, bias
        return conv

    def batch_norm(self, node: fx.Node) -> nn.BatchNorm2d | None:
        """The batch norm with running statistics that ``node`` applies, as a module."""
        found = self.module(node, nn.BatchNorm2d)
        if found is not None:
            return found if found.running_mean is not None else None
        if node.op != "call_function" or node.target is not F.batch_norm:
            return None
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        bound = _bind(node, names)
        mean, var, weight, bias = (self.attribute(bound.get(k)) for k in names[1:5])
        eps = bound.get("eps", 1e-5)
        if bound.get("training", False) is not False or not isinstance(eps, float | int):
            return None
        if not isinstance(mean, torch.Tensor) or not isinstance(var, torch.Tensor):
            return None
        affine = isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
        if not affine and not (weight is None and bias is None):
            return None
        bn = nn.BatchNorm2d(mean.numel(), eps=eps, affine=weight is not None, device="meta")
        bn.running_mean, bn.running_var = mean, var
        bn.num_batches_tracked = torch.zeros((), dtype=torch.long)
        if weight is not None:
            bn.weight, bn.bias = weight, bias
        return bn.eval()

    def activation(self, node: fx.Node) -> Activation | None:
        """The activation that ``node`` applies, if it is one of ours."""
        if node.op == "call_module":
            m = self.modules.get(str(node.target))
            if m is None or has_hooks(m):
                return None
            if type(m) in _ACTIVATION_MODULES:
                return Activation(_ACTIVATION_MODULES[type(m)])
            if type(m) is nn.LeakyReLU:
                return Activation("leaky_relu", m.negative_slope)
            if (type(m) is nn.ELU and m.alpha == 1.0) or (type(m) is nn.GELU and m.approximate == "none"):
                return Activation(type(m).__name__.lower())
            return None
        rest = {k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")}
        if node.target in _ACTIVATIONS:
            return Activation(_ACTIVATIONS[node.target]) if not rest and len(node.args) <= 2 else None
        if node.target is F.leaky_relu:
            slope = _bind(node, ("input", "negative_slope", "inplace")).get("negative_slope", 0.01)
            return Activation("leaky_relu", slope) if isinstance(slope, float | int) else None
        if node.target is F.elu:
            return Activation("elu") if _bind(node, ("input", "alpha", "inplace")).get("alpha", 1.0) == 1.0 else None
        if node.target is F.gelu:
            return Activation("gelu") if rest.get("approximate", "none") == "none" else None
        return None

    def passes(self, node: fx.Node) -> bool:
        """Does ``node`` hand on its input unchanged in evaluation?"""
        return any(self.module(node, kind) is not None for kind in _PASS)

    def added(self, node: fx.Node, value: fx.Node) -> Any:
        """What ``node`` adds to ``value``; None if it is no plain addition, or overwrites the other operand."""
        by_function = node.op == "call_function" and node.target in _ADDS
        by_method = node.op == "call_method" and node.target in _ADD_METHODS
        if not (by_function or by_method) or len(node.args) != 2 or node.kwargs:
            return None
        left, right = node.args
        if left is value and right is not value:
            return right
        return left if right is value and left is not value and not changes_in_place(self, node) else None


def changes_in_place(reader: GraphReader, node: fx.Node) -> bool:
    """May ``node`` write into a tensor that existed before it?"""
    if node.op == "call_module":
        m = reader.modules.get(str(node.target))
        if m is None:  # a fused call, put in by the rewrite
            return False
        return bool(getattr(m, "inplace", False)) or not type(m).__module__.startswith(("torch.nn.", "pykernels."))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_function":
        if "out" in node.kwargs or node.target is operator.setitem:
            return True
        name = getattr(node.target, "__name__", "")
        in_place_operator = name.startswith("i") and hasattr(operator, "__" + name + "__") and name != "index"
        module_level = name.endswith("_") and not name.endswith("__")
        return in_place_operator or module_level or _inplace_argument(node)
    return False


def _inplace_argument(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return "inplace" in names and len(node.args) > names.index("inplace") and node.args[names.index("inplace")] is True


def _bind(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _has_nodes(values: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(values, lambda n: found.append(n))
    return bool(found)
