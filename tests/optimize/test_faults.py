"""What users do to models, and what silently went wrong with it: followed, or refused in our words."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import relative_l2

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def conv(c: int = 3, k: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k), nn.ReLU())


def check(fast, net, *inputs, calls: int = 3) -> None:
    with torch.no_grad():
        for _ in range(calls):
            got, expected = fast(*inputs), net(*inputs)
            assert got.shape == expected.shape
            assert relative_l2(got, expected) < 1e-5


class Switch(nn.Module):
    limits = (0.0, 6.0)

    def __init__(self):
        super().__init__()
        self.body, self.fc, self.sharp, self.scales = conv(), nn.Linear(8, 4), False, [1.0]

    def forward_features(self, x):
        return self.body(x)

    def forward(self, x):
        y = self.fc(self.forward_features(x).mean((2, 3))).clamp(*self.limits) * self.scales[0]
        return y.softmax(-1) if self.sharp else y


class Walks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])

    def forward(self, x, lengths=None):
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                x = m(x)
                if lengths is not None:
                    x = x * (torch.arange(x.shape[-1]) < lengths[:, None])[:, None, None]
        return x / len(list(self.modules()))


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = conv(), None

    def forward(self, x):
        self.last = self.body(x)
        return self.last


class AsksType(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = conv()

    def forward(self, x):
        return self.body(x) if type(x) is torch.Tensor else x


class SamePadding(nn.Conv2d):
    def forward(self, x):
        pad = max((-(-x.shape[-1] // 2) - 1) * 2 + 3 - x.shape[-1], 0)
        return F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), self.weight, self.bias, 2)


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


class Pieces(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), conv(8, 8), nn.Sequential(conv(8, 8), conv(8, 4))])

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        for m in self.layers:
            x = m(x)
        return self.layers[2][1](self.layers[0](X))


def test_forward_replaced_on_an_instance():
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    down, up, plain = torch.randn(4, 12), torch.randn(12, 4), net[0].forward
    net[0].forward = lambda x: plain(x) + x @ down.T @ up.T
    check(pk.optimize(net.eval()), net, X)
    net = Switch().eval()
    net.forward = net.forward_features
    check(pk.optimize(net), net, X)
    net = conv().eval()
    net[2].forward = lambda x: x.clamp(0, 0.5)
    net[0]._conv_forward = lambda x, w, b: F.conv2d(x, w * 2, b, padding=1)
    check(pk.optimize(net), net, X)


@pytest.mark.parametrize("kind", [Walks, Keeps, AsksType, Pieces])
def test_models_that_look_at_themselves(kind):
    net = kind().eval()
    net(X)
    check(pk.optimize(net), net, X)


def test_lengths_by_a_walk_over_the_modules():
    net = Walks().eval()
    check(pk.optimize(net), net, X, torch.tensor([5, 12]))


@pytest.mark.parametrize("kind", [SamePadding, Standardised])
def test_subclasses_are_known_by_what_they_run(kind):
    net = nn.Sequential(kind(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    fast = pk.optimize(net)
    check(fast, net, X)
    assert [r.what for r in fast.report().replaced] == ["conv+bn+relu"]
    with torch.no_grad():
        net[0].weight.add_(torch.randn(8, 3, 3, 3))
    check(fast, net, X)


CHANGES = {
    "attribute": lambda m: setattr(m, "sharp", True),
    "list": lambda m: m.scales.__setitem__(0, 3.0),
    "submodule": lambda m: setattr(m, "fc", nn.Linear(8, 2)),
    "nested": lambda m: m.body.__setitem__(2, nn.Tanh()),
    "parameter": lambda m: setattr(m.fc, "weight", nn.Parameter(torch.ones(4, 8))),
    "data": lambda m: setattr(m.body[0].weight, "data", torch.ones(8, 3, 3, 3)),
    "geometry": lambda m: setattr(m.body[0], "padding", (0, 0)),
    "forward": lambda m: setattr(m.body[2], "forward", torch.sigmoid),
    "statistics": lambda m: m.body[1].running_mean.add_(1),
    "eps": lambda m: setattr(m.body[1], "eps", 1.0),
    "load_state_dict": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_optimised_model_counts(change):
    net = Switch().eval()
    fast, want = pk.optimize(net), copy.deepcopy(net)
    check(fast, want, X)
    torch.manual_seed(1)
    with torch.no_grad():
        CHANGES[change](fast)
        torch.manual_seed(1)
        CHANGES[change](want)
    check(fast, want, X)


def test_another_class_counts():
    class Tripled(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)))
    fast, x = pk.optimize(model), torch.randn(2, 4)
    with torch.no_grad():
        for module, kind in ((fast[1], nn.Sigmoid), (fast[2][0], Tripled), (fast[0], Tripled)):
            for _ in range(3):
                fast(x)
            module.__class__ = kind
            expected = fast[2][0](fast[1](fast[0](x)))
            torch.testing.assert_close(fast(x), expected)
            torch.testing.assert_close(fast(x), expected)


def test_class_attributes_and_globals_count(monkeypatch):
    net = Switch().eval()
    fast = pk.optimize(net)
    check(fast, net, X)
    monkeypatch.setattr(Switch, "limits", (0.0, 0.01))
    check(fast, net, X)


def test_hooks_put_on_afterwards_run():
    seen = []
    fast = pk.optimize(Switch().eval())
    with torch.no_grad():
        fast(X), fast(X)
        handle = fast.body[0].register_forward_hook(lambda *a: seen.append(1))
        fast(X), fast(X)
        assert len(seen) == 2
        handle.remove()
        fast(X)
    assert len(seen) == 2


def test_everything_but_the_call_is_the_twin():
    net = Switch().eval()
    fast = pk.optimize(net)
    assert list(fast.state_dict()) == list(net.state_dict())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in net.named_modules()]
    assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in net.parameters())
    assert repr(fast) == repr(net)
    assert isinstance(fast, Switch)
    other = Switch().eval()
    fast.load_state_dict(other.state_dict())
    check(fast, other, X)
    net.load_state_dict(fast.state_dict())


def test_containers_and_other_methods():
    net = nn.ModuleDict({"enc": conv()}).eval()
    check(pk.optimize(net)["enc"], net["enc"], X)
    net = nn.Sequential(conv(), conv(8, 8)).eval()
    fast = pk.optimize(net)
    assert len(fast) == len(list(fast)) == 2
    check(fast[0], net[0], X)
    check(fast[:1], net[:1], X)
    net = Switch().eval()
    fast = pk.optimize(net)
    check(fast.forward_features, net.forward_features, X)
    assert [r.what for r in fast.report().replaced] == ["conv+bn+relu"]


class OwnTrain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.lock = conv(), threading.Lock()

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.body(x)


def test_odd_models_are_taken():
    net = OwnTrain()
    net.eval()
    check(pk.optimize(net), net, X)
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU())
    net(X).sum().backward()
    check(pk.optimize(net.eval()), net, X)
    net = nn.Sequential(torch.jit.trace(conv().eval(), X), conv(8, 8)).eval()
    check(pk.optimize(net), net, X)
    with torch.inference_mode():
        net = conv().eval()
    fast = pk.optimize(net)
    check(fast, net, X)
    assert "inference mode" in str(fast.report())


def test_odd_models_are_refused_in_our_words():
    with pytest.raises(ValueError, match=r"pykernels.optimize: model: .* lazy"):
        pk.optimize(nn.Sequential(nn.LazyConv2d(4, 3)))
    with pytest.raises(TypeError, match=r"pykernels.optimize: model: .*TorchScript"):
        pk.optimize(torch.jit.script(conv()))


def test_one_channel_in_both_layouts():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 1, 12, 12).to(memory_format=torch.channels_last)
    fast = pk.optimize(net)
    with torch.no_grad():
        for _ in range(3):
            assert fast(x).is_contiguous() == net(x).is_contiguous()


def test_vmap_runs_the_twin():
    net = conv().eval()
    fast = pk.optimize(net)
    with torch.no_grad():
        assert relative_l2(torch.func.vmap(fast)(X[None]), net(X)[None]) < 1e-5


def test_threads_share_one_model_and_see_nothing_of_a_capture():
    net = nn.Sequential(conv(), conv(8, 8)).eval()
    fast, wrong = pk.optimize(net), []

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for n in (1, 2, 3) * 2:
            x = torch.randn(n, 3, 6 + seed, 9, generator=g)
            with torch.no_grad():
                wrong.append(relative_l2(fast(x), net(x)) > 1e-5)
            wrong.append(not net(x).requires_grad)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wrong) == 96
    assert not any(wrong)


def test_many_sizes_keep_few_programs():
    fast = pk.optimize(conv().eval())
    with torch.no_grad():
        for n in range(1, 100):
            fast(torch.randn(1, 3, 4, 4 + n))
    assert len(vars(fast)["_compiled_call_impl"].programs) <= 64
    assert fast.report().programs == 1


PATCHED = {
    "an activation": (F, "relu"),
    "a convolution": (F, "conv2d"),
    "batch norm": (F, "batch_norm"),
    "a forward of torch's": (nn.ReLU, "forward"),
    "an inherited forward": (nn.BatchNorm2d, "forward"),
    "a method of torch's": (nn.Conv2d, "_conv_forward"),
    "a container's": (nn.Sequential, "forward"),
}


@pytest.mark.parametrize("name", PATCHED)
def test_torch_patched_before_and_after_a_capture_and_put_back(name, monkeypatch):
    owner, function = PATCHED[name]
    original = getattr(owner, function)

    def doubled(*args, **kwargs):
        return original(*args, **kwargs) * 2

    model = Switch().eval()
    fast = pk.optimize(model)
    check(fast, model, X)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, doubled)
        check(fast, model, X)
        late = pk.optimize(model)
        check(late, model, X)
    check(fast, model, X)
    check(late, model, X)


class Nothing(nn.Module):
    """No tensor goes in, and none comes out."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return 1 if self.inner is None else self.inner() + 1


@pytest.mark.parametrize("args", [(), (X,)])
@pytest.mark.parametrize("model", [Nothing(), Nothing(Nothing())])
def test_a_model_without_tensors(model, args):
    fast = pk.optimize(model)
    for part, twin in ((model, fast), *zip(model.children(), fast.children(), strict=True)):
        for _ in range(3):
            assert twin(*args) == part(*args)
