"""torch.compile(model, backend="pykernels"), and the optimised model under torch's own tools."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

import pykernels as pk
from pykernels._imports import after_import
from pykernels.optimize import _dynamo, _know_backend
from tests.harness import normal, relative_l2
from tests.optimize.models import Branches, image, randomise


@pytest.fixture
def made(monkeypatch):
    """The graphs that the test compiles."""
    torch._dynamo.reset()
    counters.clear()
    graphs: list[_dynamo._Compiled] = []

    class Seen(_dynamo._Compiled):
        def __init__(self, gm):
            super().__init__(gm)
            graphs.append(self)

    monkeypatch.setattr(_dynamo, "_Compiled", Seen)
    yield graphs
    torch._dynamo.reset()


def programs(graphs) -> list[_dynamo.Program]:
    return [found[0] for g in graphs for found in g.programs.values() if found is not None]


def fused(graphs) -> list[str]:
    return [s.note for p in programs(graphs) for s in p.graph.steps if s.note]


def check(fast, model, *inputs) -> None:
    with torch.no_grad():
        expected = model(*inputs)
        for _ in range(3):
            got = fast(*inputs)
            assert got.shape == expected.shape
            assert got.stride() == expected.stride()
            assert relative_l2(got, expected) < 1e-5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc, self.scale = nn.Linear(8, 5), 1.0

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(F.relu(y).mean((2, 3))).view(x.shape[0], -1) * self.scale


class Reads(nn.Module):
    """The kind of model that nothing but Dynamo follows: lists that grow, generators, strings, sizes."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleDict({name: nn.Conv2d(3, 4, k, padding=k // 2) for name, k in (("a", 1), ("b", 3))})
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(x.shape[0])
        maps = {name.upper(): conv(x).relu() for name, conv in self.convs.items()}
        return torch.cat([maps[k] for k in sorted(maps, reverse=True)], 1).flatten(1)[:, : x.shape[2] * 2]


def compiled(model, **options):
    return torch.compile(model, backend="pykernels", **options)


def test_a_graph_becomes_one_program(made):
    net = randomise(Net())
    check(compiled(net, fullgraph=True), net, image())
    assert fused(made) == ["conv+bn+relu", "conv+bn+add+relu", "linear"]
    assert len(programs(made)) == 1


def test_the_batch_is_dynamic_without_compiling_again(made):
    net = randomise(Net())
    fast = compiled(net, fullgraph=True, dynamic=True)
    for n in (4, 2, 7, 3):
        check(fast, net, image(n, 3, 12, 12))
    assert len(made) == 1
    assert fused(made) == ["conv+bn+relu", "conv+bn+add+relu", "linear"]
    net.scale = 2.0
    check(fast, net, image())
    assert len(made) == 1


def test_a_marked_size_is_dynamic(made):
    net = randomise(Net())
    fast = compiled(net, fullgraph=True)
    for n in (4, 5, 6):
        x = image(n, 3, 12, 12)
        torch._dynamo.mark_dynamic(x, 0)
        check(fast, net, x)
    assert len(made) == 1


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_lstm_does_not_break_the_graph(made, bidirectional):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=bidirectional)

        def forward(self, x):
            return self.lstm(x)[0][:, -1].contiguous()

    net = Tagger().eval()
    fast = compiled(net, fullgraph=True)
    for n in (3, 4, 5):
        check(fast, net, normal(n, 7, 6, seed=n))
    assert "LSTM" in fused(made)
    (lstm,) = [s.function for s in programs(made)[0].graph.steps if s.note]
    assert lstm._pack is not None
    with torch.no_grad():
        net.lstm.weight_hh_l0.mul_(2)
    check(fast, net, normal(3, 7, 6, seed=3))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none"])
def test_our_own_modules_keep_their_weights_packed(made, activation):
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = pk.nn.ConvBNAct2d(3, 8, 3, padding=1, activation=activation, negative_slope=0.2)
            self.plain = pk.nn.ConvBNAct2d(8, 8, 1, bias=True, batch_norm=False, activation="silu")
            self.lstm = pk.nn.LSTM(8, 5, batch_first=True, bidirectional=True)

        def forward(self, x):
            y = self.conv(x)
            y = self.plain(y, y)
            return self.lstm(y.flatten(2).transpose(1, 2))[0][:, -1].contiguous()

    net = randomise(Ours())
    nn.init.normal_(net.plain.conv.bias)
    fast = compiled(net, fullgraph=True)
    for n in (2, 3):
        x = image(n, 3, 6, 6)
        torch._dynamo.mark_dynamic(x, 0)
        check(fast, net, x)
    assert fused(made) == ["conv+bn" + f"+{activation}" * (activation != "none"), "conv+bn+add+silu", "LSTM"]
    with torch.no_grad():
        net.plain.conv.bias += 1
    check(fast, net, x)


def test_another_backend_stops_at_an_lstm_as_always(made):
    compiled(nn.LSTM(2, 3), fullgraph=True)(torch.randn(2, 1, 2))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="LSTM"):
        torch.compile(nn.LSTM(2, 3), backend="eager", fullgraph=True)(torch.randn(2, 1, 2))


def test_training_gives_the_same_gradients(made):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    fast = compiled(ours)
    for step in range(2):
        for net, run in ((ours, fast), (theirs, theirs)):
            run(image(4, 3, 12, 12)).square().sum().backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 1e-3 * p.grad
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert relative_l2(a.grad, b.grad) < 1e-5, (step, name)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    ours.eval(), theirs.eval()
    check(fast, theirs, image())
    x, y = image().requires_grad_(), image().requires_grad_()
    fast(x).sum().backward(), theirs(y).sum().backward()
    assert relative_l2(x.grad, y.grad) < 1e-5


def test_changed_weights_are_seen(made):
    net = randomise(Net())
    fast = compiled(net)
    check(fast, net, image())
    with torch.no_grad():
        net.conv1.weight.mul_(2)
    check(fast, net, image())
    net.load_state_dict(randomise(Net(), seed=3).state_dict())
    check(fast, net, image())
    net.conv2.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
    check(fast, net, image())
    net.bn1.running_var.data = net.bn1.running_var * 3
    check(fast, net, image())
    net.scale = 2.0
    check(fast, net, image())


def test_models_that_share_code_keep_their_own_weights(made):
    nets = [randomise(Net(), seed=i) for i in range(3)]
    fast = [compiled(net) for net in nets]
    for _ in range(2):
        for f, net in zip(fast, nets, strict=True):
            check(f, net, image())


def test_a_state_kept_on_the_module_is_an_input(made):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = torch.zeros(2, 3, 12, 12)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            self.last = self.conv(x + self.last).relu()
            return self.last * self.count

    net, plain = Keeps(), Keeps()
    plain.load_state_dict(net.state_dict())
    fast = compiled(net)
    with torch.no_grad():
        for _ in range(3 * _dynamo._MOST_PROGRAMS // 2):
            assert relative_l2(fast(image() / 10), plain(image() / 10)) < 1e-5
    assert net.count == plain.count
    assert all(len(g.programs) < 8 for g in made)


def test_inputs_may_share_memory_and_be_written_to(made):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, y):
            z = self.conv(x)
            y.mul_(2)
            return F.relu(z + x)

    net = Writes()
    fast = compiled(net)
    with torch.no_grad():
        for _ in range(3):
            a, b = image(), image()
            assert relative_l2(fast(a, a[:, :2]), net(b, b[:, :2])) < 1e-5
            assert torch.equal(a, b)


def test_what_only_dynamo_follows(made):
    net = Reads()
    fast = compiled(net, fullgraph=True)
    check(fast, net, image())
    check(fast, net, image(3, 3, 12, 12))
    assert set(fused(made)) == {"conv+relu"}
    assert net.calls[:4] == [2, 2, 2, 2]


def test_a_branch_on_values_splits_the_graph(made):
    net = randomise(Branches())
    fast = compiled(net)
    check(fast, net, image())
    check(fast, net, -image())
    assert set(fused(made)) == {"conv+bn+relu"}


def test_a_cond_is_one_step(made):
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            y = self.conv(x).relu()
            return torch.cond(y.sum() > 40, lambda t: t * 2, lambda t: t - 1, (y,))

    net = Chooses()
    fast = compiled(net, fullgraph=True)
    check(fast, net, image())
    check(fast, net, image() * 100)
    assert fused(made) == ["conv+relu"]


def test_autocast_modes_and_asked_backends_run_the_graph_itself(made):
    net = randomise(Net())
    fast = compiled(net)
    check(fast, net, image())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(image()).dtype == torch.bfloat16
    with pk.backend("reference"):
        check(fast, net, image())


def test_a_wrong_input_is_told_in_torchs_words(made):
    fast = compiled(randomise(Net()))
    with torch.no_grad():
        fast(image())
        with pytest.raises(RuntimeError, match="channels"):
            fast(image(2, 4, 12, 12))


def test_the_name_is_known(tmp_path, monkeypatch):
    entry = '\n[project.entry-points.torch_dynamo_backends]\npykernels = "pykernels.optimize._dynamo:compile_graph"\n'
    assert entry in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "pykernels" in torch._dynamo.list_backends()
    # Of a source tree too, and whichever is imported first.
    (tmp_path / "comes_later.py").write_text("_BACKENDS = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    after_import("comes_later", _know_backend)
    import comes_later

    assert comes_later._BACKENDS["pykernels"].load() is _dynamo.compile_graph
    assert sys.meta_path == before


class Dict(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.lstm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.LSTM(4, 5)

    def forward(self, x, scale=None):
        y = self.body(x)
        y = y if scale is None else y * scale
        return {"y": y, "last": self.lstm(y[:, :, 0, :3].permute(2, 0, 1))[0][-1]}


@pytest.fixture(params=[None, torch.bfloat16], ids=["float32", "bfloat16"])
def fast(request):
    torch._dynamo.reset()
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    yield pk.optimize(net, dtype=request.param)
    torch._dynamo.reset()


@torch.no_grad()
def test_an_optimised_model_compiles_whole(fast):
    expected = fast(image())
    for backend in ("eager", "aot_eager", "pykernels"):
        got = torch.compile(fast, backend=backend, fullgraph=True)(image())
        assert got.dtype == expected.dtype
        assert relative_l2(got, expected) < 1e-2
    outer = nn.Sequential(fast, nn.Flatten())
    assert relative_l2(torch.compile(outer, backend="eager", fullgraph=True)(image()), expected.flatten(1)) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_an_optimised_model_exports_with_its_signature(strict):
    net = Dict().eval()
    fast = pk.optimize(net)
    fast(image())
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=9)}, "scale": None}
    exported = torch.export.export(fast, (image(),), {"scale": torch.tensor(2.0)}, dynamic_shapes=shapes, strict=strict)
    assert exported.graph_signature.user_inputs == ("x", "scale")
    assert set(exported.state_dict) == set(net.state_dict())
    targets = {n.target for n in exported.graph.nodes if n.op == "call_function"}
    assert not any("pykernels" in str(t) for t in targets)
    x = image(5, 3, 12, 12)
    for key, expected in net(x, torch.tensor(2.0)).items():
        assert relative_l2(exported.module()(x, scale=torch.tensor(2.0))[key], expected) < 1e-5


@torch.no_grad()
def test_a_low_precision_model_exports_with_its_casts(fast):
    exported = torch.export.export(fast, (image(),)).module()
    assert exported(image()).dtype == torch.float32
    assert relative_l2(exported(image()), fast(image())) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_onnx_gets_torchs_operators(monkeypatch, strict):
    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm = pk.nn.ConvBNAct2d(3, 4, 3), pk.nn.LSTM(4, 5, 2, bidirectional=True)
            self.cell, self.fc = pk.nn.LSTMCell(10, 6), pk.nn.Int8Linear.from_torch(nn.Linear(6, 2))

        def forward(self, x):
            y, _ = self.lstm(self.conv(x)[:, :, 0, :3].permute(2, 0, 1))
            return self.fc(self.cell(y[-1])[0])

    net = All().eval()
    exported = torch.export.export(net, (image(),), strict=strict)
    targets = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert not any("pykernels" in t for t in targets)
    assert targets.count("aten.lstm.input") == 1
    assert relative_l2(exported.module()(image()), net(image())) < 1e-5
    monkeypatch.undo()
    kept = torch.export.export(net, (image(),)).graph.nodes
    assert any("pykernels.lstm" in str(n.target) for n in kept)


@torch.no_grad()
def test_vmap_goes_over_an_optimised_model():
    net = randomise(Net())
    fast = pk.optimize(net)
    x = image(3, 2, 3, 12, 12)
    for _ in range(2):
        got = torch.vmap(fast)(x)
        assert relative_l2(got, torch.stack([net(one) for one in x])) < 1e-5
        assert relative_l2(fast(x[0]), net(x[0])) < 1e-5


@torch.no_grad()
def test_the_flop_counter_counts_what_eager_has(made):
    def count(model):
        with FlopCounterMode(display=False) as counter:
            model(image())
        return counter.get_total_flops()

    net = Dict().eval()
    fast, second = pk.optimize(net), compiled(net)
    expected = count(net)
    assert expected > 0
    for model in (fast, second):
        for _ in range(3):
            assert count(model) == expected
            model(image())
