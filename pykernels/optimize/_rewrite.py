"""The rewrite: one graph where the model can be traced, module by module where it can't."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pykernels.nn import LSTM, ConvBNAct2d, LSTMCell
from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.ops.lstm.op import LSTM as LSTM_SPEC
from pykernels.ops.lstm.op import LSTM_CELL as CELL_SPEC
from pykernels.optimize._modules import FusedConv, FusedLinear, Rewritten, like_input, stand_in
from pykernels.optimize._patterns import Activation, GraphReader, changes_in_place
from pykernels.optimize._report import Left, Replaced, Report
from pykernels.optimize._trace import Untraceable, has_hooks, trace

#: What has kernels of ours, and so is worth a line in the report where it stays.
_FAMILY = (nn.Conv2d, nn.BatchNorm2d, nn.LSTM, nn.LSTMCell, nn.Linear)
#: What stands for a module of the family outside any chain.
_OURS: dict[type, Any] = {nn.Conv2d: ConvBNAct2d, nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_LINEAR = "pk.ops.conv_bn_act, 1 x 1 (from two rows on)"
#: Compute of other kinds that a reader of the report may look for.
_OTHERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass
class _Chain:
    """A convolution and the nodes after it that one call can do."""

    conv_node: fx.Node
    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None = None
    residual: fx.Node | None = None
    adds: bool = False
    activation: Activation | None = None
    nodes: list[fx.Node] = field(default_factory=list)

    def kinds(self) -> str:
        parts = [
            "conv",
            "bn" if self.bn else "",
            "add" if self.adds else "",
            self.activation.name if self.activation else "",
        ]
        return "+".join(p for p in parts if p)


class Rewriter:
    """Rewrites the modules of one model; fills `report` on the way."""

    def __init__(self) -> None:
        self.report = Report()
        self._done: dict[int, nn.Module] = {}

    def rewrite(self, module: nn.Module, path: str = "") -> nn.Module:
        """What stands for ``module``, named ``path`` in the model, from now on; maybe itself, changed inside."""
        if id(module) not in self._done:
            self._done[id(module)] = self._rewrite(module, path)
        return self._done[id(module)]

    def _rewrite(self, module: nn.Module, path: str) -> nn.Module:
        if type(module).__module__.startswith(("torch.nn.modules", "pykernels.nn")) and not isinstance(
            module, nn.Sequential | nn.ModuleList | nn.ModuleDict
        ):
            return self._leaf(module, path)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return self._children(module, path)
        if has_hooks(module):
            self._leave(path, module, "has hooks, which a rewrite would lose; its children are rewritten one by one")
            return self._children(module, path)
        keep: set[str] = set()
        while True:
            try:
                graph = trace(module, keep)
                break
            except Untraceable as problem:
                self._leave(
                    _join(path, problem.path), module.get_submodule(problem.path), f"not traceable: {problem.reason}"
                )
                if problem.path in keep or problem.path == "":
                    return self._children(module, path)
                keep.add(problem.path)
        return self._graph(module, graph, path)

    def _children(self, module: nn.Module, path: str) -> nn.Module:
        for name, child in list(module.named_children()):
            replacement = self.rewrite(child, _join(path, name))
            if replacement is not child:
                setattr(module, name, replacement)
        return module

    def _leaf(self, module: nn.Module, path: str) -> nn.Module:
        why = _why_not(module)
        if type(module) is nn.Linear and why is None:
            self.report.replaced.append(Replaced((path,), "linear", _LINEAR))
            return stand_in(module, FusedLinear(module))
        ours = _OURS.get(type(module))
        if ours is not None and why is None:
            self.report.replaced.append(Replaced((path,), type(module).__name__, f"pk.nn.{ours.__name__}"))
            return stand_in(module, ours.from_torch(module))
        if type(module) is nn.BatchNorm2d and why is None:
            why = "no convolution stands before it"
        if type(module).__module__.startswith("pykernels.nn"):
            self._leave(path, module, "is pykernels' own already")
        elif isinstance(module, _FAMILY + _OTHERS):
            self._leave(path, module, why or "pykernels has no kernel for it")
        return module

    def _leave(self, path: str, module: nn.Module, why: str) -> None:
        self.report.left.append(Left(path or "the model", type(module).__name__, why))

    def _graph(self, root: nn.Module, graph: fx.Graph, path: str) -> nn.Module:
        reader = GraphReader(root, graph)
        placed: dict[str, Any] = {}
        taken: set[fx.Node] = set()
        for node in list(graph.nodes):
            if node in taken or (conv := reader.conv(node)) is None or _why_not(conv) is not None:
                continue
            chain = self._chain(reader, _Chain(node, conv, nodes=[node]), taken)
            taken.update(chain.nodes)
            self._fuse(graph, chain, placed, path)
        for node in list(graph.nodes):
            if (linear := reader.module(node, nn.Linear)) is not None and _why_not(linear) is None:
                self._fuse_linear(reader, node, linear, placed, path)
        may_change_layout = _may_change_layout(reader)
        for node in list(graph.nodes):
            if node.op == "call_module" and node.target not in placed:
                leaf = reader.modules[str(node.target)]
                replacement = self.rewrite(leaf, _join(path, str(node.target)))
                if replacement is not leaf:
                    node.target = _place(placed, str(node.target), replacement)
        if not placed:
            return root
        fused = [m for m in placed.values() if isinstance(m, FusedConv)]
        if fused and may_change_layout:
            _use_channels_last(graph, fused)
        for node in graph.nodes:
            if node.op == "call_module" and node.target not in placed:
                placed[node.target] = reader.modules[node.target]
            if node.op == "get_attr":
                placed[node.target] = reader.attribute(node)
        return Rewritten(fx.GraphModule(placed, graph, type(root).__name__), root)

    def _chain(self, reader: GraphReader, chain: _Chain, taken: set[fx.Node]) -> _Chain:
        """Takes the nodes after the convolution as long as one call can do them and nothing else sees their input."""
        current = chain.conv_node
        for following in _only_users(current):
            if following in taken or _writes_between(reader, chain, following):
                break
            first = following.args[0] if following.args else following.kwargs.get("input")
            if first is current and reader.passes(following):
                pass
            elif (
                first is current
                and chain.bn is None
                and not chain.adds
                and (bn := reader.batch_norm(following)) is not None
            ):
                if bn.num_features != chain.conv.out_channels:
                    break
                chain.bn = bn
            elif not chain.adds and isinstance(other := reader.added(following, current), fx.Node):
                chain.residual, chain.adds = other, True
            elif first is current and (activation := reader.activation(following)) is not None:
                chain.activation = activation
            else:
                break
            chain.nodes.append(following)
            current = following
            if chain.activation is not None:
                break
        return chain

    def _fuse(self, graph: fx.Graph, chain: _Chain, placed: dict[str, Any], path: str) -> None:
        activation = chain.activation or Activation("none")
        op = ConvBNAct2d.from_torch(chain.conv, chain.bn, activation.name, activation.negative_slope)
        plain = ConvBNAct2d.from_torch(chain.conv, chain.bn) if chain.adds else None
        name = _place(placed, _name_of(chain.conv_node), FusedConv(op, chain.adds, plain))
        inputs = chain.conv_node.args[:1] or (chain.conv_node.kwargs["input"],)
        last = chain.nodes[-1]
        with graph.inserting_before(last):
            call = graph.call_module(name, (*inputs, chain.residual) if chain.adds else inputs)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)
        where = tuple(_join(path, _name_of(n)) for n in chain.nodes)
        self.report.replaced.append(Replaced(where, chain.kinds(), "pk.ops.conv_bn_act"))

    def _fuse_linear(
        self, reader: GraphReader, node: fx.Node, linear: nn.Linear, placed: dict[str, Any], path: str
    ) -> None:
        """Puts a linear layer, with the activation that follows if nothing else reads in between, into one module."""
        following = next(_only_users(node), None)
        activation = None
        if following is not None and (following.args[:1] or (following.kwargs.get("input"),))[0] is node:
            activation = reader.activation(following)
        nodes = [node] if activation is None or following is None else [node, following]
        chosen = activation or Activation("none")
        where = tuple(_join(path, _name_of(n)) for n in nodes)
        node.target = _place(placed, _name_of(node), FusedLinear(linear, chosen.name, chosen.negative_slope))
        if len(nodes) == 2:
            nodes[1].replace_all_uses_with(node)
            reader.graph.erase_node(nodes[1])
        self.report.replaced.append(Replaced(where, "+".join(["linear", chosen.name][: len(nodes)]), _LINEAR))


def _why_not(module: nn.Module) -> str | None:
    """Why none of our modules can stand for this one."""
    if has_hooks(module):
        return "has hooks, which a replacement would lose"
    if type(module) not in _FAMILY:
        return None if not isinstance(module, _FAMILY) else "is a subclass, whose forward may be another"
    spec = LSTM_SPEC if isinstance(module, nn.LSTM) else CELL_SPEC if isinstance(module, nn.LSTMCell) else CONV_BN_ACT
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    why = _dispatch.why_no_kernels(spec, device)
    if why is not None:
        return f"is on {device.type!r}: {why}"
    taken = spec.takes(device.type)
    dtypes = {p.dtype for p in module.parameters()} - set(taken)
    if dtypes:
        names = [str(d).removeprefix("torch.") for d in taken]
        return f"is {'/'.join(str(d) for d in dtypes)}; the kernels take {', '.join(names[:-1])} and {names[-1]}"
    if isinstance(module, nn.Linear) and (device.type != "cpu" or module.weight.dtype != torch.float32):
        return "is not float32 on a CPU; torch's own is as fast"
    if isinstance(module, nn.LSTM) and module.proj_size:
        return "has projections (proj_size), which the kernels don't know"
    return None


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node


def _writes_between(reader: GraphReader, chain: _Chain, until: fx.Node) -> bool:
    """Does anything outside the chain write in place between its convolution and ``until``?

    The fused call stands where the chain ends, so a write in between could change what it reads.
    """
    node = chain.conv_node.next
    while node is not until:
        if node not in chain.nodes and changes_in_place(reader, node):
            return True
        node = node.next
    return False


#: What may stand in a graph whose tensors go from contiguous to channels_last: its values don't depend on strides.
_LAYOUT_FREE_METHODS = {
    "add", "chunk", "dim", "div", "flatten", "mean", "mul", "numel", "permute", "relu", "reshape", "sigmoid", "size",
    "softmax", "split", "squeeze", "sub", "sum", "tanh", "transpose", "unsqueeze", "view",
}  # fmt: skip
_LAYOUT_FREE_FUNCTIONS = {
    F.adaptive_avg_pool2d, F.avg_pool2d, F.dropout, F.gelu, F.hardswish, F.interpolate, F.leaky_relu, F.log_softmax,
    F.max_pool2d, F.pad, F.relu, F.sigmoid, F.silu, F.softmax, getattr, operator.add, operator.floordiv,
    operator.getitem, operator.mul, operator.sub, operator.truediv, torch.add, torch.cat, torch.flatten, torch.mul,
    torch.relu, torch.sigmoid, torch.softmax, torch.tanh,
}  # fmt: skip
_LAYOUT_FREE_MODULES = (
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.BatchNorm2d, nn.Conv2d, nn.ConvTranspose2d, nn.Dropout,
    nn.Dropout2d, nn.Flatten, nn.GELU, nn.GroupNorm, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Linear,
    nn.LSTM, nn.MaxPool2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Tanh, nn.Upsample, nn.ELU,
)  # fmt: skip


def _may_change_layout(reader: GraphReader) -> bool:
    """May tensors inside the graph be channels_last where they were contiguous?

    Only where everything in it is known not to care: a reshape that copies would lose an alias that is written to, and
    other code may look at strides. Activations in place are fine where what they overwrite is read by nothing else.
    """
    for node in reader.graph.nodes:
        if node.op == "call_module" and str(node.target) in reader.modules:
            module = reader.modules[str(node.target)]
            if type(module) not in _LAYOUT_FREE_MODULES and not type(module).__module__.startswith("pykernels.nn"):
                return False
        if node.op == "call_method" and node.target not in _LAYOUT_FREE_METHODS:
            return False
        if node.op == "call_method" and node.target == "view" and not _reshapes(node):
            return False
        if node.op == "call_function" and node.target not in _LAYOUT_FREE_FUNCTIONS:
            return False
        if changes_in_place(reader, node) and not _overwrites_its_own(reader, node):
            return False
    return True


def _reshapes(view: fx.Node) -> bool:
    """Is this ``x.view(sizes)``, and not the view as another dtype?"""
    return not view.kwargs and len(view.args) > 1 and not isinstance(view.args[1], torch.dtype)


def _overwrites_its_own(reader: GraphReader, node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    aliases = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
    return not isinstance(reader.modules.get(str(source.target)), aliases)


def _use_channels_last(graph: fx.Graph, fused: list[FusedConv]) -> None:
    for module in fused:
        module.channels_last = True
    placeholder = next((n for n in graph.nodes if n.op == "placeholder"), None)
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"
        if node.op == "output":
            value: Any = node.args[0]
            with graph.inserting_before(node):
                node.args = (fx.node.map_arg(value, lambda n: graph.call_function(like_input, (n, placeholder))),)


def _place(placed: dict[str, Any], path: str, module: nn.Module) -> str:
    """Notes ``module`` under a name of its own, like that of what it replaces, and returns it."""
    flat = "fused_" + path.replace(".", "_")
    name, count = flat, 1
    while name in placed:
        count += 1
        name = f"{flat}_{count}"
    placed[name] = module
    return name


def _name_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _join(path: str, name: str) -> str:
    return ".".join(p for p in (path, name) if p)
