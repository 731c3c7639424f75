"""batch_norm_act in PyTorch's machinery: second derivatives, opcheck, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from pykernels.ops import ACTIVATIONS, batch_norm_act
from tests.harness import map_tensors, native, normal

LAST, FIRST = torch.channels_last, torch.contiguous_format


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_twice(activation, residual, training, through_the_ops, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    vectors = [normal(3).requires_grad_(), normal(3).requires_grad_()]
    state = [normal(3), normal(3).square() + 0.5]
    extra = [normal(2, 3, 2, 3).requires_grad_()] if residual else []
    cast = torch.Tensor.float

    def f(x, weight, bias, *rest):
        options = {"training": training, "activation": activation, "negative_slope": 0.3}
        return batch_norm_act(
            x, *(t.clone() for t in state), weight, bias, residual=rest[0] if rest else None, **options
        )

    # The vectors of the ops are float32 but where x is float64, which only this test gives them.
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else cast(t))
    inputs = (normal(2, 3, 2, 3).requires_grad_(), *vectors, *extra)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize(
    ("layout", "activation", "residual"),
    [
        (LAST, "relu", True),
        (FIRST, "leaky_relu", True),
        (LAST, "silu", True),
        (FIRST, "silu", True),
        (FIRST, "relu", False),
        (LAST, "none", True),
    ],
)
def test_opcheck(layout, activation, residual, way):
    code = ACTIVATIONS.index(activation)
    x, r = (normal(2, 11, 4, 3, seed=i, layout=layout, device=way.device) for i in range(2))
    r = r if residual else None
    w, b = (normal(11, seed=i, device=way.device) for i in (2, 3))
    running = torch.zeros(11, device=way.device), torch.ones(11, device=way.device)
    opcheck(way.ops.batch_norm_statistics, (x, *running, 0.1))
    opcheck(way.ops.batch_norm_statistics, (x, None, None, 0.1))
    mean, var = way.ops.batch_norm_statistics(x, None, None, 0.1)
    rest = (True, 1e-5, code, 0.2)
    grads = [None if t is None else t.clone().requires_grad_() for t in (x, w, b, r)]
    opcheck(way.ops.batch_norm_act, (grads[0], mean, var, *grads[1:], *rest))
    y, mask = way.ops.batch_norm_act(x, mean, var, w, b, r, *rest)
    assert (mask.numel() > 0) == (residual and activation in ("relu", "leaky_relu"))
    kept = None if mask.numel() else r
    args = (torch.randn_like(y), x, mean, var, w, b, kept, mask, *rest, residual)
    opcheck(way.ops.batch_norm_act_backward, args)


@native
def test_compiles_whole_and_once_for_any_batch(through_the_ops):
    counter = CompileCounterWithBackend("aot_eager")
    w, b = (torch.rand(6) + 0.5).requires_grad_(), torch.randn(6).requires_grad_()
    state = [torch.zeros(6), torch.ones(6)]

    def f(x, r, mean, var):
        return batch_norm_act(x, mean, var, w, b, training=True, residual=r)

    compiled = torch.compile(f, backend=counter, fullgraph=True)
    for n in (2, 3, 5, 9):
        x, r = torch.randn(n, 6, 4, 4), torch.randn(n, 6, 4, 4)
        x.requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(r, 0)
        mine, theirs = (map_tensors(state, torch.clone) for _ in range(2))
        y = compiled(x, r, *mine)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        expected = f(x, r, *theirs)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), x)[0])
        torch.testing.assert_close(mine, theirs)
    assert counter.frame_count == 1
