"""Gradients of the CPU kernels of `lstm` and `lstm_cell` against the float64 reference's."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk
from pykernels.ops.lstm.spec import bound
from tests.harness import forced_isa, host_isas, native, relative_l2
from tests.ops.lstm.checks import (
    assert_close,
    cell_problem,
    check_gradients,
    check_second_gradients,
    gradients,
    leaves,
    problem,
    run,
)

pytestmark = native

GRADIENTS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True}, id="deep"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_sizes": [5, 4, 4, 2, 1, 1]}, id="packed"),
    pytest.param({"batch_sizes": [5, 5, 3], "bias": False}, id="packed-no-bias"),
]


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("options", GRADIENTS)
def test_native_gradients(options, dtype, isa):
    with forced_isa(isa):
        check_gradients(*problem(6, 5, 13, 21, **options, dtype=dtype), "cpu")


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_native_gradients_of_some_outputs(used):
    check_gradients(*problem(6, 5, 13, 21, num_layers=2, bidirectional=True), "cpu", used=used)


@pytest.mark.parametrize("shape", ["expanded", "transposed"])
def test_native_gradients_of_strange_output_gradients(shape):
    args, named = problem(6, 5, 13, 21)
    up = torch.ones(()).expand(6, 5, 21) if shape == "expanded" else torch.randn(21, 5, 6).transpose(0, 2)
    found = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        inputs = leaves(args, dtype)
        found.append(torch.autograd.grad(run(inputs, named, backend)[0], inputs, up.to(dtype)))
    assert_close(*found, bound(args, named, gradients=True), torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("batch", [1, 7])
def test_native_gradients_of_the_cell(bias, used, batch):
    check_gradients(cell_problem(batch, 13, 21, bias=bias), {}, "cpu", cell=True, used=used)


def test_gradients_only_where_wanted():
    (x, (h0, c0), weights), _ = problem(4, 3, 5, 6)
    weights[1].requires_grad_()
    output, _ = pk.ops.lstm(x, (h0, c0), weights, backend="cpu")
    output.sum().backward()
    assert weights[1].grad is not None
    assert all(t.grad is None for t in (x, h0, c0, weights[0]))
    assert not pk.ops.lstm(x, (h0, c0), [w.detach() for w in weights], backend="cpu")[0].requires_grad


def test_gradients_of_an_empty_batch():
    args, named = problem(4, 0, 5, 6)
    inputs = leaves(args)
    x, *_, w_ih, _, _, b_hh = gradients(run(inputs, named, "cpu"), inputs)
    assert x.shape == (4, 0, 5)
    assert not w_ih.any()
    assert not b_hh.any()


@pytest.mark.parametrize("options", GRADIENTS)
def test_second_gradients(options):
    check_second_gradients(*problem(3, 5, 4, 6, **options), "cpu")


def test_create_graph_counts_shared_inputs_once():
    """h0 computed from x: the graph of the gradient of x must not run on through h0's history."""
    args, named = problem(3, 2, 6, 6)
    x, _, weights = args

    def first(dtype: torch.dtype, backend: str, create_graph: bool) -> torch.Tensor:
        own = x.to(dtype).requires_grad_()
        h0 = (own[:1] * 2).contiguous()
        output, _ = pk.ops.lstm(own, (h0, h0), [w.to(dtype) for w in weights], backend=backend)
        return torch.autograd.grad(output.square().sum(), own, create_graph=create_graph)[0]

    exact = first(torch.float64, "reference", False)
    for create_graph in (False, True):
        assert relative_l2(first(torch.float32, "cpu", create_graph), exact) <= bound(args, named, gradients=True)


def test_gradient_without_a_reserve():
    """torch.ops called directly with save=False: the backward recomputes."""
    args, named = problem(4, 3, 5, 6)
    inputs = leaves(args)
    found = [
        torch.autograd.grad(
            torch.ops.pykernels.lstm(*inputs[:3], inputs[3:], None, 1, False, False, True, save)[0].sum(), inputs
        )
        for save in (False, True)
    ]
    assert_close(*found, 2 * bound(args, named, gradients=True), torch.float32)
