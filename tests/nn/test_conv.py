"""ConvBNAct2d against torch's own modules: values, gradients, statistics, and packed weights that are never stale."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations

import pykernels as pk
from pykernels import _native
from pykernels.ops import ACTIVATIONS
from pykernels.ops._activation import apply_activation
from tests.harness import forced_isa, host_isas, relative_l2

native = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))


def make(seed=0, **options):
    """An eval-mode block (8 -> 16 channels, 3x3, padding 1) with statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {"in_channels": 8, "out_channels": 16, "kernel_size": 3, "padding": 1, **options}
    block = pk.nn.ConvBNAct2d(**arguments).eval()
    with torch.no_grad():
        for name, t in (*block.named_parameters(), *block.named_buffers()):
            if name == "bn.running_var":
                t.uniform_(0.5, 2, generator=generator)
            elif t.is_floating_point():
                t.normal_(std=0.3, generator=generator)
    return block


def plain(block, x, residual=None):
    """The same by torch's modules, in their own mode."""
    z = block.conv(x)
    z = z if block.bn is None else block.bn(z)
    z = z if residual is None else z + residual
    return apply_activation(z, block.activation, block.negative_slope)


def assert_same(block, x, residual=None, tolerance=2e-6):
    got = block(x, residual)
    with torch.no_grad():
        twin = copy.deepcopy(block).double()
        batch, rest = (x, residual) if x.dim() == 4 else (x[None], None if residual is None else residual[None])
        expected = plain(twin, batch.double(), None if rest is None else rest.double())
        expected = expected if x.dim() == 4 else expected[0]
    assert got.shape == expected.shape
    assert relative_l2(got, expected) <= tolerance


@pytest.fixture
def x():
    return torch.randn(2, 8, 9, 10, generator=torch.Generator().manual_seed(1))


OPTIONS = [
    {},
    {"bias": True},
    {"batch_norm": False},
    {"batch_norm": False, "bias": True},
    {"affine": False},
    {"track_running_stats": False},
    {"stride": 2, "padding": 0},
    {"kernel_size": (1, 5), "stride": (1, 2), "padding": (0, 3)},
    {"dilation": 2, "padding": "same"},
    {"kernel_size": 2, "padding": "valid"},
    {"groups": 4},
    {"groups": 8, "out_channels": 8},
    {"padding_mode": "reflect"},
    {"padding_mode": "replicate", "padding": (2, 1)},
    {"padding_mode": "circular", "padding": "same"},
    {"eps": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_eval_is_torchs_modules(options, grad, x):
    block = make(**options)
    with torch.set_grad_enabled(grad):
        assert_same(block, x)
        residual = torch.randn_like(block(x))
        assert_same(block, x, residual)
        assert block(x).requires_grad == grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, x):
    with torch.no_grad():
        assert_same(make(activation=activation, negative_slope=0.3), x)


@native
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_where_no_gradient_is_recorded(options, x):
    block = make(**options)
    block(x)
    assert block._pack is None
    with torch.no_grad():
        block(x)
    assert (block._pack is not None) == options.get("track_running_stats", True)
    block.repack()
    assert block._pack is None
    with torch.inference_mode():
        block(x)
    assert (block._pack is not None) == options.get("track_running_stats", True)


@native
def test_packed_once(x):
    block = make()
    with torch.no_grad():
        block(x)
        pack = block._pack
        block(x, torch.zeros(2, 16, 9, 10))
        block(x.to(memory_format=torch.channels_last))
        block(x[0])
        block.eval()
        block(x)
    assert block._pack is pack


@native
def test_frozen_parameters_need_no_no_grad(x):
    block = make().requires_grad_(False)
    block(x)
    assert block._pack is not None
    assert block(x.clone().requires_grad_()).requires_grad
    assert block(x, torch.zeros(2, 16, 9, 10, requires_grad=True)).requires_grad


def new_values(block):
    generator = torch.Generator().manual_seed(5)
    return {
        k: torch.rand(v.shape, generator=generator) + 0.5 if v.is_floating_point() else v
        for k, v in block.state_dict().items()
    }


def set_data(owner, name):
    tensor = getattr(owner, name)
    tensor.data = torch.rand_like(tensor) + 0.5


def optimizer_step(block):
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    with torch.enable_grad():
        block(torch.ones(1, 8, 4, 4)).sum().backward()
    optimizer.step()


CHANGES = {
    "weight in place": lambda b: b.conv.weight.mul_(2),
    "bias in place": lambda b: b.conv.bias.add_(1),
    "mean in place": lambda b: b.bn.running_mean.add_(1),
    "var in place": lambda b: b.bn.running_var.mul_(4),
    "bn weight in place": lambda b: b.bn.weight.neg_(),
    "bn bias in place": lambda b: b.bn.bias.add_(1),
    "weight replaced": lambda b: setattr(b.conv, "weight", nn.Parameter(torch.randn(16, 8, 3, 3))),
    "weight of another size": lambda b: setattr(b.conv, "weight", nn.Parameter(torch.randn(16, 8, 5, 5))),
    "bias removed": lambda b: setattr(b.conv, "bias", None),
    "mean replaced": lambda b: setattr(b.bn, "running_mean", torch.randn(16)),
    "weight.data": lambda b: set_data(b.conv, "weight"),
    "bias.data": lambda b: set_data(b.conv, "bias"),
    "bn weight.data": lambda b: set_data(b.bn, "weight"),
    "load_state_dict": lambda b: b.load_state_dict(new_values(b)),
    "load_state_dict, assign": lambda b: b.load_state_dict(new_values(b), assign=True),
    "vector_to_parameters": lambda b: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(b.parameters()) * 2, b.parameters()
    ),
    "rounded": lambda b: b.bfloat16().float(),
    "conv rounded": lambda b: b.conv.bfloat16().float(),
    "bn rounded": lambda b: b.bn.bfloat16().float(),
    "optimizer": optimizer_step,
    "another conv": lambda b: setattr(b, "conv", nn.Conv2d(8, 16, 3, bias=False)),
    "another bn": lambda b: setattr(b, "bn", make(seed=3).bn),
    "bn removed": lambda b: setattr(b, "bn", None),
    "stride": lambda b: setattr(b.conv, "stride", (2, 2)),
    "padding": lambda b: setattr(b.conv, "padding", (2, 0)),
    "eps": lambda b: setattr(b.bn, "eps", 0.5),
    "activation": lambda b: setattr(b, "activation", "gelu"),
    "trained": lambda b: (b.train()(torch.randn(4, 8, 6, 6)), b.eval()),
    "parametrized": lambda b: parametrizations.weight_norm(b.conv),
}


@pytest.mark.parametrize("change", CHANGES)
def test_packed_weights_are_never_stale(change, x):
    block = make(bias=True)
    with torch.no_grad():
        before = block(x)
        CHANGES[change](block)
        after = block(x)
        # Of new weights the sums are larger, and so is what rounding takes from them.
        assert_same(block, x, tolerance=1e-5)
    if change != "parametrized":
        assert before.shape != after.shape or not torch.equal(before, after)


def test_data_in_place_needs_repack(x):
    block = make()
    with torch.no_grad():
        block(x)
        block.conv.weight.data.mul_(2)
        block.repack()
        assert_same(block, x)


@native
def test_another_isa_packs_again(x):
    block = make()
    with torch.no_grad():
        for isa in (*host_isas(), *host_isas()):
            with forced_isa(isa):
                assert_same(block, x)
                assert_same(block, x)
                assert block._pack is not None


@native
def test_no_pack_mixes_isas(x):
    first, *others = host_isas()
    block, other_shape = make(), torch.randn(1, 8, 64, 64)
    with torch.no_grad():
        for isa in (first, *others):
            with forced_isa(first):
                assert_same(block, x)
            with forced_isa(isa):
                assert_same(block, other_shape)
            with forced_isa(first):
                assert_same(block, other_shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, x):
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}.get(dtype, 2e-2)
    block = make().to(dtype)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert block(x.to(dtype)).dtype == dtype
            assert_same(block, x.to(dtype), torch.randn(2, 16, 9, 10).to(dtype), tolerance)
    assert_same(block.float(), x, tolerance=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast(dtype, grad, x):
    block = make()
    with torch.set_grad_enabled(grad):
        exact = block(x, torch.ones(2, 16, 9, 10))
        with torch.autocast("cpu", dtype):
            assert block(x).dtype == dtype
            rounded = block(x, torch.ones(2, 16, 9, 10))
            assert rounded.dtype == dtype
        assert relative_l2(rounded, exact) < 2e-2
        assert_same(block, x)


@pytest.mark.parametrize("grad", [False, True])
def test_memory_format_and_unbatched(grad, x):
    block = make()
    with torch.set_grad_enabled(grad):
        y = block(x)
        assert y.is_contiguous()
        last = block(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert relative_l2(last, y) < 1e-6
        assert_same(block, x[0])
        assert_same(block, x[0], torch.ones(16, 9, 10))
        assert_same(block, x.mT.contiguous().mT)
        assert block(x[:0]).shape == (0, 16, 9, 10)


TRAINING = [
    {},
    {"bias": True},
    {"affine": False},
    {"momentum": None},
    {"momentum": 0.7, "eps": 0.01},
    {"track_running_stats": False},
    {"activation": "silu"},
    {"groups": 4, "stride": 2},
    {"padding": "same", "kernel_size": (2, 4)},
    {"padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", TRAINING, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_training_is_torchs_modules(options, residual, x):
    ours = make(**options).train()
    theirs = copy.deepcopy(ours)
    x1, x2 = (x.clone().requires_grad_() for _ in range(2))
    for _ in range(3):
        z1 = ours.conv(x)
        r1, r2 = (torch.ones_like(z1).requires_grad_() if residual else None for _ in range(2))
        y1, y2 = ours(x1, r1), plain(theirs, x2, r2)
        assert relative_l2(y1, y2) < 2e-6
        weight = torch.randn_like(y1)
        (y1 * weight).sum().backward()
        (y2 * weight).sum().backward()
    assert relative_l2(x1.grad, x2.grad) < 1e-5
    for (name, p1), p2 in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name == "conv.bias" and ours.bn is not None:
            # The batch's mean takes the bias out again: its gradient is zero, and what is left is rounding.
            assert p1.grad.abs().max() < 1e-4
            continue
        assert relative_l2(p1.grad, p2.grad) < 1e-5, name
    for (name, b1), b2 in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(b1, b2, msg=name)
    assert_same(ours.eval(), x, tolerance=1e-5)


def test_frozen_batch_norm_in_training(x):
    block = make().train()
    block.bn.eval()
    mean = block.bn.running_mean.clone()
    assert_same(block, x)
    assert torch.equal(block.bn.running_mean, mean)
    block(x).sum().backward()
    assert block.bn.weight.grad is not None


def test_training_without_gradients_still_takes_the_batch(x):
    block = make().train()
    twin = copy.deepcopy(block)
    with torch.no_grad():
        assert relative_l2(block(x), plain(twin, x)) < 2e-6
    assert torch.allclose(block.bn.running_mean, twin.bn.running_mean)


def test_state_dict_keys_are_torchs():
    torch_block = nn.Module()
    torch_block.conv, torch_block.bn = nn.Conv2d(8, 16, 3, bias=True), nn.BatchNorm2d(16)
    ours = make(bias=True)
    assert list(ours.state_dict()) == list(torch_block.state_dict())
    torch_block.load_state_dict(ours.state_dict())
    ours.load_state_dict(torch_block.state_dict())
    assert list(make(batch_norm=False).state_dict()) == ["conv.weight"]


def test_state_dict_has_no_packed_weights(x):
    block = make()
    keys, buffers = list(block.state_dict()), len(list(block.buffers()))
    with torch.no_grad():
        block(x)
    assert (list(block.state_dict()), len(list(block.buffers()))) == (keys, buffers)


def test_from_torch_shares_parameters(x):
    conv, bn = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    block = pk.nn.ConvBNAct2d.from_torch(conv, bn, "tanh")
    assert block.training
    assert block.conv.weight is conv.weight
    assert block.bn.running_mean is bn.running_mean
    block.eval()
    assert_same(block, x)
    assert pk.nn.ConvBNAct2d.from_torch(conv.eval(), bn.eval()).activation == "none"
    assert not pk.nn.ConvBNAct2d.from_torch(conv).training
    assert_same(pk.nn.ConvBNAct2d.from_torch(conv), x)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(1, 1),), TypeError, r"conv: expected a torch.nn.Conv2d with its own forward, got Linear"),
        ((OwnForward(1, 1, 1),), TypeError, r"conv: expected a torch.nn.Conv2d with its own forward, got OwnForward"),
        ((nn.Conv2d(1, 1, 1), nn.BatchNorm1d(1)), TypeError, r"bn: expected a torch.nn.BatchNorm2d .* got BatchNorm1d"),
        ((nn.Conv2d(1, 2, 1), nn.BatchNorm2d(3)), ValueError, r"bn: expected 2 features .*, got 3"),
        ((nn.Conv2d(1, 2, 1), None, "swish"), ValueError, r"ConvBNAct2d: activation: expected one of .*; got 'swish'"),
    ],
)
def test_from_torch_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        pk.nn.ConvBNAct2d.from_torch(*arguments)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_from_torch_refuses_hooks(hook):
    conv, bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
    getattr(bn, f"register_{hook}")(lambda *_: None)
    with pytest.raises(ValueError, match="bn: expected a module without hooks"):
        pk.nn.ConvBNAct2d.from_torch(conv, bn)
    getattr(conv, f"register_{hook}")(lambda *_: None)
    with pytest.raises(ValueError, match="conv: expected a module without hooks"):
        pk.nn.ConvBNAct2d.from_torch(conv)


@native
def test_an_error_of_the_kernels_is_not_hidden(x, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("not enough memory")

    block = make()
    with torch.no_grad():
        block(x)
        monkeypatch.setattr(block._pack, "op", out_of_memory)
        with pytest.raises(RuntimeError, match="not enough memory"):
            block(x)


def test_constructor_refuses():
    with pytest.raises(ValueError, match="ConvBNAct2d: activation: expected one of"):
        pk.nn.ConvBNAct2d(1, 1, 1, activation="mish")
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        pk.nn.ConvBNAct2d(3, 4, 1, groups=2)


@pytest.mark.parametrize("grad", [False, True])
def test_bad_calls_are_named_on_the_packed_path_too(grad, x):
    block = make()
    with torch.set_grad_enabled(grad):
        block(x)
        with pytest.raises(ValueError, match="x: expected 8 channels"):
            block(torch.randn(1, 7, 9, 9))
        with pytest.raises(ValueError, match="residual: expected the output's shape"):
            block(x, torch.zeros(2, 16, 9, 9))
        with pytest.raises(TypeError, match=r"residual: expected x's dtype torch.float32, got torch.float64"):
            block(x, torch.zeros(2, 16, 9, 10, dtype=torch.float64))
        with pytest.raises(TypeError, match=r"weight: expected x's dtype torch.bfloat16"):
            block(x.bfloat16())
        with pytest.raises(TypeError, match="x: expected a tensor, got list"):
            block([1.0])
        with pytest.raises(ValueError, match=r"x: expected \(N, C, H, W\)"):
            block(x[0, 0])
        assert_same(block, x)


def test_backends(x):
    block = make()
    with torch.no_grad():
        with pk.backend("reference"):
            y = block(x)
        assert block._pack is None
        assert relative_l2(block(x), y) < 2e-6
        with pytest.raises(RuntimeError, match="backend='cuda' cannot run"), pk.backend("cuda"):
            block(x)


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_are_without_packed_weights_and_work(copier, x):
    block = make(bias=True, activation="leaky_relu", negative_slope=0.3)
    with torch.no_grad():
        y = block(x)
        twin = copier(block)
        assert twin._pack is None
        assert torch.equal(twin(x), y)
        if copier is not copy.copy:
            twin.conv.weight.mul_(2)
        assert torch.equal(block(x), y)
        assert_same(twin, x)


def test_torch_save(x):
    block = make()
    with torch.no_grad():
        y = block(x)
        buffer = io.BytesIO()
        torch.save(block, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


def test_eight_threads(x):
    with torch.no_grad():
        expected = make()(x)
        for _ in range(5):
            block = make()
            with ThreadPoolExecutor(8) as pool:
                for y in pool.map(lambda _, b=block: no_grad(b, x), range(32)):
                    assert torch.equal(y, expected)


def no_grad(block, x):
    with torch.no_grad():  # a thread's own
        return block(x)


def test_repeats_to_the_bit(x):
    block = make()
    with torch.no_grad():
        y = block(x)
        for _ in range(3):
            block.repack()
            assert torch.equal(block(x), y)


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
            assert relative_l2(compiled(x), block(x)) < 2e-6
        with torch.no_grad():
            block.conv.weight.mul_(2)
            block.bn.running_mean.add_(1)
        assert relative_l2(compiled(x), block(x)) < 2e-6
    assert counter.frame_count == compilations


def test_compile_training(x):
    block = make().train()
    twin = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    plain(twin, x).sum().backward()
    assert relative_l2(block.conv.weight.grad, twin.conv.weight.grad) < 1e-5
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
        assert relative_l2(program.module()(x), y) < 2e-6
        assert program.module()(torch.randn(7, 8, 9, 10)).shape[0] == 7


def test_symbolic_trace_holds_one_op(x):
    block = make()
    traced = torch.fx.symbolic_trace(block)
    assert sum(node.op == "call_function" for node in traced.graph.nodes) == 1
    assert relative_l2(traced(x), block(x)) < 2e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_follows_the_weights(x):
    block = make()
    with torch.no_grad():
        block(x)
        traced = torch.jit.trace(block, (x,))
        block.conv.weight.mul_(2)
        assert relative_l2(traced(x), block(x)) < 2e-6


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
    block(x).sum().backward()
    for name, p in block.named_parameters():
        assert relative_l2(gradients[name], p.grad) < 1e-5
    block.requires_grad_(False)
    assert relative_l2(torch.func.vmap(block)(torch.stack((x, x))), torch.stack((block(x), block(x)))) < 2e-6
    _, tangent = torch.func.jvp(block, (x,), (x,))
    _, expected = torch.func.jvp(lambda v: plain(block, v), (x,), (x,))
    assert relative_l2(tangent, expected) < 1e-5


@native
def test_parameters_made_in_inference_mode_are_packed_and_followed(x):
    with torch.inference_mode():
        block = make()
        block(x)
        pack = block._pack
        block(x)
        assert pack is not None
        assert block._pack is pack
        for t in (block.conv.weight, block.bn.running_var, block.bn.bias):
            t.mul_(2)
            assert relative_l2(block(x), plain(block, x)) < 2e-6
    with torch.no_grad():
        assert relative_l2(block(x), plain(block, x)) < 2e-6


def test_meta_and_fake_tensors(x):
    block = make().to("meta")
    assert block(x.to("meta")).shape == (2, 16, 9, 10)
    with torch._subclasses.FakeTensorMode():
        fake = make()
        assert fake(torch.empty(3, 8, 9, 10)).shape == (3, 16, 9, 10)


def test_repr():
    assert "activation='leaky_relu', negative_slope=0.3" in repr(make(activation="leaky_relu", negative_slope=0.3))


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str
)
@pytest.mark.parametrize("with_residual", [False, True])
def test_training_on_cuda_normalises_as_the_batch_norm_itself_would(options, with_residual, x):
    # What CUDA runs after its convolution, here on the reference.
    block = make(**options).train()
    twin = copy.deepcopy(block)
    for batch in (x, 2 * x + 1):
        residual = torch.ones(2, 16, 9, 10) if with_residual else None
        got = block._normalise(block.bn, block._convolve(batch, 1), residual)
        assert relative_l2(got, plain(twin, batch, residual)) <= 2e-6
    torch.testing.assert_close(block.state_dict(), twin.state_dict())
    unbatched = block._normalise(block.bn, block._convolve(x[0], 1), None)
    assert relative_l2(unbatched, plain(twin, x[:1])[0]) <= 2e-6
    block.eval()
    if block.bn.running_mean is None:
        assert relative_l2(block._normalise(block.bn, block._convolve(x, 1), None), plain(twin.eval(), x)) <= 2e-6


def test_training_on_cuda_leaves_a_batch_norm_with_hooks_alone():
    from pykernels.nn.conv import _runs_nothing_else

    block = make()
    assert _runs_nothing_else(block.bn)
    block.bn.register_forward_hook(lambda *_: None)
    assert not _runs_nothing_else(block.bn)
    assert not _runs_nothing_else(nn.SyncBatchNorm(16))
