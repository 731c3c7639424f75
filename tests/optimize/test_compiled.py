"""torch.compile of an optimised model, by any backend: its programs run, and see what is changed in between."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pykernels as pk
from tests.harness import relative_l2
from tests.optimize.models import Branches, image, randomise


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.scale = 1.0

    def forward(self, x, shift=None):
        y = self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3))) * self.scale
        return {"y": y if shift is None else y + shift}


def layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def ran(fast) -> str:
    """What the program fused that ran last."""
    stub = vars(fast)["_compiled_call_impl"]
    return "" if stub.last is None else " ".join(s.note for s in stub.last.graph.steps if s.note)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "pykernels"])
def test_its_programs_run(backend):
    net = randomise(Net())
    fast = pk.optimize(net)
    compiled = torch.compile(fast, backend=backend)
    for n in (2, 3, 2, 5):
        for _ in range(2):
            got = compiled(image(n, 3, 12, 12), shift=torch.ones(5))["y"]
            assert relative_l2(got, net(image(n, 3, 12, 12), torch.ones(5))["y"]) < 1e-5
    assert ran(fast) == "conv+bn+relu linear"
    assert fast.report().programs == 1


@torch.no_grad()
@pytest.mark.parametrize("make", [layers, Net], ids=["of torch's class", "of its own"])
def test_what_stands_around_it_is_compiled(make):
    net = randomise(make())
    fast, graphs = pk.optimize(net), []

    class Outer(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            y = self.body(x * 2 - 1)
            return (y["y"] if isinstance(y, dict) else y).sin() + 1

    def count(gm, inputs):
        graphs.extend(n.name for n in gm.graph.nodes if n.op in ("call_function", "call_method"))
        return gm

    compiled = torch.compile(Outer(fast), backend=count)
    for _ in range(3):
        assert relative_l2(compiled(image()), Outer(net)(image())) < 1e-5
    assert "conv+bn+relu" in ran(fast)
    assert graphs == ["mul", "sub", "sin", "add"]


def _in_place(net):
    net.conv.weight.mul_(2)


def _data(net):
    net.conv.weight.data = net.conv.weight * 2


def _loaded(net):
    net.load_state_dict({**net.state_dict(), "bn.running_var": torch.full((8,), 3.0)})


def _stepped(net, fused=False):
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(net.parameters(), lr=0.1, fused=fused).step()


def _stepped_at_once(net):
    _stepped(net, fused=True)


def _replaced(net):
    net.fc = nn.Linear(8, 5)


def _attribute(net):
    net.scale = 3.0


CHANGES = (_in_place, _data, _loaded, _stepped, _stepped_at_once, _replaced, _attribute)


@torch.no_grad()
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_changes_in_between_are_seen(change, fullgraph):
    fast = pk.optimize(randomise(Net()))
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=fullgraph)
    for _ in range(3):
        before = compiled(image())["y"]
    change(fast)
    plain = Net().eval()
    plain.load_state_dict(fast.state_dict())
    plain.scale = fast.scale
    expected = plain(image())["y"]
    assert relative_l2(before, expected) > 1e-2
    for _ in range(3):
        assert relative_l2(compiled(image())["y"], expected) < 1e-5


@torch.no_grad()
def test_control_flow_runs_as_without_compile():
    net = randomise(Branches())
    fast = pk.optimize(net)
    compiled = torch.compile(fast, backend="aot_eager")
    for x in (image(), -image(), image()):
        assert relative_l2(compiled(x), net(x)) < 1e-5
    assert fast.report().programs == 1


def test_gradients_are_those_of_the_layers():
    net = randomise(Net())
    compiled = torch.compile(pk.optimize(net), backend="aot_eager")
    ours, theirs = (image().requires_grad_() for _ in range(2))
    for _ in range(2):
        compiled(ours)["y"].square().sum().backward()
        net(theirs)["y"].square().sum().backward()
        assert relative_l2(ours.grad, theirs.grad) < 1e-5


def test_a_head_is_trained_on_it():
    net = randomise(layers())
    head = nn.Linear(400, 2)
    outer = nn.Sequential(pk.optimize(net), nn.Flatten(), head)
    compiled = torch.compile(outer.train(), backend="aot_eager")
    for _ in range(2):
        head.zero_grad()
        compiled(image()).sum().backward()
    expected = net(image()).flatten(1).sum(0)
    assert relative_l2(head.weight.grad[0], expected) < 1e-5


class Inside(nn.Module):
    def __init__(self, body, what):
        super().__init__()
        self.body, self.what = body, what

    def forward(self, x):
        if self.what == "checkpoint":
            return checkpoint(self.body, x, use_reentrant=False)
        if self.what == "cond":
            return torch.cond(x.sum() > 0, lambda t: self.body(t), lambda t: self.body(-t), (x,))
        if self.what == "vmap":
            return torch.vmap(self.body)(x[:, None])
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


@torch.no_grad()
@pytest.mark.parametrize("what", ["checkpoint", "cond", "vmap", "autocast"])
def test_inside_of_what_cannot_break(what):
    net = randomise(layers())
    compiled = torch.compile(Inside(pk.optimize(net), what), backend="eager")
    bound = 1e-2 if what == "autocast" else 1e-5
    for _ in range(3):
        assert relative_l2(compiled(image()), Inside(net, what)(image())) < bound


@torch.no_grad()
@pytest.mark.parametrize("fullgraph", [False, True])
def test_one_of_low_precision_casts_once(fullgraph):
    net = randomise(layers())
    fast = pk.optimize(net, dtype=torch.bfloat16)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=fullgraph)
    for _ in range(3):
        got = compiled(image())
        assert got.dtype == torch.float32
        assert relative_l2(got, net(image())) < 1e-2


class Named(nn.Module):
    """Names of arguments that the way to it has too; an input within a list."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images, run=1.0, self_=0.0, args=0.0):
        return self.conv(images[0]) * run + self_ + args


def test_any_name_of_an_argument_and_inputs_within_lists():
    net = Named().eval()
    compiled = torch.compile(pk.optimize(net), backend="eager")
    x = image(2, 3, 12, 12)
    with torch.no_grad():
        for _ in range(3):
            got = compiled([x], run=2.0, self_=1.0, args=3.0)
        torch.testing.assert_close(got, net([x], 2.0, 1.0, 3.0))
    wants = x.clone().requires_grad_()
    compiled([wants]).sum().backward()
    expected = x.clone().requires_grad_()
    net([expected]).sum().backward()
    torch.testing.assert_close(wants.grad, expected.grad)
