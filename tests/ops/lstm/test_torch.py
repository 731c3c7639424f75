"""`lstm` and `lstm_cell` as citizens of PyTorch: opcheck, compile, export, autocast, meta tensors, transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck

import pykernels as pk
from pykernels import _native
from tests.ops.lstm.test_call import flat, problem

pytestmark = pytest.mark.skipif(_native.error is not None, reason="the native library is not built")

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True}, id="deep"),
    pytest.param({"batch_sizes": [2, 2, 1], "bias": False, "bidirectional": True}, id="packed"),
]


def native_arguments(options: dict[str, Any], grad: bool) -> tuple[Any, ...]:
    (x, (h, c), weights), named = problem(3, 2, 5, 6, **options)
    for t in (x, h, c, *weights):
        t.requires_grad_(grad)
    return (
        x, h, c, weights, named.get("batch_sizes"), named["num_layers"], named["bidirectional"], named["batch_first"],
        options.get("bias", True), grad,
    )  # fmt: skip


def cell_arguments(grad: bool) -> list[torch.Tensor]:
    (x, (h, c), weights), _ = problem(1, 2, 5, 6)
    return [t.clone().requires_grad_(grad) for t in (x[0], h[0], c[0], *weights)]


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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", OPTIONS)
def test_compiles_in_one_graph_forward_and_backward(options, backend):
    torch._dynamo.reset()
    (x, (h, c), weights), named = problem(3, 2, 5, 6, **options)
    inputs = [t.requires_grad_() for t in (x, h, c, *weights)]

    def function(x, h, c, weights):
        return flat(pk.ops.lstm(x, (h, c), weights, **named))

    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend=backend)):
        outputs = f(*inputs[:3], inputs[3:])
        results.append([*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_cell_compiles_in_one_graph(backend):
    torch._dynamo.reset()
    inputs = cell_arguments(True)

    def function(x, h, c, *weights):
        return pk.ops.lstm_cell(x, (h, c), *weights)

    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend=backend)):
        outputs = f(*inputs)
        results.append([*outputs, *torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_new_batch_size_does_not_recompile():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(
        lambda x, h, c, w: pk.ops.lstm(x, (h, c), w)[0], fullgraph=True, backend=counter, dynamic=True
    )
    for batch, time in ((2, 3), (5, 3), (9, 7)):
        (x, (h, c), weights), _ = problem(time, batch, 5, 6)
        compiled(x, h, c, weights)
    assert counter.frame_count == 1


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
    (x, (h, c), weights), named = problem(3, 2, 5, 6, num_layers=2)
    for t in (x, h, c, *weights):
        t.requires_grad_()
    with torch.autocast("cpu", dtype=device_dtype):
        output, (h_n, _) = pk.ops.lstm(x, (h, c), weights, **named)
    narrow = [t.detach().to(device_dtype) for t in (x, h, c, *weights)]
    expected, _ = pk.ops.lstm(narrow[0], (narrow[1], narrow[2]), narrow[3:], **named)
    assert output.dtype == h_n.dtype == device_dtype
    assert torch.equal(output, expected)
    output.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in (x, h, c, *weights))


def test_autocast_of_the_native_ops_called_directly():
    (x, (h, c), weights), _ = problem(3, 2, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = torch.ops.pykernels.lstm(x, h, c, weights, None, 1, False, False, True, False)[0]
        h_out = torch.ops.pykernels.lstm_cell(x[0], h[0], c[0], *weights, False)[0]
    assert output.dtype == h_out.dtype == torch.bfloat16


def test_autocast_of_the_cell_and_of_float64():
    x, h, c, *weights = cell_arguments(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pk.ops.lstm_cell(x, (h, c), *weights)[0].dtype == torch.bfloat16
        doubles = [t.double() for t in (x, h, c, *weights)]
        assert pk.ops.lstm_cell(doubles[0], (doubles[1], doubles[2]), *doubles[3:])[0].dtype == torch.float64


def test_autocast_compiles():
    torch._dynamo.reset()
    (x, hx, weights), _ = problem(3, 2, 5, 6)

    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pk.ops.lstm(x, hx, weights)[0]

    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_meta_tensors(options):
    (x, (h, c), weights), named = problem(3, 2, 5, 6, **options)
    meta = [t.to("meta") for t in (x, h, c, *weights)]
    got = flat(pk.ops.lstm(meta[0], (meta[1], meta[2]), meta[3:], **named))
    expected = flat(pk.ops.lstm(x, (h, c), weights, **named))
    assert [(g.shape, g.dtype) for g in got] == [(e.shape, e.dtype) for e in expected]


def test_vmap_over_the_batch():
    (x, (h, c), weights), _ = problem(3, 4, 5, 6)
    together = pk.ops.lstm(x, (h, c), weights)[0]
    each = torch.vmap(lambda x, h, c: pk.ops.lstm(x, (h, c), weights)[0], in_dims=1, out_dims=1)(x, h, c)
    torch.testing.assert_close(each, together)


def test_functional_gradients():
    (x, (h, c), weights), _ = problem(3, 4, 5, 6)
    got = torch.func.grad(lambda w: pk.ops.lstm(x, (h, c), [weights[0], w, *weights[2:]])[0].square().sum())(weights[1])
    own = weights[1].clone().requires_grad_()
    loss = pk.ops.lstm(x, (h, c), [weights[0], own, *weights[2:]])[0].square().sum()
    torch.testing.assert_close(got, torch.autograd.grad(loss, own)[0])
