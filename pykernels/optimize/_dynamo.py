"""`torch.compile(model, backend="pykernels")`: the second way to a program, for models that Dynamo follows.

Dynamo brings a graph and its guards. Here the graph becomes steps, and those become a program, as a recording does.
Dynamo says which inputs are weights. A program is for one set of weights and watches them; it takes the other inputs at
each call, and sizes with them where these are dynamic. Where someone wants gradients, or observes the call, the graph
runs as it is.
"""

from __future__ import annotations

import builtins
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pykernels.nn._packed import asked_backend, undisturbed
from pykernels.optimize import _compile, _kinds
from pykernels.optimize._aten import torchs
from pykernels.optimize._graph import OF_STEPS, Graph, Step, Value, storage_of, values_in
from pykernels.optimize._int8_tensors import dequantize_rows, parts_of_call, rows_of
from pykernels.optimize._ops import pack_ops
from pykernels.optimize._program import Program
from pykernels.optimize._watch import Watch

_MOST_PROGRAMS = 64
_autocast = torch._C._is_any_autocast_enabled
_function_modes = torch._C._len_torch_function_stack
#: Asserts of what Dynamo's guards have seen to.
_CHECKS = frozenset(("_check", "_check_is_size", "_check_value", "_check_type"))
_NUMBERS = (bool, int, float)
_PLAIN = (Tensor, nn.Parameter)
_NOTHING = torch.empty(0)


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: Any = None
) -> Callable[..., Any]:
    """Dynamo's backend ``"pykernels"``: from a graph to what runs it.

    Raises:
        ValueError: ``mode`` or ``options`` are given: they are Inductor's.

    >>> fast = torch.compile(model, backend="pykernels")
    """
    if mode not in (None, "default") or options:
        raise ValueError(f"pykernels backend: mode, options: expected none, got {mode!r} and {options!r}")
    return _Compiled(gm)


class _Size(int):
    """A size as an input of a program, which asks its inputs for their shapes."""

    @property
    def shape(self) -> int:
        """Itself."""
        return int(self)


class _Compiled:
    """Runs one graph of Dynamo's: by a program for each set of weights, or as it is."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        tensors = [n.meta.get("tensor_dict") or {} for n in placeholders]
        #: Which of the arguments are parameters, buffers, and tensors that are attributes.
        self.weights = [i for i, kept in enumerate(tensors) if kept.get("_dynamo_static_input_type")]
        self.programs: dict[tuple[int, ...], tuple[Program, list[int], bool] | None] = {}
        self.lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The graph's outputs."""
        if not undisturbed() or _function_modes() or _autocast() or asked_backend() != "auto":
            return self.gm.forward(*args)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return self.gm.forward(*args)
        weights = self.weights
        key = tuple([id(args[i]) for i in weights])
        found = self.programs.get(key, self)
        if found is self:
            return self._record(weights, key, args)
        if found is None:
            return self.gm.forward(*args)
        program, inputs, has_sizes = found  # type: ignore[misc]
        given: list[Any] = [_Size(a) if type(a) is int else a for a in (args[i] for i in inputs)]
        try:
            result = program(given)
        except OF_STEPS:
            if not program.again:
                raise
            # Torch reports in its own words what is wrong. If nothing is, the program was not for these inputs.
            result = self.gm.forward(*args)
            with self.lock:
                self.programs[key] = None
            return result
        return tuple([int(x) if type(x) is _Size else x for x in result]) if has_sizes else result

    def _record(self, weights: list[int], key: tuple[int, ...], args: tuple[Any, ...]) -> Any:
        recording = _Recording(self.gm, args, set(weights))
        result = recording.run()
        with self.lock:
            if len(self.programs) >= _MOST_PROGRAMS:
                self._make_room(args)
            if weights is self.weights:
                self.programs[key] = recording.program()
        return result

    def _make_room(self, args: tuple[Any, ...]) -> None:
        """Tensors on modules that are others at every call, such as a state, are inputs from now on."""
        fixed = [
            i
            for i, ids in zip(self.weights, zip(*self.programs, strict=True), strict=True)
            if isinstance(args[i], nn.Parameter) or len(set(ids)) < _MOST_PROGRAMS // 2
        ]
        if len(fixed) == len(self.weights):  # so many models with this code
            del self.programs[next(iter(self.programs))]
        else:
            self.weights, self.programs = fixed, {}


class _Recording:
    """Runs a graph once, for real, node by node, and writes down what each did to what."""

    def __init__(self, gm: fx.GraphModule, args: tuple[Any, ...], weights: set[int]) -> None:
        self.gm, self.args, self.weights = gm, args, weights
        self.watch = Watch()
        self.real: dict[fx.Node, Any] = {}
        self.nests: dict[fx.Node, Any] = {}
        self.values: list[Value] = []
        self.alive: list[Tensor] = []  # parallel to values: no storage is used twice while recording
        self.placeholders: list[Value | None] = []
        self.steps: list[Step] = []
        self.input_storages: set[int] = set()
        self.refused = False

    def run(self) -> Any:
        """The graph's own result."""
        for node in self.gm.graph.nodes:
            if node.op == "output":
                self.nests[node] = _filled(node.args[0], self.nests.__getitem__)
                return _filled(node.args[0], self.real.__getitem__)
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                self._attribute(node)
            else:
                self._call(node)
        raise AssertionError("a graph without an output")

    def program(self) -> tuple[Program, list[int], bool] | None:
        """With the positions of its inputs among the graph's, and whether a size may be among its outputs."""
        if self.refused:
            return None
        result = next(iter(reversed(self.nests.values())))
        given = [(i, v) for i, v in enumerate(self.placeholders) if v is not None and v.kind == "input"]
        graph = Graph([v for _, v in given], self.steps, tuple(result))
        pack_ops(graph, lambda t: self._new(t, "source"), self._number)
        recorder: Any = self
        program = _compile.compiled(graph, recorder, {})
        if not program.again and any(type(self.args[i]) is int for i, _ in given):
            return None  # another size may want other steps; half-way is too late to see that
        numbers = any(v.kind == "input" and type(self.args[i]) is int for i, v in given if v in set(values_in(result)))
        return program, [i for i, _ in given], numbers

    def _placeholder(self, node: fx.Node) -> None:
        i = len(self.placeholders)
        x = self.real[node] = self.args[i]
        value = None
        if isinstance(x, Tensor):
            is_weight = i in self.weights and type(x) in _PLAIN and not x.is_inference()
            value = self._new(x, "source" if is_weight else "input")
        elif type(x) is int:
            value = self._number("input")
        else:
            self.refused = True
        self.nests[node] = value
        self.placeholders.append(value)

    def _attribute(self, node: fx.Node) -> None:
        x = self.real[node] = operator.attrgetter(str(node.target))(self.gm)
        self.nests[node] = self._new(x, "source") if isinstance(x, Tensor) else x

    def _new(self, t: Tensor, kind: str) -> Value:
        value = Value(len(self.values), kind, t)
        if kind == "input":
            self.input_storages.add(storage_of(t))
        elif value.storage in self.input_storages:
            value.storage = -1
        self.values.append(value)
        self.alive.append(t)
        return value

    def _number(self, kind: str) -> Value:
        value = Value(len(self.values), kind, torch.empty(0, dtype=torch.int64))
        value.storage = -2 - value.index  # in no memory
        self.values.append(value)
        self.alive.append(_NOTHING)
        return value

    def _call(self, node: fx.Node) -> None:
        args, kwargs = (_filled(x, self.real.__getitem__) for x in (node.args, node.kwargs))
        given, named = (_filled(x, self.nests.__getitem__) for x in (node.args, node.kwargs))
        function = _function(self.gm, node, args)
        if function is operator.getitem and type(given[0]) is tuple:  # one of several results
            self.real[node], self.nests[node] = args[0][args[1]], given[0][args[1]]
            return
        target = function
        function, args, kwargs = torchs(target, args, kwargs)
        _, given, named = torchs(target, given, named)
        parts = parts_of_call(function, args, kwargs)
        if parts is not None:
            given = self._of_parts(given, args, parts)
        name = _kinds.name_of(function)
        step = Step(function, given, named, None)
        reads = list(dict.fromkeys(step.reads()))
        versions = [_version(self.alive[v.index]) for v in reads]
        result = self.real[node] = function(*args, **kwargs)
        if name in _CHECKS or (not node.users and type(result) in _NUMBERS):
            self.nests[node] = None
            return
        written = _kinds.written_by_name(function, name, given, named)
        written |= {v for v, then in zip(reads, versions, strict=True) if _version(self.alive[v.index]) != then}
        nothing = result is None and not any(v.storage > -2 for v in reads)
        self.refused |= nothing or not _can_be_step(node, function, name)
        for v in written:
            self._becomes_input(v)
        step.writes = tuple(v for v in reads if v in written)
        passed = [v for v in reads if result is self.alive[v.index]]
        if passed and not written and name in _kinds.PASSES:
            self.nests[node] = passed[0]
            return
        step.outputs = self.nests[node] = self._outputs(result)
        self.steps.append(step)

    def _of_parts(self, given: Any, args: tuple[Any, ...], parts: tuple[Tensor, Tensor]) -> Any:
        """The arguments of a linear layer whose weight is of such parts, with plain tensors, which steps make first."""
        q, scale = (self._new(t, "source") for t in parts)
        rows = rows_of(args[1])
        x, weight = self._new(rows(args[0]), "step"), self._new(dequantize_rows(*parts), "step")
        self.steps += [Step(rows, given[:1], {}, x), Step(dequantize_rows, (q, scale), {}, weight)]
        return (x, weight, *given[2:])

    def _becomes_input(self, written: Value) -> None:
        """A buffer that the graph writes to is not a weight."""
        same = [v for v in self.values if v.storage == written.storage] if written.storage != -1 else []
        if not any(v.kind == "source" for v in same):
            return
        self.refused |= any(v.kind == "source" and v not in self.placeholders for v in same)
        self.input_storages.add(written.storage)
        for v in same:
            v.storage, v.tensor = -1, None
            v.kind = "input" if v.kind == "source" else v.kind

    def _outputs(self, result: Any) -> Any:
        if type(result) in _PLAIN:
            return self._new(result, "step")
        if type(result) in _NUMBERS:
            return self._number("step")
        if isinstance(result, tuple | list):
            return tuple([self._outputs(x) for x in result])
        self.refused |= result is not None
        return None


def _filled(nest: Any, leaf: Callable[[fx.Node], Any]) -> Any:
    """Arguments of a node with ``leaf`` of each node, in Python's own containers."""
    if isinstance(nest, fx.Node):
        return leaf(nest)
    if isinstance(nest, tuple) and type(nest) is not torch.Size:
        items = [_filled(x, leaf) for x in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else tuple(items)
    if isinstance(nest, list):
        return [_filled(x, leaf) for x in nest]
    if isinstance(nest, dict):
        return {k: _filled(v, leaf) for k, v in nest.items()}
    if isinstance(nest, slice):
        return slice(_filled(nest.start, leaf), _filled(nest.stop, leaf), _filled(nest.step, leaf))
    return nest


def _function(gm: fx.GraphModule, node: fx.Node, args: tuple[Any, ...]) -> Any:
    """What a node calls: a tensor's method where it is an operator of Python's, as in a recording."""
    target: Any = node.target
    of_tensor = bool(args) and isinstance(args[0], Tensor)
    if node.op == "call_module":
        return gm.get_submodule(target)
    if node.op == "call_method":
        return getattr(torch.Tensor if of_tensor else type(args[0]), target)
    name = str(getattr(target, "__name__", ""))
    if of_tensor and getattr(operator, name, None) is target:
        return getattr(torch.Tensor, f"__{name.strip('_')}__", target)
    return target


def _can_be_step(node: fx.Node, target: Any, name: str) -> bool:
    if name == "item":  # a number that Dynamo knows to be one that changes
        return True
    if node.op == "call_module" or _kinds.is_refused(name):
        return False
    if target is builtins.getattr and node.args[1] in ("data", "grad", "grad_fn"):
        return False
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable
    return not isinstance(target, torch._ops.HigherOrderOperator) or target is torch.ops.higher_order.cond


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _is_ours(backend: Any) -> bool:
    while backend is not None and backend is not compile_graph:
        backend = getattr(backend, "_torchdynamo_orig_backend", None) or getattr(backend, "compiler_fn", None)
    return backend is compile_graph


def _settle_traces() -> None:
    """Two of Dynamo's switches, for the graphs of this backend only.

    It follows torch's LSTM, GRU and RNN (for other backends it stops there), and the numbers of torch's own modules,
    such as the ``eps`` of batch norm, are constants even where sizes are dynamic. A backend cannot set these switches
    while Dynamo traces, so they are set where Dynamo asks for them.
    """
    try:
        from torch._dynamo import config
        from torch._dynamo.variables.builder import VariableBuilder

        by_type = VariableBuilder._type_dispatch()
    except (ImportError, AttributeError):  # another Dynamo: then the graph breaks there
        return

    def rnn(builder: Any, module: nn.Module) -> Any:
        if not _is_ours(builder.tx.output.compiler_fn):
            return builder.wrap_module(module)
        with config.patch(allow_rnn=True):
            return builder.wrap_module(module)

    plain_number = by_type.get(float, VariableBuilder.wrap_literal)

    def number(builder: Any, value: float) -> Any:
        of_torch = builder.source is not None and builder.source.guard_source.is_unspecialized_builtin_nn_module()
        if not of_torch or not _is_ours(builder.tx.output.compiler_fn):
            return plain_number(builder, value)
        with config.patch(specialize_float=True):
            return plain_number(builder, value)

    by_type.update({nn.LSTM: rnn, nn.GRU: rnn, nn.RNN: rnn, float: number})


_settle_traces()
