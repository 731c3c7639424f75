"""Models that come quantised: exported graphs with roundings, and torchao's int8 tensors."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.optimize import _aten
from tests.quantize.exported import SevenBits, converted, with_int8_tensors
from tests.quantize.models import Residual, batches, error, worn

#: Where a sum lies next to a border, ours may be rounded to the other side: one in some thousands. Each such step is a
#: hundredth of a value, and what a network makes of a few is a small part of what int8 costs it.
_FLIPS = 0.3


class Mobile(nn.Module):
    """Depthwise and pointwise convolutions, clamps, a gate, pools and a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.point = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 24, 1)
        self.down, self.up, self.last = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 24, 3, 1, 1), nn.Conv2d(24, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = F.hardswish(self.point(F.relu6(self.deep(x), inplace=True)))
        y = F.interpolate(self.up(F.avg_pool2d(torch.sigmoid(self.down(x)), 2)), scale_factor=2.0)
        x = F.relu(self.last(x + y))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.wide, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(n, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.out(y.reshape(n, t, d))
        return x + self.narrow(F.gelu(self.wide(self.n2(x))))


class Language(nn.Module):
    """An LSTM with a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(50, 16), nn.LSTM(16, 24, 2, batch_first=True), nn.Linear(24, 50)

    def forward(self, x):
        return self.out(self.lstm(self.words(x))[0])


class InPlace(nn.Module):
    """Two blocks with a shortcut, one of them with a convolution, written as ResNet's are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(4))
        self.short, self.relu = nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.stem(x)), 3, 2, 1)
        y = self.b(self.relu(self.a(x)))
        y += x
        x = self.relu(y)
        y = self.d(self.relu(self.c(x)))
        y += self.short(x)
        return self.relu(y)


def _model(name):
    image, rows = batches()[0], torch.randn(2, 7, 32)
    stack = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 9))
    return {
        "residual": lambda: (worn(Residual()), image), "mobile": lambda: (worn(Mobile()), image),
        "in place": lambda: (InPlace(), image), "stack": lambda: (stack, rows),
        "block": lambda: (nn.Sequential(Block(), Block()), rows),
        "language": lambda: (Language(), torch.randint(0, 50, (2, 9))),
    }[name]()  # fmt: skip


def _both(model, x):
    """By a recording and by Dynamo, and the report of the first."""
    fast = pk.optimize(model)
    with torch.no_grad():
        first, again = fast(x), fast(x)
        compiled = torch.compile(model, backend="pykernels")
        by_dynamo = compiled(x), compiled(x)
    torch._dynamo.reset()
    return [first, again, *by_dynamo], fast.report()


def _as_the_graph(name, **options):
    """The report on a converted model, after checking it against its graph in eager mode."""
    model, x = _model(name)
    graph = converted(model, x, **options)
    with torch.no_grad():
        expected, exact = graph(x), model(x)
    results, report = _both(graph, x)
    for got in results:
        assert error(got, expected) < _FLIPS * error(expected, exact)
    return report


def _layers(report):
    return [s for s in report.counted() if any(w in s.what for w in ("conv", "linear"))]


def _all_in_int8(report):
    return bool(_layers(report)) and all(s.what.startswith("int8") for s in _layers(report))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", ["residual", "mobile", "in place", "stack", "block", "language"])
def test_all_layers_run_in_int8(name, dtype):
    report = _as_the_graph(name, dtype=dtype)
    assert _layers(report)
    assert all(s.what.startswith("int8") and s.who != "torch" for s in _layers(report)), report
    assert not [x for x in report.left if "float" in x.why]
    assert not any("fake" in s.what or "per_tensor" in s.what for s in report.counted())


@pytest.mark.parametrize("name", ["stack", "block", "language"])
def test_ranges_found_at_each_call(name):
    report = _as_the_graph(name, dynamic=True)
    assert _all_in_int8(report), report


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_graph_within_a_model_is_exported_as_it_runs(dynamic):
    model, x = _model("stack")
    fast = pk.optimize(nn.Sequential(converted(model, x, dynamic=dynamic)))
    with torch.no_grad():
        fast(x)
        expected = fast(x)
        program = torch.export.export(fast, (x,))
    assert error(program.module()(x), expected) < 1e-6
    called = {str(n.target) for n in program.graph.nodes}
    assert not any("quantized_decomposed" in name for name in called)
    assert ("pykernels.int8_conv2d.default" in called) is not dynamic
    assert ("aten.aminmax.default" in called) is dynamic


def test_one_layer_differs_by_a_step_at_most():
    model, x = nn.Conv2d(3, 16, 3, padding=1), torch.randn(4, 3, 40, 40)
    model = nn.Sequential(model, nn.ReLU(), nn.Conv2d(16, 16, 1, bias=False))
    graph = converted(model, x)
    (rounding,) = [n for n in graph.graph.nodes if "quantize_per_tensor" in n.name and n.args[0].name == "relu"][:1]
    graph.graph.output_node().args = ((next(iter(rounding.users)),),)
    graph.recompile()
    fast = pk.optimize(graph)
    with torch.no_grad():
        expected = graph(x)
        fast(x)
        steps = (fast(x) - expected).abs() / rounding.args[1]
    assert float(steps.max()) < 1.01
    assert int((steps > 0.5).sum()) < 1e-3 * steps.numel()


def test_a_second_rounding_to_another_grid():
    model, x = _model("stack")
    graph = converted(model, x)
    ops = torch.ops.quantized_decomposed
    q = [n for n in graph.graph.nodes if n.target is ops.quantize_per_tensor.default][1]
    grid = (1.7 * q.args[1], *q.args[2:])
    with graph.graph.inserting_before(q):
        first = graph.graph.call_function(ops.quantize_per_tensor.default, (q.args[0], *grid))
        q.args = (graph.graph.call_function(ops.dequantize_per_tensor.default, (first, *grid)), *q.args[1:])
    graph.recompile()
    with torch.no_grad():
        expected, exact = graph(x), model(x)
    results, report = _both(graph, x)
    for got in results:
        assert error(got, expected) < _FLIPS * error(expected, exact)
    assert sum(s.what == "requantize" for s in report.counted()) == 1


def test_what_lies_between_layers_stays_in_int8():
    model, x = _model("in place")
    _, report = _both(converted(model, x), x)
    assert sum(s.what == "quantize" for s in report.counted()) == 1  # the image
    assert sum(s.what == "int8 conv+add+relu" for s in report.counted()) == 2


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("its weight is not int8", {"zero": 3}),
        ("its weight is not int8", {"skip": ("0.weight",)}),
        ("its input is not rounded to all 256 numbers", {"high": 127}),  # seven bits, which saturate where ours do not
    ],
)
def test_what_cannot_be_followed_runs_as_it_is(why, options):
    model, x = _model("stack")
    graph = converted(model, x, **options)
    with torch.no_grad():
        expected, exact = graph(x), model(x)
    results, report = _both(graph, x)
    for got in results:
        assert error(got, expected) < max(_FLIPS * error(expected, exact), 1e-6)
    skipped = "skip" in options
    assert sum(s.what.startswith("int8") for s in report.counted()) == (2 if skipped else 0)
    told = [left for left in report.left if left.why.startswith(f"computes in float: {why}")]
    assert len(told) == (1 if skipped else 3)


def test_a_tensor_that_is_read_unrounded_too_stays_float():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = self.a(x)
            return self.b(y), torch.exp(y), y

    model, x = Net(), torch.randn(3, 8)
    graph = converted(model, x)
    fast = pk.optimize(graph)
    with torch.no_grad():
        fast(x)
        for got, expected in zip(fast(x), graph(x), strict=True):
            torch.testing.assert_close(got, expected)


def test_writes_to_a_rounded_tensor_are_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            y = torch.relu(self.a(x))
            z = y.view(-1)
            y.mul_(-0.5)
            return self.b(y) + z.view(-1, 8)

    model, x = Net(), torch.randn(3, 8)
    graph = converted(model, x)
    fast = pk.optimize(graph)
    with torch.no_grad():
        fast(x)
        torch.testing.assert_close(fast(x), graph(x))


def test_new_int8_weights_are_followed():
    model, x = _model("stack")
    graph = converted(model, x)
    fast = pk.optimize(graph)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        before = fast(x), fast(x)
        for name, t in graph.named_buffers():
            if name.startswith("_scale"):
                t.mul_(0.5)
            if name.startswith("_q"):
                t.neg_()
        after = fast(x)
        assert error(after, before[1]) > 0.1
        assert error(after, graph(x)) < 0.01
        assert error(twin(x), before[1]) < 0.01
        for name, t in graph.named_buffers():
            if name.startswith("_zero"):
                t.fill_(2)
        assert error(fast(x), graph(x)) < 1e-5


def test_int8_tensors():
    model, x = _model("block")
    exact = model(x).detach()
    model = with_int8_tensors(model)
    with torch.no_grad():
        expected = model(x)
    results, report = _both(model, x)
    for got in results:  # 127 steps for the largest of a row where torchao has 127.5, so that all is rounded otherwise
        assert error(got, exact) < 1.3 * error(expected, exact)
        assert error(got, expected) < 2 * error(expected, exact)
    assert len(_layers(report)) == 8
    assert _all_in_int8(report), report


def test_int8_tensors_of_weights_alone():
    model, x = _model("block")
    model = with_int8_tensors(model, None)
    with torch.no_grad():
        expected = model(x)
    results, report = _both(model, x)
    for got in results:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len(_layers(report)) == 8
    assert all(s.what.startswith("weight-only int8") for s in _layers(report)), report


def test_int8_tensors_of_another_kind_run_as_they_are():
    model, x = _model("stack")
    model = with_int8_tensors(model, SevenBits)
    with torch.no_grad():
        expected = model(x)
    for got in _both(model, x)[0]:
        torch.testing.assert_close(got, expected)


def test_exported_models_run_by_programs():
    for name in ("residual", "mobile", "in place", "block", "language"):
        model, x = _model(name)
        graph = torch.export.export(model.eval(), (x,)).module()
        fast = pk.optimize(graph)
        with torch.no_grad():
            fast(x)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        assert fast.report().programs
        assert all(s.who != "torch" for s in _layers(fast.report()) if "conv" in s.what), fast.report()


_X, _ROWS = torch.randn(2, 4, 6, 6), torch.randn(3, 4)
_CHANNELS = torch.rand(4) + 0.5
_SAMPLES = {
    "conv1d.default": (_X[0], torch.randn(2, 6, 3)), "conv1d.padding": (_X[0], torch.randn(2, 6, 3), None, [1], "same"),
    "conv2d.default": (_X, torch.randn(6, 2, 3, 3), None, [1, 2], [1, 0], [1, 1], 2),
    "conv2d.padding": (_X, torch.randn(5, 4, 3, 3), torch.randn(5), [1, 1], "same"),
    "conv_transpose2d.input": (_X, torch.randn(4, 3, 2, 2), None, [2, 2], [0, 0], [1, 1], 1, [1, 1]),
    "linear.default": (_ROWS, torch.randn(5, 4)), "addmm.default": (torch.randn(5), _ROWS, torch.randn(4, 5)),
    "matmul.default": (_ROWS, torch.randn(4, 5)), "mm.default": (_ROWS, torch.randn(4, 5)),
    "bmm.default": (_X[0], _X[1]), "embedding.default": (_ROWS, torch.tensor([2, 0])),
    "hardtanh.default": (_X, -0.5, 0.25), "hardtanh_.default": (_X, 0.0, 6.0), "clamp.default": (_X, -1, None),
    "clamp_.default": (_X, None, 0.5), "softmax.int": (_X, 1), "prelu.default": (_X, _CHANNELS),
    "leaky_relu.default": (_X, 0.2), "leaky_relu_.default": (_X, 0.2), "softplus.default": (_X, 2, 20),
    "add.Tensor": (_X, _X[:1]), "add_.Tensor": (_X, _X[:1]), "sub.Tensor": (_X, _X[:1]), "mul.Tensor": (_X, 3),
    "mul_.Tensor": (_X, _X[:1]), "div.Tensor": (_X, 3), "elu.default": (_X, 0.5),
    "max_pool2d.default": (_X, [3, 3], [2, 2], [1, 1], [1, 1], True), "avg_pool2d.default": (_X, [2, 2], [], [1, 1]),
    "adaptive_avg_pool2d.default": (_X, [1, 1]), "mean.dim": (_X, [2, 3], True),
    "flatten.using_ints": (_X, 1), "reshape.default": (_X, [2, -1]), "view.default": (_X, [2, -1]),
    "permute.default": (_X, [0, 2, 3, 1]), "transpose.int": (_X, 1, 2), "t.default": (_ROWS,),
    "unsqueeze.default": (_X, 1), "squeeze.dim": (_X[:1], 0), "select.int": (_X, 1, 2),
    "expand.default": (_X[:1], [2, -1, 6, 6]),
    "cat.default": ([_X, _X], 1), "chunk.default": (_X, 2, 1), "split.Tensor": (_X, 3, 1), "unbind.int": (_X, 1),
    "to.dtype": (_X, torch.float64), "dropout.default": (_X, 0.5, False), "feature_dropout.default": (_X, 0.5, False),
    "channel_shuffle.default": (_X, 2), "pixel_shuffle.default": (_X, 2),
    "scaled_dot_product_attention.default": (_X, _X, _X, None, 0.0, True),
    "lstm.input": (
        torch.randn(5, 2, 4), [torch.zeros(1, 2, 3)] * 2, [torch.randn(12, 4), torch.randn(12, 3)], False, 1, 0.0,
        False, False, False,
    ),
    "batch_norm.default": (_X, _CHANNELS, -_CHANNELS, _CHANNELS / 2, _CHANNELS * 2, False, 0.1, 1e-3, True),
    "layer_norm.default": (_ROWS, [4], _CHANNELS, -_CHANNELS, 1e-3, True),
    "group_norm.default": (_X, 2, _CHANNELS, -_CHANNELS, 1e-3, True), "slice.Tensor": (_X, 2, 1, 2**63 - 1, 2),
    "upsample_nearest2d.vec": (_X, None, [2.0, 2.0]), "upsample_bilinear2d.vec": (_X, [9, 5], False, None),
}  # fmt: skip


@pytest.mark.parametrize("name", [*_aten._ALIKE, *_aten._IN_PLACE, *_aten._OTHERS])
def test_functions_do_what_their_overloads_do(name):
    packet, overload = name.split(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    args = _SAMPLES.get(name, (_X,))

    def fresh():
        return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)

    function, given, kwargs = _aten.torchs(op, fresh(), {})
    assert function is not op
    torch.testing.assert_close(function(*given, **kwargs), op(*fresh()))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["residual", "mobile", "stack", "block"])
def test_torchaos_own(name, dynamic):
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, x = _model(name)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model.eval(), (x,)).module(), quantizer)
        prepared(x)
        graph = convert_pt2e(prepared)
        expected, exact = graph(x), model(x)
    results, report = _both(graph, x)
    for got in results:
        assert error(got, expected) < max(_FLIPS * error(expected, exact), 1e-5)
    if not dynamic:
        assert _all_in_int8(report), report


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_torchaos_own_tensors_of_weights_alone():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, x = _model("block")
    quantize_(model, Int8WeightOnlyConfig())
    with torch.no_grad():
        expected = model(x)
    results, report = _both(model, x)
    for got in results:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(s.what.startswith("weight-only int8") for s in _layers(report)), report


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_torchaos_own_tensors():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, x = _model("block")
    exact = model(x).detach()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        expected = model(x)
    results, report = _both(model, x)
    for got in results:
        assert error(got, exact) < 1.3 * error(expected, exact)
    assert _all_in_int8(report), report


def test_layers_of_a_graph_have_the_names_of_the_modules_that_it_was_made_of():
    model, x = worn(Residual()), batches(1)[0]
    graph = torch.export.export(model, (x,)).module()
    for candidate, prefix in ((graph, ""), (nn.Sequential(graph), "0.")):
        q = pk.quantize(candidate, [x])
        with torch.inference_mode():
            q(x)
        assert {prefix + name for name in ("stem", "wide", "fc")} <= {layer.where for layer in q.report().layers}
    given = pk.optimize(converted(model, x))
    with torch.inference_mode():
        given(x)
    assert {"stem", "wide", "fc"} <= {name for r in given.report().replaced for name in r.where}


@pytest.mark.parametrize("first", ["rounds", "slices"])
def test_a_rounded_part_that_is_handed_out_has_eagers_strides(first):
    class Rounds(nn.Module):
        def forward(self, x):
            ops, grid = torch.ops.quantized_decomposed, (0.03, 128, 0, 255, torch.uint8)
            x = x.relu() if first == "rounds" else x.relu()[:, 1:3]
            y = ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *grid), *grid)
            return (y[:, 1:3] if first == "rounds" else y), y + 1

    x = torch.randn(2, 4, 5, 6)
    graph = torch.export.export(Rounds(), (x,)).module()
    given = pk.optimize(graph)
    for _ in range(2):
        got, expected = given(x), graph(x)
        assert [y.stride() for y in got] == [y.stride() for y in expected]
        assert all(map(torch.equal, got, expected))
