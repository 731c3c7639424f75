"""No layout of ours changes what a foreign op computes, how its result lies in memory, or makes it slow."""

from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import pykernels as pk
from pykernels.optimize import _layout
from tests.harness import relative_l2
from tests.optimize.models import agree, randomise

PARAMETERS = {
    "slope": torch.rand(8), "weight": torch.randn(8, 4, 2, 2), "matrix": torch.randn(5, 6), "scale": torch.rand(8),
    "other": torch.randn(2, 8, 6, 6), "mask": torch.rand(2, 8, 6, 6) > 0.5, "grid": torch.rand(2, 6, 6, 2) * 2 - 1,
    "filters": torch.randn(8, 8, 3, 3), "wide": torch.randn(6), "mean": torch.randn(8), "index": torch.tensor([3, 1]),
}  # fmt: skip
p = PARAMETERS
#: What is called, where the name is not that of a method, or it takes more than the tensor.
CALLS = {
    "rsub": lambda t: torch.rsub(t, p["other"]), "addcmul": lambda t: torch.addcmul(t, t, p["other"]),
    "addcdiv": lambda t: torch.addcdiv(t, t, p["other"].abs() + 1), "lerp": lambda t: torch.lerp(t, p["other"], 0.3),
    "prelu": lambda t: F.prelu(t, p["slope"]), "threshold": lambda t: F.threshold(t, 0.1, 2.0),
    "cat": lambda t: torch.cat([t, p["other"]], 1), "concat": lambda t: torch.concat([t, t], 1),
    "stack": lambda t: torch.stack([t, t]), "chunk": lambda t: torch.cat(t.chunk(2, 1)[::-1], 1),
    "split": lambda t: t.split(2, 1)[1] + 1, "unbind": lambda t: t.unbind(1)[2] + 1, "clamp": lambda t: t.clamp(0, 1),
    "__getitem__": lambda t: t[:, 1::2, ::2], "narrow": lambda t: t.narrow(1, 2, 4) * 2, "flip": lambda t: t.flip(3),
    "select": lambda t: t.select(1, 1) * 2, "index_select": lambda t: t.index_select(1, p["index"]),
    "roll": lambda t: t.roll((1, 2), (2, 3)), "expand": lambda t: t[:, :, :1].expand(-1, -1, 4, -1) * 2,
    "squeeze": lambda t: t[:, :, :1].squeeze(2) + 1, "unsqueeze": lambda t: t.unsqueeze(1) + 1,
    "permute": lambda t: t.permute(0, 2, 3, 1) + 1, "transpose": lambda t: t.transpose(1, 3) + 1,
    "movedim": lambda t: t.movedim(1, -1) + 1, "flatten": lambda t: t.flatten(2),
    "masked_fill": lambda t: t.masked_fill(p["mask"], 0.5),
    "reshape": lambda t: t.reshape(2, 4, 12, 6), "lp_pool2d": lambda t: F.lp_pool2d(t, 2, 2),
    "clamp_min": lambda t: t.clamp_min(0.1),
    "clamp_max": lambda t: t.clamp_max(0.1), "clamp_": lambda t: (t + 1).clamp_(0, 1),
    "hardtanh_": lambda t: F.hardtanh_(t + 1, 0, 1),
    "avg_pool2d": lambda t: F.avg_pool2d(t, 2), "adaptive_avg_pool2d": lambda t: F.adaptive_avg_pool2d(t, 2),
    "adaptive_max_pool2d": lambda t: F.adaptive_max_pool2d(t, 2),
    "interpolate": lambda t: F.interpolate(t, scale_factor=2.0),
    "upsample": lambda t: torch.nn.UpsamplingBilinear2d(scale_factor=2)(t),
    "max_pool2d_with_indices": lambda t: F.max_pool2d(t, 2, return_indices=True)[0],
    "grid_sample": lambda t: F.grid_sample(t, p["grid"], align_corners=False),
    "pixel_shuffle": lambda t: F.pixel_shuffle(t, 2),
    "pad": lambda t: F.pad(t, (1, 1, 0, 2)), "mean": lambda t: t.mean((2, 3), keepdim=True), "sum": lambda t: t.sum(1),
    "amax": lambda t: t.amax(1, keepdim=True), "amin": lambda t: t.amin((2, 3)), "max": lambda t: t.max(1)[0],
    "min": lambda t: torch.min(t, p["other"]), "var": lambda t: t.var((2, 3)), "std": lambda t: t.std(1),
    "norm": lambda t: torch.norm(t, dim=1), "logsumexp": lambda t: t.logsumexp(1), "cumsum": lambda t: t.cumsum(1),
    "where": lambda t: torch.where(p["mask"], t, p["other"]), "maximum": lambda t: torch.maximum(t, p["other"]),
    "minimum": lambda t: torch.minimum(t, p["other"]), "argmax": lambda t: t.argmax(1), "argmin": lambda t: t.argmin(),
    "batch_norm": lambda t: F.batch_norm(t, p["mean"], p["scale"], p["scale"], p["mean"]),
    "conv2d": lambda t: F.conv2d(t, p["filters"], None, 1, 1),
    "conv_transpose2d": lambda t: F.conv_transpose2d(t, p["weight"], None, 2),
    "group_norm": lambda t: F.group_norm(t, 2, p["scale"], p["mean"]),
    "layer_norm": lambda t: F.layer_norm(t, (6,), p["wide"]),
    "linear": lambda t: F.linear(t, p["matrix"]), "matmul": lambda t: t.matmul(t.transpose(2, 3)),
    "__matmul__": lambda t: t @ t.transpose(2, 3), "glu": lambda t: F.glu(t, 1), "__pow__": lambda t: t**2,
    "pow": lambda t: t.pow(2),
    "__rpow__": lambda t: 2.0**t, "__neg__": operator.neg, "__rtruediv__": lambda t: 1 / (t.abs() + 1),
    "log": lambda t: t.abs().add(1).log(), "log2": lambda t: t.abs().add(1).log2(), "sqrt": lambda t: t.abs().sqrt(),
    "rsqrt": lambda t: (t.abs() + 1).rsqrt(), "reciprocal": lambda t: (t.abs() + 1).reciprocal(),
    "log1p": lambda t: t.abs().log1p(),
    "sqrt_": lambda t: t.abs().sqrt_(), "square_": lambda t: (t + 1).square_(), "detach": lambda t: t.detach() + 1,
    **{n: lambda t: F.max_pool2d(t, 3, 2, 1) for n in ("max_pool2d", "_max_pool2d", "boolean_dispatch", "fn")},
    **{n: lambda t, n=n: getattr(t, n)(p["other"]) for n in (
        "add", "sub", "mul", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "eq", "ne", "lt",
        "le", "gt",
        "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")},
    **{n: lambda t, n=n: getattr(t, n)(p["other"].abs() + 1) for n in ("div", "__truediv__", "true_divide")},
    **{n: lambda t, n=n: getattr(t + 1, n)(p["other"].abs() + 1) for n in (
        "add_", "mul_", "sub_", "div_", "__iadd__", "__imul__", "__isub__")},
    **{n: lambda t, n=n: getattr(t + 1, n)() for n in ("neg_", "abs_", "exp_", "relu_", "sigmoid_", "tanh_")},
}  # fmt: skip


def called(name):
    if name in CALLS:
        return CALLS[name]
    return getattr(F, name, None) or getattr(torch, name)


class Between(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.a, self.f, self.b = nn.Conv2d(4, 8, 3, padding=1), called(name), nn.Conv2d(8, 8, 3, padding=1)
        for key, value in PARAMETERS.items():
            self.register_buffer(key, value)

    def forward(self, x):
        y = self.a(x)
        z = self.f(y)
        return (z, self.b(z)) if z.dim() == 4 and z.size(1) == 8 and z.is_floating_point() else (z, self.b(y))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(_layout._FREE))
def test_what_is_free_gives_the_same_in_either_format(name):
    x = torch.randn(2, 4, 6, 6)
    model = Between(name).eval()
    y = model.a(x)
    f = called(name)
    plain, other = f(y), f(y.contiguous(memory_format=torch.channels_last))
    assert relative_l2(other.float(), plain.float()) < 1e-5
    fast = pk.optimize(model)
    expected = model(x)
    for _ in range(3):
        for got, e in zip(fast(x), expected, strict=True):
            assert got.shape == e.shape
            assert got.is_contiguous() == e.is_contiguous()
            assert relative_l2(got.float(), e.float()) < 1e-4
    assert fast.report().programs == 1


class Chain(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.a, self.between, self.b = nn.Conv2d(8, 8, 3, padding=1), between, nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def is_joined(model) -> bool:
    x = torch.randn(2, 8, 6, 6)
    fast = pk.optimize(randomise(model))
    agree(fast, model, x)
    (program,) = {id(p): p for p in fast._compiled_call_impl.programs.values()}.values()
    return any(step.function.channels_last for step in program.fused)


# The last one of these is torch's, for it has pixels that no tap reaches; other grouped ones are ours.
SLOW = [
    nn.Softmax(1), nn.LogSoftmax(1), nn.InstanceNorm2d(8, track_running_stats=True),
    nn.ConvTranspose2d(8, 8, 1, 2, groups=8),
]  # fmt: skip
FAST = [
    nn.MaxPool2d(3, 1, 1), nn.ConvTranspose2d(8, 8, 3, 1, 1), nn.ConvTranspose2d(8, 8, 3, 1, 1, groups=8),
    nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Hardsigmoid(), nn.ZeroPad2d(1),
]  # fmt: skip


@pytest.mark.parametrize(("between", "joins"), [(m, False) for m in SLOW] + [(m, True) for m in FAST], ids=repr)
def test_what_is_slow_in_channels_last_keeps_its_layout(between, joins):
    assert is_joined(Chain(between)) is joins


def test_what_costs_more_to_turn_than_it_brings_keeps_its_layout():
    few = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1))
    assert not is_joined(few)
    assert is_joined(nn.Sequential(*few, nn.MaxPool2d(2), nn.Conv2d(16, 8, 3)))


def test_a_convolution_by_itself_keeps_its_layout():
    assert not is_joined(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU()))


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(3, 4, 3, padding=1), kind(24, 5, 2, batch_first=batch_first, bidirectional=True)

    def forward(self, x):
        return self.rnn(self.conv(x).permute(0, 3, 1, 2).flatten(2))[0]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_recurrent_layers_get_their_input_step_by_step(kind, batch_first):
    model = randomise(Recurrent(kind, batch_first))
    fast = pk.optimize(model)
    agree(fast, model, torch.randn(2, 3, 6, 7))
    (program,) = fast._compiled_call_impl.programs.values()
    (fed,) = (s for s in program.graph.steps if s.function in (_layout.as_time_major, _layout.as_contiguous))
    assert fed.function(torch.randn(2, 3, 4)).transpose(0, int(batch_first)).is_contiguous()


ALONE = {
    "attention": (nn.MultiheadAttention(16, 2, batch_first=True), lambda x, y: ((x, y, y), {})),
    "attention to three": (nn.MultiheadAttention(16, 2, batch_first=True), lambda x, y: ((x, y, y + 1), {})),
    "attention by name": (
        nn.MultiheadAttention(16, 2, batch_first=True),
        lambda x, y: ((x,), {"key": y, "value": y, "need_weights": False}),
    ),
    "gru": (nn.GRU(16, 8, batch_first=True), lambda x, y: ((x,), {})),
    "rnn by name": (nn.RNN(16, 8, batch_first=True), lambda x, y: ((), {"input": x})),
    "lstm with projections": (nn.LSTM(16, 8, batch_first=True, proj_size=4), lambda x, y: ((x,), {})),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ALONE)
def test_torchs_layers_alone_get_what_their_products_want(name, monkeypatch):
    model, arguments = ALONE[name]
    args, kwargs = arguments(torch.randn(3, 5, 16), torch.randn(3, 7, 16))
    expected = [t for t in pytree.tree_leaves(model.eval()(*args, **kwargs)) if t is not None]
    fast = pk.optimize(model)
    for _ in range(3):
        got = [t for t in pytree.tree_leaves(fast(*args, **kwargs)) if t is not None]
        for a, b in zip(got, expected, strict=True):
            assert (a.shape, a.stride()) == (b.shape, b.stride())
            assert relative_l2(a, b) < 1e-5
    seen = []
    run = type(model).forward

    def forward(self, *args, **kwargs):
        seen.extend(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    fast(*args, **kwargs)
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    assert len({id(t) for t in seen}) == len({id(t) for t in given})
    assert all(t.transpose(0, 1).is_contiguous() for t in seen)


@torch.no_grad()
def test_attention_to_itself_gets_what_it_is_given():
    model, x = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(3, 5, 16)
    assert _layout.fed(model, (x, x, x), {}) == ((x, x, x), {})
    two = torch.randn(5, 16)
    assert _layout.fed(model, (two, two + 1, two), {})[0][0] is two
    assert pk.optimize(model)(x, x, x)[0].shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LayerNorm(8), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.Embedding(4, 8)])
def test_a_layer_of_torchs_alone_has_no_program(layer):
    x = torch.tensor([[1, 2]]) if isinstance(layer, nn.Embedding) else torch.randn(1, 3, 8, 8)
    fast = pk.optimize(layer.eval())
    for again in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), copy.copy(fast)):
        for _ in range(3):
            assert torch.equal(again(x), layer(x))
        report = again.report()
        assert (report.programs, [e.what for e in report.left]) == (0, [type(layer).__name__])
        assert report.left[0].why.startswith("is a single layer")
    assert torch.equal(torch.compile(fast, backend="eager")(x), layer(x))


@torch.no_grad()
def test_a_layer_of_torchs_alone_is_followed_without_a_stub():
    fast, x = pk.optimize(nn.ReLU()), torch.randn(3, 8)
    assert "_compiled_call_impl" not in vars(fast)
    seen = []
    handle = fast.register_forward_hook(lambda *_: seen.append(1))
    fast(x)
    handle.remove()
    fast.forward = torch.sigmoid
    assert torch.equal(fast(x), x.sigmoid())
    assert seen == [1]


@torch.no_grad()
def test_a_layer_of_torchs_alone_casts():
    fast, x = pk.optimize(nn.LayerNorm(8), dtype=torch.bfloat16), torch.randn(3, 8)
    assert fast(x).dtype is torch.float32
    assert fast.report().conversions
