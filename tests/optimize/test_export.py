"""torch.export of an optimised model: the steps of its program, with packed weights as constants."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import forced_isa, host_isas, normal, relative_l2
from tests.optimize.models import Branches, image, randomise


class Net(nn.Module):
    """A bit of everything: what is fused, what is torch's, parameters and buffers that a step reads as they are."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.pool, self.lstm, self.gru = (
            nn.MaxPool2d(2),
            nn.LSTM(64, 8, batch_first=True),
            nn.GRU(8, 64, batch_first=True),
        )
        self.fc, self.gain = nn.Linear(64, 5), nn.Parameter(torch.randn(5))
        self.register_buffer("offset", torch.randn(5))
        self.scale = 2.0

    def forward(self, x, shift=None):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.pool(F.silu(self.bn2(self.conv2(x)) + x))
        z = self.gru(self.lstm(y.flatten(2).transpose(1, 2))[0])[0]
        z = self.fc(z) * self.gain + self.offset
        return {"y": y, "z": z * self.scale if shift is None else z + shift}


def export(fast, *args, n=None, **kwargs):
    shapes = None if n is None else {"x": {0: torch.export.Dim("n", min=2, max=64)}, **dict.fromkeys(kwargs)}
    return torch.export.export(fast, args, kwargs, dynamic_shapes=shapes)


def ops(exported) -> list[str]:
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    return [n.split(".")[1] for n in names if n.startswith("pykernels")]


def agree(got, expected):
    for key, value in expected.items():
        assert got[key].stride() == value.stride()
        assert relative_l2(got[key], value) < 1e-5, key


OURS = ["conv_bn_act_packed", "conv_bn_act_packed", "max_pool2d", "lstm_packed", "conv_bn_act_packed"]


@torch.no_grad()
@pytest.mark.parametrize("n", [None, 9], ids=["of one size", "of any batch"])
def test_packed_weights_are_constants(n):
    net = randomise(Net())
    fast = pk.optimize(net)
    x, shift = image(4, 3, 12, 12), torch.ones(5)
    fast(x, shift=shift)
    exported = export(fast, x, shift=shift, n=n)
    assert ops(exported) == OURS
    assert any(t.dtype == torch.uint8 for t in exported.constants.values())
    assert set(exported.state_dict) == set(net.state_dict())
    modules = exported.module(), exported.run_decompositions().module()
    for size in {4, n or 4}:
        x = image(size, 3, 12, 12)
        for module in modules:
            agree(module(x, shift=shift), net(x, shift))


@torch.no_grad()
def test_it_is_saved_with_them(tmp_path):
    net = randomise(Net())
    fast = pk.optimize(net)
    fast(image())
    torch.export.save(export(fast, image()), tmp_path / "net.pt2")
    agree(torch.export.load(tmp_path / "net.pt2").module()(image()), net(image()))


@torch.no_grad()
def test_without_a_program_torchs_layers_are_exported():
    fast = pk.optimize(randomise(Net()))
    assert not ops(export(fast, image()))
    fast(image())
    assert ops(export(fast, image()))
    fast(image())  # an export gives a GRU another list of its weights, which the program depends on
    with torch.enable_grad():
        assert ops(export(fast, image()))
    with torch.autocast("cpu", torch.bfloat16):
        assert not ops(export(fast, image()))
    with pk.backend("reference"):
        assert not ops(export(fast, image()))


@torch.no_grad()
def test_onnx_gets_torchs_operators(monkeypatch):
    fast = pk.optimize(randomise(Net()))
    fast(image())
    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)
    assert not ops(export(fast, image()))


@torch.no_grad()
@pytest.mark.skipif(host_isas() == ["scalar"], reason="there is one ISA")
def test_another_isa_is_told():
    fast = pk.optimize(randomise(AsksModes()))
    fast(image())
    with forced_isa("scalar"):
        exported = export(fast, image()).module()
        agree(exported(image()), fast(image()))
    with pytest.raises(RuntimeError, match="packed for another ISA"):
        exported(image())
    agree(export(fast, image()).module()(image()), fast(image()))


class AsksModes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).relu()
        return {"y": y * 2 if torch.is_grad_enabled() else y}


def test_gradient_modes_are_asked_for():
    net = AsksModes().eval().requires_grad_(False)
    fast = pk.optimize(net)
    with torch.inference_mode():
        fast(image())
    with torch.no_grad():
        without = export(fast, image())
        assert ops(without) == ["conv_bn_act_packed"]
        agree(without.module()(image()), net(image()))
    agree(export(fast, image()).module()(image()), net(image()))


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lstm = pk.nn.ConvBNAct2d(3, 4, 3), pk.nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        return {"y": self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0]}


@torch.no_grad()
def test_modules_of_the_package():
    net = randomise(Ours())
    fast = pk.optimize(net)
    for _ in range(2):
        fast(image())
    agree(export(fast, image()).module()(image()), net(image()))


def _weight(net):
    net.conv1.weight.mul_(2)


def _data(net):
    net.conv1.weight.data = net.conv1.weight * 2


def _lstm(net):
    net.lstm.weight_hh_l0.mul_(-1)


def _statistics(net):
    net.load_state_dict({**net.state_dict(), "bn1.running_var": torch.full((64,), 3.0)})


def _parameter(net):
    net.conv2.weight = nn.Parameter(torch.randn(64, 64, 3, 3))


def _gain(net):
    net.gain = nn.Parameter(torch.randn(5))


def _layer(net):
    net.fc = nn.Linear(64, 5)


def _attribute(net):
    net.scale = -1.0


def _forward(net):
    net.pool.forward = lambda x: F.avg_pool2d(x, 2)


def _hook(net):
    net.conv1.register_forward_hook(lambda m, args, y: y * 2)


CHANGES = (_weight, _data, _lstm, _statistics, _parameter, _gain, _layer, _attribute, _forward, _hook)


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_what_has_changed_since_it_was_recorded(change):
    fast = pk.optimize(randomise(Net()))
    before = fast(image())
    fast(image())
    change(fast)
    exported = export(fast, image()).module()(image())
    assert any(relative_l2(exported[key], before[key]) > 1e-4 for key in before)
    with pk.backend("reference"):  # the layers themselves
        agree(exported, fast(image()))


class Reads(nn.Module):
    """Another branch for another size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).relu()
        return {"y": y * 2 if x.shape[0] > 3 else y}


@torch.no_grad()
def test_a_program_for_one_size_is_not_exported_for_more():
    net = Reads().eval()
    fast = pk.optimize(net)
    fast(image())
    assert ops(export(fast, image())) == ["conv_bn_act_packed"]
    other = export(fast, image(5, 3, 12, 12))
    agree(other.module()(image(5, 3, 12, 12)), net(image(5, 3, 12, 12)))
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    assert not ops(torch.export.export(fast, (image(),), dynamic_shapes=shapes))


@torch.no_grad()
def test_parts_of_what_cannot_be_followed_are_packed():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = Branches().body, 0

        def forward(self, x):
            self.calls += 1
            return {"y": self.body(x) * 2}

    net = randomise(Either())
    fast = pk.optimize(net)
    for _ in range(3):
        fast(image())
    exported = export(fast, image())
    assert ops(exported) == ["conv_bn_act_packed"]
    agree(exported.module()(image()), net(image()))


@torch.no_grad()
def test_it_is_a_part_of_another_model():
    class Outer(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return {key: value.sin() for key, value in self.body(x * 2).items()}

    net = randomise(Net())
    fast = pk.optimize(net)
    Outer(fast)(image())
    exported = export(Outer(fast), image())
    assert ops(exported)
    agree(exported.module()(image()), Outer(net)(image()))


LAYERS = {
    "activation with constants": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8)), image()),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU()), normal(2, 6, 20)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 9, 2, 2), nn.BatchNorm2d(9)), normal(2, 6, 5, 5)),
    "batch norm alone": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), image()),
    "linear": (lambda: nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)), normal(3, 50, 64)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), normal(2, 5, 16)),
    "many": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Flatten(), nn.Linear(800, 7)), image()),
}


class Keyed(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return {"y": self.body(x)}


@torch.no_grad()
@pytest.mark.parametrize("n", [None, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, n):
    make, x = LAYERS[name]
    net = randomise(Keyed(make()))
    fast = pk.optimize(net)
    fast(x)
    exported = export(fast, x, n=n).module()
    agree(exported(x), net(x))
    if n is not None:
        agree(exported(x[:1].expand(n, *x.shape[1:]).contiguous()), net(x[:1].expand(n, *x.shape[1:]).contiguous()))


@torch.no_grad()
def test_images_in_channels_last():
    net = randomise(Net())
    fast = pk.optimize(net)
    x = image(2, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    fast(x)
    exported = export(fast, x, n=1)
    assert ops(exported)
    agree(exported.module()(x), net(x))


@torch.no_grad()
def test_low_precision():
    net = randomise(Keyed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    fast = pk.optimize(net, dtype=torch.bfloat16)
    fast(image())
    exported = export(fast, image())
    assert ops(exported) == ["conv_bn_act_packed"]
    got = exported.module()(image())["y"]
    assert got.dtype == torch.float32
    assert relative_l2(got, net(image())["y"]) < 1e-2


class Resized(nn.Module):
    """Norms of groups and channels, another size of the image, pools, a gate."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.alone, self.down, self.up = nn.InstanceNorm2d(32), nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x):
        y = F.silu(self.norm(self.conv(x)))
        y = y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        z = F.interpolate(self.alone(F.avg_pool2d(y, 2)), scale_factor=2)
        return {"y": F.interpolate(z + y, (9, 7), mode="bilinear", align_corners=False)}


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_else_is_ours(layout):
    net = randomise(Resized())
    fast, x = pk.optimize(net), image(2, 16, 12, 12).contiguous(memory_format=layout)
    fast(x)
    exported = export(fast, x)
    assert {"group_norm_act", "avg_pool2d", "upsample2d"} <= set(ops(exported))
    assert any(name.startswith("squeeze_excite") for name in ops(exported))
    agree(exported.module()(x), net(x))
    agree(exported.run_decompositions().module()(x), net(x))
