"""`lstm` and `lstm_cell` as citizens of PyTorch: opcheck, compile, export, autocast, meta tensors, transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.library import opcheck

import pykernels as pk
from pykernels.ops.lstm.spec import bound
from tests.harness import assert_one_graph, native, relative_l2
from tests.ops.lstm.checks import assert_equal, cell_problem, flat, leaves, problem, run, run_cell

pytestmark = native

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True}, id="deep"),
    pytest.param({"batch_sizes": [2, 2, 1], "bias": False, "bidirectional": True}, id="packed"),
]


def native_arguments(options: dict[str, Any], grad: bool) -> tuple[Any, ...]:
    args, named = problem(3, 2, 5, 6, **options)
    x, h, c, *weights = leaves(args, grad=grad)
    flags = named["num_layers"], named["bidirectional"], named["batch_first"], options.get("bias", True)
    return x, h, c, weights, named.get("batch_sizes"), *flags, grad


def cell_arguments(grad: bool) -> list[torch.Tensor]:
    return leaves(cell_problem(2, 5, 6), grad=grad)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck(options, grad):
    opcheck(torch.ops.pykernels.lstm.default, native_arguments(options, grad))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_the_cell(grad):
    opcheck(torch.ops.pykernels.lstm_cell.default, (*cell_arguments(grad), grad))


def test_opcheck_of_the_packed_ops():
    (x, (h, c), weights), _ = problem(3, 2, 5, 6)
    opcheck(torch.ops.pykernels.lstm_pack.default, (weights, 1, False, True))
    packed = torch.ops.pykernels.lstm_pack(weights, 1, False, True)
    opcheck(torch.ops.pykernels.lstm_packed.default, (x, h, c, packed, 5, 6, None, 1, False, False))
    opcheck(torch.ops.pykernels.lstm_cell_packed.default, (x[0], h[0], c[0], packed, 5, 6))


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_of_the_backward(options):
    x, h, c, weights, sizes, *flags, _ = native_arguments(options, False)
    output, h_n, _, reserve = torch.ops.pykernels.lstm(x, h, c, weights, sizes, *flags, True)
    arguments = (torch.ones_like(output), torch.ones_like(h_n), None, x, h, c, weights, sizes, output, reserve, *flags)
    opcheck(torch.ops.pykernels.lstm_backward.default, arguments)


def test_opcheck_of_the_cells_backward():
    x, h, c, w_ih, w_hh, b_ih, b_hh = cell_arguments(False)
    h_out, _, reserve = torch.ops.pykernels.lstm_cell(x, h, c, w_ih, w_hh, b_ih, b_hh, True)
    for has_bias in (True, False):
        opcheck(
            torch.ops.pykernels.lstm_cell_backward.default,
            (torch.ones_like(h_out), None, x, h, c, w_ih, w_hh, reserve, has_bias),
        )


def assert_compiles(function: Any, inputs: list[torch.Tensor], backend: str) -> None:
    """In one graph forward and backward, with the bits of the plain call."""
    torch._dynamo.reset()
    found = []
    for f in (function, torch.compile(function, fullgraph=True, backend=backend)):
        outputs = f(*inputs)
        found.append([*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs)])
    assert_equal(*found)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", OPTIONS)
def test_compiles_in_one_graph_forward_and_backward(options, backend):
    args, named = problem(3, 2, 5, 6, **options)
    assert_compiles(lambda *inputs: run(inputs, named, "auto"), leaves(args), backend)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_cell_compiles_in_one_graph(backend):
    assert_compiles(lambda *inputs: run_cell(inputs, "auto"), cell_arguments(True), backend)


def test_a_new_batch_size_does_not_recompile():
    shapes = ((2, 3), (5, 3), (9, 7))
    calls = [(x, *hx, w) for (x, hx, w), _ in (problem(time, batch, 5, 6) for batch, time in shapes)]
    assert_one_graph(lambda x, h, c, w: pk.ops.lstm(x, (h, c), w), calls, "eager")


def test_dropout_compiles():
    torch._dynamo.reset()
    args, named = problem(3, 2, 5, 6, num_layers=2)
    compiled = torch.compile(
        lambda *a: pk.ops.lstm(*a, **named, dropout=0.5, training=True)[0], fullgraph=True, backend="aot_eager"
    )
    first, second = compiled(*args), compiled(*args)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("device_dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_and_gradients_come_back_wide(device_dtype):
    args, named = problem(3, 2, 5, 6, num_layers=2)
    inputs = leaves(args)
    with torch.autocast("cpu", dtype=device_dtype):
        output, h_n, _ = run(inputs, named, "auto")
    assert output.dtype == h_n.dtype == device_dtype
    assert torch.equal(output, run(leaves(args, device_dtype, grad=False), named, "auto")[0])
    output.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in inputs)


def test_autocast_of_the_native_ops_called_directly():
    (x, (h, c), weights), _ = problem(3, 2, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = torch.ops.pykernels.lstm(x, h, c, weights, None, 1, False, False, True, False)[0]
        h_out = torch.ops.pykernels.lstm_cell(x[0], h[0], c[0], *weights, False)[0]
    assert output.dtype == h_out.dtype == torch.bfloat16


def test_autocast_of_the_cell_and_of_float64():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run_cell(cell_arguments(False), "auto")[0].dtype == torch.bfloat16
        assert run_cell(leaves(cell_problem(2, 5, 6), torch.float64), "auto")[0].dtype == torch.float64


def test_autocast_compiles():
    torch._dynamo.reset()
    (x, hx, weights), _ = problem(3, 2, 5, 6)

    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pk.ops.lstm(x, hx, weights)[0]

    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_meta_tensors(options):
    args, named = problem(3, 2, 5, 6, **options)
    got = run(leaves(args, device="meta"), named, "auto")
    expected = flat(pk.ops.lstm(*args, **named))
    assert [(g.shape, g.dtype) for g in got] == [(e.shape, e.dtype) for e in expected]


def test_vmap_over_the_batch():
    args, named = problem(3, 4, 5, 6)
    x, (h, c), weights = args
    together = pk.ops.lstm(x, (h, c), weights)[0]
    each = torch.vmap(lambda x, h, c: pk.ops.lstm(x, (h, c), weights)[0], in_dims=1, out_dims=1)(x, h, c)
    assert relative_l2(each, together) <= 2 * bound(args, named)


def test_functional_gradients():
    args, named = problem(3, 4, 5, 6)
    x, (h, c), weights = args
    got = torch.func.grad(lambda w: pk.ops.lstm(x, (h, c), [weights[0], w, *weights[2:]])[0].square().sum())(weights[1])
    own = weights[1].clone().requires_grad_()
    loss = pk.ops.lstm(x, (h, c), [weights[0], own, *weights[2:]])[0].square().sum()
    assert relative_l2(got, torch.autograd.grad(loss, own)[0]) <= 2 * bound(args, named, gradients=True)
