"""What the LSTM's tests share: problems, calls, gradients, bounds, and the equations written out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import pykernels as pk
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import bound, flat_weights
from tests.harness import native, relative_l2, tensors_of, to_double

BACKENDS = ["reference", pytest.param("cpu", marks=native)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(
    time: int,
    batch: int,
    width: int,
    hidden: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    bias: bool = True,
    batch_sizes: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Call:
    """(x, (h0, c0), weights), and the options of `pk.ops.lstm`."""
    g, directions = generator(), 2 if bidirectional else 1
    shape = (batch, time, width) if batch_first else (time, batch, width)
    if batch_sizes is not None:
        shape = (sum(batch_sizes), width)
    x = torch.randn(shape, generator=g).to(dtype)
    h0, c0 = (torch.randn(num_layers * directions, batch, hidden, generator=g).to(dtype) for _ in range(2))
    weights = flat_weights(width, hidden, num_layers, directions, bias, dtype, g)
    options: dict[str, Any] = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    if batch_sizes is not None:
        options["batch_sizes"] = torch.tensor(batch_sizes)
    return (x, (h0, c0), weights), options


def cell_problem(batch: int, width: int, hidden: int, **options: Any) -> tuple[Any, ...]:
    """(x, (h, c), weights) of `pk.ops.lstm_cell`."""
    (x, (h0, c0), weights), _ = problem(1, batch, width, hidden, **options)
    return x[0], (h0[0], c0[0]), weights


def flat(result: tuple[Tensor, tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


def leaves(
    args: tuple[Any, ...], dtype: torch.dtype | None = None, device: str = "cpu", grad: bool = True
) -> list[Tensor]:
    """x, h0, c0 and the weights, copied."""
    return [t.detach().to(device, dtype or t.dtype).clone().requires_grad_(grad) for t in tensors_of(args)]


def run(inputs: Sequence[Tensor], named: dict[str, Any], backend: str, **options: Any) -> list[Tensor]:
    """output, h_n and c_n from what `leaves` returns."""
    x, h0, c0, *weights = inputs
    return flat(pk.ops.lstm(x, (h0, c0), weights, **named, **options, backend=backend))


def run_cell(inputs: Sequence[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    x, h, c, *weights = inputs
    return pk.ops.lstm_cell(x, (h, c), *weights, backend=backend)


def output_gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Random ones, the same for every dtype and device."""
    g = generator(7)
    return [torch.randn(o.shape, generator=g).to(o.device, o.dtype) for o in outputs]


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], used: Sequence[int] | None = None) -> Any:
    """The gradients of the inputs, from random ones of the outputs that are used."""
    used, ups = range(len(outputs)) if used is None else used, output_gradients(outputs)
    return torch.autograd.grad([outputs[i] for i in used], inputs, [ups[i] for i in used], allow_unused=True)


def assert_close(
    got: Sequence[Tensor], expected: Sequence[Tensor], allowed: float, dtype: torch.dtype | None = None
) -> None:
    """Shapes, dtype (that of ``expected`` unless given) and relative L2 error."""
    for g, e in zip(got, expected, strict=True):
        assert (g.shape, g.dtype) == (e.shape, dtype or e.dtype)
        # A state that is all but zero may come out flushed to zero.
        error = relative_l2(g.detach().cpu(), e.detach().cpu())
        assert error <= allowed or (g.double() - e).abs().max() <= torch.finfo(torch.float32).tiny


def check_forward(args: tuple[Any, ...], named: dict[str, Any], got: Sequence[Tensor] | None = None) -> None:
    """``got``, or what the CPU kernels compute, against the float64 reference."""
    got = flat(pk.ops.lstm(*args, **named, backend="cpu")) if got is None else got
    assert_close(got, flat(reference.lstm(*to_double(args), **named)), bound(args, named), args[0].dtype)


def check_gradients(
    args: tuple[Any, ...],
    named: dict[str, Any],
    backend: str,
    *,
    device: str = "cpu",
    cell: bool = False,
    used: Sequence[int] | None = None,
) -> Any:
    """The backend's gradients against the float64 reference's; returns them."""
    found = []
    for dtype, where in ((args[0].dtype, backend), (torch.float64, "reference")):
        inputs = leaves(args, dtype, device)
        outputs = run_cell(inputs, where) if cell else run(inputs, named, where)
        found.append(gradients(outputs, inputs, used))
    assert_close(*found, bound(args, named, gradients=True), args[0].dtype)
    return found[0]


def check_second_gradients(args: tuple[Any, ...], named: dict[str, Any], backend: str, device: str = "cpu") -> None:
    """In float32, against the float64 reference's."""
    found = []
    for dtype, where in ((torch.float32, backend), (torch.float64, "reference")):
        inputs = leaves(args, dtype, device)
        loss = sum(o.square().sum() for o in run(inputs, named, where))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(f.square().sum() for f in first), inputs))
    assert_close(*found, 4 * bound(args, named, gradients=True), torch.float32)  # two sweeps more, there and back


def assert_equal(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """To the bit."""
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def strided(t: Tensor, how: str) -> Tensor:
    """The same values with other strides."""
    if how == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "gaps":
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if how == "rows":
        wide = t.new_full((2 * t.shape[0], *t.shape[1:]), float("nan"))
        wide[::2] = t
        return wide[::2]
    return t


class Direction(NamedTuple):
    """One direction of a layer, in float64."""

    gates: Tensor  # (rows, 4, H)
    c: Tensor  # (rows, H)
    output: Tensor  # (rows, H)
    terms: Tensor  # (rows, H): |output| if nothing cancelled
    last_terms: tuple[Tensor, Tensor]  # (B, H): the same of h_n and c_n


def direction(
    rows: Tensor, row_terms: Tensor, sizes: list[int], h: Tensor, c: Tensor, weights: list[Tensor], reverse: bool
) -> Direction:
    """The equations, and beside them the same with every term of a sum absolute: what errors are relative to."""
    starts, steps = [0, *accumulate(sizes)], range(len(sizes))
    gates = rows.new_empty(rows.shape[0], 4, h.shape[-1])
    states, outputs, terms = (rows.new_empty(rows.shape[0], h.shape[-1]) for _ in range(3))
    w_ih, w_hh, *biases = weights
    c_terms, h_terms = c.abs(), h.abs()
    for t in reversed(steps) if reverse else steps:
        own, b = slice(starts[t], starts[t + 1]), sizes[t]
        sums = rows[own] @ w_ih.t() + h[:b] @ w_hh.t() + sum(biases)
        i, f, g, o = sums.chunk(4, dim=-1)
        gates[own] = torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], dim=1)
        i, f, g, o = gates[own].unbind(1)
        states[own] = f * c[:b] + i * g
        outputs[own] = o * states[own].tanh()
        g_terms = row_terms[own] @ w_ih.abs().t() + h_terms[:b] @ w_hh.abs().t() + sum(x.abs() for x in biases)
        g_terms = g_terms.chunk(4, dim=-1)[2].tanh()
        c_terms = torch.cat([f * c_terms[:b] + i * g_terms, c_terms[b:]])
        terms[own] = o * c_terms[:b]
        h_terms = torch.cat([terms[own], h_terms[b:]])
        h, c = torch.cat([outputs[own], h[b:]]), torch.cat([states[own], c[b:]])
    return Direction(gates, states, outputs, terms, (h_terms, c_terms))


def by_hand(args: tuple[Any, ...], named: dict[str, Any]) -> list[list[Direction]]:
    """Every layer's directions."""
    x, (h0, c0), weights = to_double(args)
    directions, each = 2 if named["bidirectional"] else 1, len(weights) // h0.shape[0]
    packed = named.get("batch_sizes")
    steps = x.transpose(0, 1) if named["batch_first"] and packed is None else x
    sizes = [h0.shape[1]] * steps.shape[0] if packed is None else packed.tolist()
    rows = steps.reshape(sum(sizes), x.shape[-1])
    terms, layers = rows.abs(), []
    for at in range(0, h0.shape[0], directions):
        layers.append(
            [
                direction(rows, terms, sizes, h0[a], c0[a], weights[a * each : (a + 1) * each], a > at)
                for a in range(at, at + directions)
            ]
        )
        rows, terms = (torch.cat(t, dim=-1) for t in zip(*((d.output, d.terms) for d in layers[-1]), strict=True))
    return layers


def reserve_of(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What the forward keeps (pykernels/ops/lstm/triton/layout.py), from the equations."""
    layers = by_hand(args, named)
    cells = [t.flatten() for layer in layers for d in layer for t in (d.gates, d.c)]
    between = [torch.cat([d.output for d in layer], dim=-1).flatten() for layer in layers[:-1]]
    return torch.cat(cells + between).to(args[0].dtype)


def assert_near(got: Sequence[Tensor], args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """output, h_n and c_n within rounding of the terms that they are the sum of.

    `bound` is relative to the results. A few numbers, or one, may be the small rest of terms that cancel: f c + i g,
    or the products inside g. Rounding is relative to those.
    """
    layers = by_hand(args, named)
    last = [[d.last_terms[i] for layer in layers for d in layer] for i in range(2)]
    terms = [torch.cat([d.terms for d in layers[-1]], dim=-1), *(torch.stack(t) for t in last)]
    tiny = torch.finfo(torch.float32).tiny
    for g, e, t in zip(got, flat(reference.lstm(*to_double(args), **named)), terms, strict=True):
        assert (g.shape, g.dtype) == (e.shape, args[0].dtype)
        assert (g.double() - e).norm() <= bound(args, named) * t.norm() + tiny * t.numel() ** 0.5
