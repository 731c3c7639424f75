"""``keep="packed"``: weights that are there once, and what can no longer be done with them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import pykernels as pk
from pykernels.optimize._keep import PackedWeight
from tests.harness import eight_threads, native, relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import agree, image, randomise

pytestmark = native


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=2, bias=False)
        self.fc = nn.Linear(16, 32)

    def forward(self, x, mask=None):
        x = self.down(F.relu(self.bn(self.conv(x))))
        x = x if mask is None else x * mask
        return F.gelu(self.fc(x.mean((2, 3)).view(x.size(0), 16)))


def packed(model):
    return sorted(name for name, p in model.named_parameters() if isinstance(p, PackedWeight))


def released(model=None, x=None):
    """A model whose weights are released, with the original and an input."""
    model, x = randomise(model or Net()), image(2, 8, 12, 12) if x is None else x
    fast = pk.optimize(model, keep="packed")
    agree(fast, model, x)
    return fast, model, x


def refused():
    return pytest.raises(RuntimeError, match=r'pykernels\.optimize: .*keep="packed"')


@pytest.mark.parametrize("keep", ["pack", "", True, 1])
def test_other_values_of_keep_are_refused(keep):
    with pytest.raises(ValueError, match='keep: expected None or "packed", got'):
        pk.optimize(Net(), keep=keep)


def test_what_is_packed_is_released_and_nothing_else():
    fast, model, x = released()
    assert packed(fast) == ["conv.weight", "down.weight", "fc.weight"]
    assert not packed(model)
    report = fast.report()
    assert report.released_bytes == sum(p.nbytes for n, p in model.named_parameters() if n in packed(fast))
    assert "of plain weights released" in str(report)
    agree(fast, model, x)
    assert not packed(pk.optimize(model))


def test_the_memory_is_freed_once_the_original_is_gone():
    arrays = []
    model = randomise(Net())
    for m in (model.conv, model.down, model.fc):
        array = m.weight.detach().numpy().copy()
        m.weight = nn.Parameter(torch.from_numpy(array))
        arrays.append(weakref.ref(array))
        del array
    fast = pk.optimize(model, keep="packed")
    x = image(2, 8, 12, 12)
    agree(fast, model, x)
    with torch.no_grad():
        expected = model(x)
        del model, m
        gc.collect()
        assert [a() for a in arrays] == [None] * 3
        assert relative_l2(fast(x), expected) < 1e-5


def test_later_kinds_sizes_and_modes_run():
    fast, model, _ = released()
    for shape in ((1, 8, 12, 12), (3, 8, 20, 7), (5, 8, 5, 5), (0, 8, 12, 12), (2, 8, 32, 32)):
        agree(fast, model, image(*shape))
    x = image(2, 8, 12, 12)
    agree(fast, model, x.to(memory_format=torch.channels_last))
    agree(fast, model, x, torch.tensor(0.5))
    with torch.inference_mode():
        agree(fast, model, x)
    for _ in range(3):
        assert relative_l2(fast(x), model(x)) < 1e-5  # gradients are enabled, and none are wanted


def test_parameters_say_what_they_are():
    fast, model, _ = released()
    for (name, p), (same, q) in zip(fast.named_parameters(), model.named_parameters(), strict=True):
        assert name == same
        assert isinstance(p, nn.Parameter)
        for said in (torch.numel, torch.is_floating_point, torch.Tensor.size, torch.Tensor.stride):
            assert said(p) == said(q)
        assert (p.dtype, p.device, p.nbytes) == (q.dtype, q.device, q.nbytes)
    assert "conv.weight" in repr(fast.conv.weight)
    assert repr(fast) == repr(model)


READS = {
    "state_dict": lambda f: f.state_dict(),
    "a child's state_dict": lambda f: f.conv.state_dict(),
    "load_state_dict": lambda f: f.load_state_dict(Net().state_dict()),
    "double": lambda f: f.double(),
    "half": lambda f: f.half(),
    "elements": lambda f: f.conv.weight.sum(),
    "an index": lambda f: f.conv.weight[0],
    "a write": lambda f: f.conv.weight.mul_(2),
    "data": lambda f: f.conv.weight.data,
    "data set": lambda f: setattr(f.conv.weight, "data", torch.zeros(16, 8, 3, 3)),
    "numpy": lambda f: f.conv.weight.numpy(),
    "tolist": lambda f: f.conv.weight.tolist(),
    "another's argument": lambda f: torch.zeros(16, 8, 3, 3).copy_(f.conv.weight),
    "deepcopy of one": lambda f: f.conv.weight.clone(),
    "prune": lambda f: prune.l1_unstructured(f.conv, "weight", 0.5),
    "weight_norm": lambda f: nn.utils.parametrizations.weight_norm(f.conv),
    "optimizer": lambda f: nn.init.normal_(f.fc.weight),
    "other groups": lambda f: F.conv2d(image(1, 16, 4, 4), f.conv.weight, groups=2),
    "other dtype": lambda f: F.conv2d(image(1, 8, 4, 4).double(), f.conv.weight),
}


@pytest.mark.parametrize("how", READS)
def test_reading_or_writing_elements_is_refused(how):
    fast, model, x = released()
    with torch.no_grad(), refused():
        READS[how](fast)
    if how != "prune":  # torch has taken the parameter out by then
        agree(fast, model, x)


def test_training_autocast_and_traces_are_refused():
    fast, model, x = released()
    with refused():
        fast(x.clone().requires_grad_())
    with refused(), torch.autocast("cpu", torch.bfloat16):
        fast(x)
    with refused():
        torch.export.export(fast, (x,))
    with refused():
        torch.jit.trace(fast, (x,))
    fast.requires_grad_()
    with refused():
        fast(x)
    fast.requires_grad_(False)
    agree(fast, model, x)


def test_what_needs_no_elements_works():
    fast, model, x = released()
    with torch.no_grad():
        assert relative_l2(torch.compile(fast, backend="eager")(x), model(x)) < 1e-5
    fast.eval().train().float().cpu().requires_grad_(False)
    agree(fast, model, x)
    assert next(fast.parameters()).device == x.device


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_carry_the_packed_weights(copied):
    fast, model, x = released()
    again = copied(fast)
    assert packed(again) == packed(fast)
    assert again.conv.weight is not fast.conv.weight
    agree(again, model, x)
    agree(again, model, image(5, 8, 9, 9))
    agree(fast, model, x)


def test_parameters_and_statistics_may_be_replaced():
    fast, _, x = released()
    other = randomise(Net(), 3)
    fast.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    agree(fast, other, x)
    assert packed(fast) == ["conv.weight", "down.weight", "fc.weight"]
    with torch.no_grad():
        for m in (fast, other):
            m.bn.running_mean.add_(1)
            m.bn.weight.mul_(2)
    agree(fast, other, x)
    fast.fc = other.fc = nn.Linear(16, 3)  # which is not ours to empty
    agree(fast, other, x)
    assert type(other.fc.weight) is nn.Parameter
    fast.down.stride = other.down.stride = (1, 1)
    agree(fast, other, x)


class Reads(Net):
    """Its code has uses of its own for one weight."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        y = super().forward(x)
        if self.how == "sum":
            return y + self.conv.weight.sum()
        if self.how == "turned":
            return y @ self.fc.weight
        if self.how == "value":  # never recorded
            return y * 2 if float(self.conv.weight.sum()) > 0 else y * 3
        if self.how == "embedding":
            return y.mean() + F.embedding(torch.arange(3), self.fc.weight)
        return y, self.conv.weight


@pytest.mark.parametrize(
    ("how", "kept"),
    [("sum", "conv.weight"), ("turned", "fc.weight"), ("value", "conv.weight"), ("embedding", "fc.weight"),
     ("result", "conv.weight")],
)  # fmt: skip
def test_what_is_read_otherwise_stays(how, kept):
    model, x = randomise(Reads(how)), image(2, 8, 12, 12)
    fast = pk.optimize(model, keep="packed")
    for _ in range(5):
        with torch.no_grad():
            got, expected = fast(x), model(x)
        if how == "result":
            (got, weight), (expected, same) = got, expected
            assert weight.data_ptr() == same.data_ptr()
        assert relative_l2(got, expected) < 1e-4
        assert kept not in packed(fast)


def test_shared_weights_and_parents_that_are_not_recorded():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.b.weight = self.a.weight
            self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(6))

        def forward(self, x):
            x = self.b(F.relu(self.a(x)))
            for block in self.blocks:
                x = block(x) if float(x.sum()) < 1e9 else x
            return x

    fast, model, x = released(Tied())
    agree(fast, model, x)
    assert fast.a.weight is fast.b.weight
    assert packed(fast) == ["a.weight", *(f"blocks.{i}.0.weight" for i in range(6))]
    agree(fast, model, image(1, 8, 6, 6))


def test_merged_branches_and_computed_weights_stay():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.c = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))

        def forward(self, x):
            return self.c(F.relu(self.a(x) + self.b(x)))

    fast, model, x = released(Merged())
    agree(fast, model, x)
    assert packed(fast) == []


def test_threads_may_call_while_weights_are_released():
    model = randomise(Net())
    fast = pk.optimize(model, keep="packed")

    def serve(seed):
        for i in range(12):
            x = image(1 + (seed + i) % 4, 8, 10 + i % 3, 10)
            with torch.inference_mode():
                assert relative_l2(fast(x), model(x)) <= 2 * model_bound(model, x.dtype)

    eight_threads(serve)
    assert packed(fast) == ["conv.weight", "down.weight", "fc.weight"]


def test_bfloat16_weights_are_released_too():
    model, x = randomise(Net()), image(2, 8, 12, 12)
    fast = pk.optimize(model, torch.bfloat16, keep="packed")
    with torch.inference_mode():
        for _ in range(5):
            assert relative_l2(fast(x), model(x)) < 0.03
    assert "conv.weight" in packed(fast)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv1d(16, 32, 3, padding=1), (2, 16, 40)), (nn.ConvTranspose2d(32, 32, 4, stride=2), (1, 32, 9, 9))],
)
def test_sequences_and_transposed_convolutions_keep_their_weights(layer, shape):
    model = nn.Sequential(layer, nn.ReLU())
    fast, *_ = released(model, torch.randn(shape))
    assert [r.where for r in fast.report().replaced]
    assert packed(fast) == []
    assert fast.state_dict().keys() == model.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("x", [torch.randn(4, 6), torch.randn(()), torch.randn(1, 1, 4, 6, 6)])
def test_what_is_no_image_is_refused_in_our_words(x):
    fast, *_ = released(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU()), image(2, 4, 6, 6))
    with pytest.raises(RuntimeError, match=r'expected an image on the CPU of 3 or 4 dimensions, got .*keep="packed"'):
        fast(x)
