"""The steps between layers: sums, batch norms, activations, means and gates on int8 numbers, and what turns float
tensors into such numbers and back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.nn.int8_conv import HOMOGENEOUS, Grid
from pykernels.ops._activation import activation_code, apply_activation
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.int8_pointwise.arguments import AddCall, AffineCall
from pykernels.optimize._activations import Act, activation_of
from pykernels.optimize._calls import OurCall
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, is_torchs
from pykernels.optimize._norms import is_norm
from pykernels.optimize._patterns import ADDS
from pykernels.optimize._pools import Pool, mean_of_map
from pykernels.optimize._squeeze import is_squeeze


class _Call(OurCall):
    """Runs ``op`` and its ``_out`` form on tensors, then ``rest``; ``numbers`` stand for ``rest`` in the latter."""

    def __init__(self, name: str, op: str, *rest: Any, numbers: Tensor | None = None) -> None:
        super().__init__(name, op, op, torch.empty(0) if numbers is None else numbers)
        self._op, self._out, self._rest = getattr(torch.ops.pykernels, op).default, self.into, rest
        if numbers is None:
            self.into = self._into

    def _into(self, *tensors: Any, out: Tensor) -> None:
        self._out(*tensors[:-1], *self._rest, out)

    def __call__(self, *tensors: Any) -> Any:
        """The result, in new memory."""
        return self._op(*tensors, *self._rest)

    def in_trace(self, *tensors: Any) -> Any:
        """The same."""
        return self(*tensors)


class Quantize(_Call):
    """Rounds a float tensor to a grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__("quantize", "int8_quantize", *grid)
        self.grid = grid
        #: Is the result to be in channels_last, whatever it is given?
        self.channels_last = False

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` on the grid, in new memory."""
        # Of one channel both formats are one, and the kernels go by that channel's stride.
        if not self.channels_last or (x.is_contiguous(memory_format=torch.channels_last) and x.stride(1) == 1):
            return self._op(x, *self._rest)
        y = torch.empty_like(x, dtype=torch.int8, memory_format=torch.channels_last)
        self._out(x, *self._rest, y)
        return y

    def in_trace(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The same by the op that has a fake."""
        return self._op(x, *self._rest)


def settle_roundings(graph: Graph) -> None:
    """Formats are decided: what is rounded for convolutions in channels_last alone is written so at once."""
    users = graph.users()
    for step in graph.steps:
        if isinstance(step.function, Quantize):
            readers = [s.function for s in users.get(step.outputs, ()) if s is not None]
            last = [isinstance(f, FusedConv) and f.rank == 4 and f.channels_last for f in readers]
            step.function.channels_last = bool(last) and all(last)


class Dequantize(_Call):
    """Makes float32 numbers of those of a grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__("dequantize", "int8_dequantize", *grid)
        self.grid = grid

    def __call__(self, q: Tensor) -> Tensor:
        """The numbers, in new memory."""
        return self._op(q, *self._rest, torch.float32)


class Sum(_Call):
    """The sum of two tensors, each on its own grid."""

    def __init__(self, a: Grid, b: Grid, out: Grid) -> None:
        call = AddCall(a.scale, b.scale, out.scale, a.zero_point, b.zero_point, out.zero_point)
        super().__init__("add", "int8_add", *call, numbers=torch.tensor(call, dtype=torch.float64))
        self.out = out

    def simulate(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum in float."""
        return a + b


class Affine(_Call):
    """A batch norm that no layer takes, with its activation, of tensors on their own grids that it joins."""

    def __init__(self, activation: str, slope: float, out: Grid) -> None:
        #: What its constants are multiplied by: `bind_affine` needs it.
        self.factor = 1 / out.scale if activation in HOMOGENEOUS else 1.0
        scale = 1.0 if activation in HOMOGENEOUS else out.scale
        call = AffineCall(scale, out.zero_point, activation_code("quantize", activation), slope)
        super().__init__("batch_norm", "int8_affine", *call, numbers=torch.tensor(call, dtype=torch.float64))
        self.out = out


def bind_affine(
    mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float, grids: Sequence[tuple[int, float, int]],
    factor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The scale and the shift of an `Affine`, whose ``grids`` are (channels, scale, zero point) of what it reads."""
    scale, shift = fold_batch_norm(None, mean, var, weight, bias, eps)
    assert scale is not None
    assert shift is not None
    steps, zeros = (torch.cat([torch.full((g[0],), float(g[i])) for g in grids]).double() for i in (1, 2))
    of_bytes = scale.double() * steps
    return (of_bytes * factor).float(), ((shift.double() - of_bytes * zeros) * factor).float()


class Lookup(_Call):
    """An activation, from a table of all 256 values."""

    def __init__(self, act: Act, x: Grid, out: Grid) -> None:
        self._act = act
        table = out.quantize(self.simulate(x.dequantize(torch.arange(-128, 128, dtype=torch.int8))))
        super().__init__(act.title(), "int8_lookup", table)
        self.out = out

    def simulate(self, x: Tensor) -> Tensor:
        """The activation in float."""
        act = self._act
        if act.constants:
            return act.in_place({})(x.clone())  # type: ignore[misc]
        return apply_activation(x, act.name, act.slope)


class Mean(_Call):
    """The mean of whole maps, in float."""

    def __init__(self, x: Grid, pool: Pool) -> None:
        super().__init__(pool.__name__, "int8_global_avg_pool2d", *x)
        self._keeps = pool.keeps

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1), or (N, C)."""
        y = self._op(x, *self._rest, False)
        return y.view(*y.shape, 1, 1) if self._keeps else y

    def simulate(self, x: Tensor) -> Tensor:
        """The mean in float."""
        return x.mean((2, 3), keepdim=self._keeps)


class Squeeze(_Call):
    """Squeeze-and-excitation of int8 maps."""

    def __init__(self, x: Grid, out: Grid, activation: int, gate: int) -> None:
        rest = x.scale, out.scale, x.zero_point, out.zero_point, activation, gate
        super().__init__("squeeze_excite", "int8_squeeze_excite", *rest)
        self.out, self.codes = out, (activation, gate)


def takes_sum(step: Step) -> bool:
    """Is it a sum of two tensors of one shape?"""
    if not is_torchs(step.function, *ADDS) or len(step.args) != 2 or step.kwargs or step.writes:
        return False
    a, b = step.args
    alike = isinstance(a, Value) and isinstance(b, Value) and a is not b and a.shape == b.shape == step.outputs.shape
    return alike and a.kind != "source" and b.kind != "source" and a.layout == b.layout


def operands(step: Step) -> list[Value]:
    """What a step between layers reads, without its constants."""
    if is_norm(step):
        return list(step.args[0])
    return [step.args[0]] if is_squeeze(step) else [v for v in step.reads() if v.kind != "source"]


def takes_norm(step: Step, norms: Mapping[Value, Step]) -> bool:
    """Is it a batch norm by itself, with an activation whose bits are alike on every ISA? ``norms`` make constants."""
    made = norms.get(step.args[1]) if is_norm(step) and step.args[2] is None else None
    if made is None or len(step.outputs.shape) != 4:
        return False
    activation, _, constants, slopes = made.args[6:]
    return activation in _PIECEWISE_LINEAR and not constants and slopes is None


def lookup_of(step: Step) -> Act | None:
    """The activation that it applies to its one tensor."""
    act = activation_of(step) if step.kind == "call" and not step.writes else None
    if act is None or act.slopes is not None or len(list(step.reads())) != 1:
        return None
    return act if act.name in _KNOWN or act.constants else None


def mean_at(step: Step) -> Pool | None:
    """The mean of whole maps that it takes."""
    found = mean_of_map(step) if step.kind == "call" and not step.writes else None
    return None if found is None or not isinstance(found[1], Value) or len(found[1].shape) != 4 else found[0]


def squeeze_at(step: Step, folded: Collection[Value]) -> bool:
    """Is it squeeze-and-excitation with weights of the model, or with copies of them, which are ``folded``?"""
    return is_squeeze(step) and all(v.kind == "source" or v in folded for v in list(step.reads())[1:])


_PIECEWISE_LINEAR = (*HOMOGENEOUS, "relu6")
_KNOWN = frozenset(
    ("relu", "sigmoid", "tanh", "silu", "hardswish", "relu6", "hardsigmoid", "mish", "leaky_relu", "elu", "softplus",
     "gelu", "gelu_tanh")
)  # fmt: skip
