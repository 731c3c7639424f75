"""What pk.optimize leaves of the original, shares with it and follows; what it refuses."""

from __future__ import annotations

import abc
import copy
import math
import pickle
from typing import Generic, TypeVar

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.optimize._face import Optimized
from tests.harness import normal, relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import Block, Optional, agree, image, randomise, same


def test_channels_last_input_gives_channels_last_output():
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    x = image().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert pk.optimize(model)(x).is_contiguous(memory_format=torch.channels_last)


def test_hooks_are_kept():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    fast = pk.optimize(model)
    agree(fast, model, image())
    assert len(seen) == 4
    assert any("hooks" in x.why for x in fast.report().left)


def test_linear_sees_updates_of_its_weight():
    model = nn.Sequential(nn.Linear(6, 9)).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(image(3, 6))
        model[0].weight.mul_(3)
    agree(fast, model, image(3, 6))


def test_computed_weights_see_updates_of_their_sources():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(conv, nn.ReLU())
    fast = same(model, image())
    with torch.no_grad():
        conv.parametrizations.weight.original1.mul_(2)
    agree(fast, model, image())


def test_linear_of_the_wrong_width_says_what_torch_says():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        pk.optimize(nn.Sequential(nn.Linear(6, 9)))(image(4, 3))


def test_the_original_is_untouched_and_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    fast = pk.optimize(model)
    fast(image())
    assert model.training
    assert [type(m) for m in model] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_are_shared_and_updates_seen():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(image())
        model[0].weight.mul_(2)
        model[1].running_mean.add_(1)
    agree(fast, model, image())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [Block, Optional])
def test_copies_compute_the_same(kind, clone):
    model = randomise(kind("iadd") if kind is Block else kind())
    fast = pk.optimize(model)
    x = image(2, 6, 9, 9) if kind is Block else image()
    with torch.no_grad():
        expected = fast(x)
        assert torch.equal(clone(fast)(x), expected)


def test_bfloat16_inside_float32_outside():
    model = randomise(Block("iadd"))
    fast = pk.optimize(model, dtype=torch.bfloat16)
    with torch.no_grad():
        got = fast(image(2, 6, 9, 9))
        assert got.dtype == torch.float32
        error = relative_l2(got, model(image(2, 6, 9, 9)))
    assert model_bound(model) < error <= model_bound(model, torch.bfloat16)


def test_a_model_that_is_no_module():
    with pytest.raises(TypeError, match=r"optimize: model: expected a torch.nn.Module, got function"):
        pk.optimize(lambda x: x)


def test_a_dtype_that_is_none():
    with pytest.raises(TypeError, match=r"dtype: expected a torch.dtype or None, got Tensor; .* no example"):
        pk.optimize(nn.Linear(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"dtype: expected None, .* or torch.float16, got torch.int8"):
        pk.optimize(nn.Identity(), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"got torch.float16, which only the GPU kernels take"):
        pk.optimize(nn.Conv2d(3, 4, 3), dtype=torch.float16)


def test_optimising_twice():
    with pytest.raises(TypeError, match="optimised already"):
        pk.optimize(pk.optimize(nn.Conv2d(3, 4, 3)))


def test_it_stays_in_evaluation_mode_inside_a_model_that_trains():
    outer = nn.Sequential(
        pk.optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), nn.Flatten(), nn.Linear(400, 2)
    )
    outer.train()
    assert outer.training
    assert not any(m.training for m in outer[0].modules())
    outer(image()).sum().backward()
    assert outer[2].weight.grad is not None


class Adapted(nn.Conv2d):
    """An adapter that eval() merges into the weight, and train() takes out again."""

    def __init__(self, *args):
        super().__init__(*args)
        self.adapter, self.merged = nn.Parameter(torch.randn_like(self.weight)), False

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            self.weight.data += -self.adapter if mode else self.adapter
            self.merged = not mode
        return self

    def forward(self, x):
        weight = self.weight if self.merged else self.weight + self.adapter
        return self._conv_forward(x, weight, self.bias)


class Frozen(nn.Module):
    """Statistics that stay as they are in training, a common kind of train()."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.bn.running_mean[0] = math.nan

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()

    def forward(self, x):
        return self.bn(self.conv(x))


@pytest.mark.parametrize("training", [True, False])
def test_adapters_that_train_and_eval_merge(training):
    model = nn.Sequential(Adapted(3, 4, 3), nn.ReLU()).train(training)
    weight = model[0].weight.clone()
    fast = pk.optimize(model)
    assert torch.equal(model[0].weight, weight)
    agree(fast, model, image())
    agree(fast, model.train(not training), image())
    agree(fast, model.train(training), image())
    assert "train() or eval()" in str(fast.report())


def test_a_train_that_writes_nothing_keeps_the_weights_shared():
    model = nn.Sequential(Frozen(), nn.ReLU())
    fast = pk.optimize(model)
    assert [p.data_ptr() for p in fast.parameters()] == [p.data_ptr() for p in model.parameters()]
    versions = [p._version for p in fast.parameters()]
    with torch.no_grad():
        model[0].conv.weight.add_(1)
    assert [p._version for p in fast.parameters()] != versions
    assert "train() or eval()" not in str(fast.report())


class Asks(nn.Module):
    """What it computes hangs on what a tensor of its own says of itself."""

    def __init__(self, ask):
        super().__init__()
        self.conv, self.ask = nn.Conv2d(3, 4, 3), ask
        self.w = nn.Parameter(torch.ones(3, 4), requires_grad=False)

    def forward(self, x):
        return self.conv(x) * self.ask(self.w)


ASKED = {
    "size": (lambda w: w.shape[0] + 1, lambda w: setattr(w, "data", torch.ones(5, 4))),
    "numel": (lambda w: w.numel(), lambda w: setattr(w, "data", torch.ones(5, 4))),
    "len": (len, lambda w: w.resize_(7, 4)),
    "rank": (lambda w: w.ndim, lambda w: setattr(w, "data", torch.ones(4))),
    "dtype": (lambda w: 2 if w.dtype is torch.float64 else 3, lambda w: setattr(w, "data", w.data.double())),
    "gradients": (lambda w: 2 if w.requires_grad else 3, lambda w: w.requires_grad_()),
    "strides": (lambda w: 2 if w.is_contiguous() else 3, lambda w: setattr(w, "data", torch.ones(4, 3).t())),
    "attribute": (lambda w: getattr(w, "gain", 1), lambda w: setattr(w, "gain", 5)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ASKED)
def test_what_a_parameter_says_of_itself_is_watched(name):
    ask, change = ASKED[name]
    model = Asks(ask).eval()
    fast = pk.optimize(model)
    agree(fast, model, image())
    for m in (fast, model):
        change(m.w)
    agree(fast, model, image())


T = TypeVar("T")


class Mixin:
    def described(self):
        return f"{type(self).__name__} of {len(list(self.parameters()))}"


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x))


class GenericFirst(Generic[T], Layers):
    pass


class MixinFirst(Mixin, Layers):
    pass


class AbstractFirst(abc.ABC, Layers):
    pass


class GenericLast(Layers, Generic[T]):
    pass


@torch.no_grad()
@pytest.mark.parametrize("kind", [GenericFirst, GenericFirst[int], MixinFirst, AbstractFirst, GenericLast])
def test_of_whatever_bases(kind):
    model, x = kind().eval(), normal(1, 3, 8, 8)
    fast = pk.optimize(model)
    for made in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        for _ in range(3):
            torch.testing.assert_close(made(x), model(x))
        assert isinstance(made, Optimized)
        assert isinstance(made, type(model))
        assert made.report().programs == 1
        assert made.train() is made
        assert not made.training
    if isinstance(model, MixinFirst):
        assert fast.described() == model.described()
