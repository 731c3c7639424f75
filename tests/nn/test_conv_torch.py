"""ConvBNAct2d in PyTorch's machinery: torch.compile, torch.export, traces, torch.func, fake tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.harness import relative_l2
from tests.nn.blocks import assert_near, gradient_bound, make, plain


@pytest.mark.parametrize("grad", [False, True])
def test_compile_is_whole_and_follows_the_weights(grad, x):
    block = make()
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(grad):
        compiled(x)
        compilations = counter.frame_count
        for n in (2, 3, 5):
            x = torch.randn(n, 8, 9, 10)
            assert_near(block, compiled(x), block(x))
        with torch.no_grad():
            block.conv.weight.mul_(2)
            block.bn.running_mean.add_(1)
        assert_near(block, compiled(x), block(x))
    assert counter.frame_count == compilations


def test_compile_training(x):
    block = make().train()
    twin = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    y.sum().backward()
    plain(twin, x).sum().backward()
    assert relative_l2(block.conv.weight.grad, twin.conv.weight.grad) <= gradient_bound(block, y)
    assert torch.allclose(block.bn.running_var, twin.bn.running_var)


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_without_packed_weights(strict, x):
    block = make()
    with torch.no_grad():
        y = block(x)
        program = torch.export.export(
            block, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1)}}, strict=strict
        )
        assert not program.constants
        assert not any("pack" in str(node.target) for node in program.graph.nodes)
        assert_near(block, program.module()(x), y)
        assert program.module()(torch.randn(7, 8, 9, 10)).shape[0] == 7


def test_symbolic_trace_holds_one_op(x):
    block = make()
    traced = torch.fx.symbolic_trace(block)
    assert sum(node.op == "call_function" for node in traced.graph.nodes) == 1
    assert_near(block, traced(x), block(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_follows_the_weights(x):
    block = make()
    with torch.no_grad():
        block(x)
        traced = torch.jit.trace(block, (x,))
        block.conv.weight.mul_(2)
        assert_near(block, traced(x), block(x))


def test_functional_call_and_transforms(x):
    block = make().requires_grad_(False)
    block(x)
    state = {k: v * 2 for k, v in block.state_dict().items()}
    twin = make()
    twin.load_state_dict(state)
    with torch.no_grad():
        expected = twin(x)
        assert torch.equal(torch.func.functional_call(block, state, (x,)), expected)
    parameters = dict(block.named_parameters())
    gradients = torch.func.grad(lambda p: torch.func.functional_call(block, p, (x,)).sum())(parameters)
    block.requires_grad_(True)
    y = block(x)
    y.sum().backward()
    for name, p in block.named_parameters():
        assert relative_l2(gradients[name], p.grad) <= gradient_bound(block, y)
    block.requires_grad_(False)
    for mapped in torch.func.vmap(block)(torch.stack((x, x))):
        assert_near(block, mapped, block(x))
    _, tangent = torch.func.jvp(block, (x,), (x,))
    _, expected = torch.func.jvp(lambda v: plain(block, v), (x,), (x,))
    assert_near(block, tangent, expected)


def test_meta_and_fake_tensors(x):
    block = make().to("meta")
    assert block(x.to("meta")).shape == (2, 16, 9, 10)
    with torch._subclasses.FakeTensorMode():
        fake = make()
        assert fake(torch.empty(3, 8, 9, 10)).shape == (3, 16, 9, 10)
