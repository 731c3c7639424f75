"""conv_bn_act in PyTorch's machinery: autocast, opcheck, torch.compile, torch.export, fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from pykernels.ops import conv_bn_act
from pykernels.ops._spec import lay_out
from tests.harness import (
    FORMATS,
    assert_one_graph,
    inputs_of,
    leaves,
    map_tensors,
    native,
    normal,
    on_cpu_and_triton,
    relative_l2,
    to_double,
)
from tests.ops.conv_bn_act.cases import SAMPLES, bound, each_sample, gradient_bound

OPS = torch.ops.pykernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_conv2d_does(dtype):
    args, kwargs, inputs = leaves(*inputs_of(SAMPLES["3x3-residual"], torch.float32))
    with torch.autocast("cpu", dtype):
        y = conv_bn_act(*args, **kwargs)
        mixed = conv_bn_act(args[0].to(dtype), *args[1:], **kwargs)
        wide = conv_bn_act(*to_double(args), **to_double(kwargs))
    assert y.dtype == mixed.dtype == dtype
    assert wide.dtype == torch.float64
    assert torch.equal(y, mixed)
    assert relative_l2(y, wide) <= bound(args[1], dtype)
    gradients = torch.autograd.grad(y.float().sum(), inputs)
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]


@native
def test_autocast_of_the_native_op():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3)
    rest = (None, None, None, [1, 1], [0, 0, 0, 0], [1, 1], 1, 1, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = OPS.conv_bn_act(x, weight, *rest)
    assert torch.equal(y, OPS.conv_bn_act(x.bfloat16(), weight.bfloat16(), *rest))


@native
@pytest.mark.parametrize(("requires_grad", "layout"), [(False, "contiguous"), (True, "channels_last")])
def test_opcheck(requires_grad, layout):
    x, residual = (lay_out(torch.randn(2, c, 9, 8), layout).requires_grad_(requires_grad) for c in (8, 16))
    weight = torch.randn(16, 4, 3, 3, requires_grad=requires_grad)
    scale, shift = (torch.rand(16, requires_grad=requires_grad) for _ in range(2))
    for code in (1, 6):  # its gradient comes from the output; from what went before it
        geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 2, code, 0.01)
        opcheck(OPS.conv_bn_act.default, (x, weight, scale, shift, residual, *geometry))
    opcheck(OPS.conv_bn_act.default, (x, weight, None, None, None, [2, 1], [0, 1, 2, 3], [1, 2], 2, 2, 0.2))
    if not requires_grad:
        packed = OPS.conv_pack(weight, 2, 0)
        opcheck(OPS.conv_pack.default, (weight, 2, 0))
        opcheck(OPS.conv_bn_act_packed.default, (x, packed, [16, 4, 3, 3], scale, shift, residual, *geometry))


@pytest.mark.parametrize(
    ("backend", "layout"), [("aot_eager", "contiguous"), ("aot_eager", "channels_last"), ("inductor", "channels_last")]
)
def test_compile_is_whole_and_takes_any_batch(backend, layout):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator, requires_grad=True)
    vectors = [torch.rand(8, generator=generator) + 0.5 for _ in range(5)]

    def f(x):
        y = conv_bn_act(x, weight, *vectors, padding="same", activation="silu")
        return conv_bn_act(y, weight.mT.transpose(0, 1)[:, :8].contiguous(), residual=x, padding=1) * 2

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(f, backend=counter, fullgraph=True)
    compilations = []
    for n in (4, 2, 3, 7):
        x = lay_out(torch.randn(n, 4, 6, 6, generator=generator), layout).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x), f(x)
        assert relative_l2(y, expected) <= bound(weight)
        assert y.stride() == expected.stride()
        got, want = (torch.autograd.grad(v.sum(), (x, weight)) for v in (y, expected))
        for g, w in zip(got, want, strict=True):
            assert relative_l2(g, w) <= gradient_bound(weight, y)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


@on_cpu_and_triton
@pytest.mark.parametrize("groups", [1, 8])
def test_one_graph_serves_every_batch(groups, backend, device):
    w = normal(8, 8 // groups, 3, 3, seed=1, device=device)

    def calls():
        for n in (2, 3, 40):  # on both sides of a tile
            x = normal(n, 8, 6, 6, layout=torch.channels_last, device=device)
            torch._dynamo.maybe_mark_dynamic(x, 0)
            yield (x,)

    assert_one_graph(
        lambda x: conv_bn_act(x, w, padding=1, groups=groups, backend=backend), calls(), "eager", dynamic=None
    )


@on_cpu_and_triton
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_compiled_gradients(layout, backend, device):
    torch._dynamo.reset()
    x, w = (t.to(device) for t in (normal(2, 8, 6, 5, layout=layout), normal(12, 8, 3, 3, seed=1)))

    def call(x, w):
        return conv_bn_act(x, w, padding=1, backend=backend)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, w), call(x, w))
    y = compiled(x.requires_grad_(), w.requires_grad_())
    got = torch.autograd.grad(y.sum(), (x, w))
    for a, b in zip(got, torch.autograd.grad(call(x, w).sum(), (x, w)), strict=True):
        assert relative_l2(a, b) <= gradient_bound(w, y)


@on_cpu_and_triton
@pytest.mark.parametrize("groups", [1, 6])
def test_an_exported_batch_stays_open(groups, backend, device):
    """Triton's tiles are chosen by the batch that was traced; the graph must not be bound to it."""

    class Block(torch.nn.Module):
        def forward(self, x, w, mean, var):
            return conv_bn_act(x, w, None, mean, var, padding=1, stride=2, groups=groups, backend=backend)

    vectors = normal(6, seed=2, device=device), torch.rand(6, device=device)
    x, w = normal(3, 6, 5, 5, device=device), normal(6, 6 // groups, 3, 3, seed=1, device=device)
    shapes = ({0: torch.export.Dim("n", min=2)}, None, None, None)
    exported = torch.export.export(Block(), (x, w, *vectors), dynamic_shapes=shapes).module()
    for batch in (x, normal(9, 6, 5, 5, seed=2, device=device)):
        assert torch.equal(exported(batch, w, *vectors), Block()(batch, w, *vectors))


@each_sample
def test_fake_tensors_have_shape_strides_and_dtype(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.bfloat16)
    y = conv_bn_act(*args, **kwargs)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = conv_bn_act(*map_tensors(args, mode.from_tensor), **map_tensors(kwargs, mode.from_tensor))
    assert (fake.shape, fake.dtype) == (y.shape, y.dtype)
    assert fake.numel() == 0 or fake.stride() == y.stride()
    meta = conv_bn_act(*map_tensors(args, lambda t: t.to("meta")), **map_tensors(kwargs, lambda t: t.to("meta")))
    assert meta.shape == y.shape
