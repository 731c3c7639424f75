"""What shares memory in eager mode, and only that, shares it in a program; and results are of eager's types."""

from __future__ import annotations

import collections
import copy
import dataclasses
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import pykernels as pk
from tests.harness import normal, relative_l2


class Timed(nn.Module):
    """Can't be recorded, so that a program with it can't be given up half-way."""

    def forward(self, x):
        return x * 2 if time.time() > 0 else x


class Model(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.c, self.d = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.e, self.body, self.timed = nn.Conv2d(64, 16, 3, padding=1), body, Timed()

    def forward(self, x, *rest):
        return self.body(self, x, *rest)


def slices_of_a_sum(m, x):
    y = F.relu(m.c(x))
    z = F.relu(m.d(y))
    a = y + z
    return m.e(torch.cat([a[:, :, 1:], F.avg_pool2d(z, (2, 1), 1)], 1)), F.max_pool2d(y, 2)


def slices_of_convolutions(m, x):
    t, y = m.timed(x), F.relu(m.c(x))
    z = F.relu(m.d(y))
    return m.e(torch.cat([y[:, :, 1:], z[:, :, :-1]], 1)), t


def slices_of_images(m, x):
    y = F.relu(m.c(x))
    z = F.relu(m.d(y))
    return m.e(torch.cat([y[1:], z[:-1]], 1))


def write_to_a_copy(m, x):
    y = m.d(F.relu(m.c(x)))
    tokens = y.permute(0, 2, 3, 1).reshape(-1, 512)
    tokens.mul_(3.0)
    return m.d(y), tokens.sum(1)


def write_to_what_was_copied(m, x):
    y = m.d(F.relu(m.c(x)))
    tokens = y.permute(0, 2, 3, 1).flatten(1)
    y.mul_(3.0)
    return tokens * 1, y


def two_copies(m, x):
    y = m.d(F.relu(m.c(x))).permute(0, 2, 3, 1)
    return y.reshape(-1, 512), y.flatten(1)


BODIES = [
    slices_of_a_sum, slices_of_convolutions, slices_of_images, write_to_a_copy, write_to_what_was_copied, two_copies,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda f: f.__name__)
def test_memory_is_shared_as_in_eager_mode(body):
    model = Model(body).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for n in (2, 2, 2, 3, 3):
            x = normal(n, 16, 16, 16, seed=n)
            expected, got = pytree.tree_leaves(model(x)), pytree.tree_leaves(fast(x))
            for a, b in zip(got, expected, strict=True):
                assert relative_l2(a, b) < 1e-5
            got[0].zero_(), expected[0].zero_()
            for a, b in zip(got[1:], expected[1:], strict=True):
                assert relative_l2(a, b) < 1e-5, "a write to one result shows in another"


def expanded(m, x, n):
    y = F.relu(m.c(x))
    z = y[:1].expand(n, -1, -1, -1)
    a, b = F.max_pool2d(z, 3, 1, 1), F.max_pool2d(z, 5, 1, 2)
    d = a + b
    e = F.max_pool2d(d, 3, 1, 1)
    return a * b, d * e, F.relu(m.d(y)) * 2, a * e, b * d


def padded(m, x, n):
    y = F.pad(F.relu(m.c(x)), (0, n, 0, 0))
    a, b = F.max_pool2d(y, 3, 1, 1), m.d(y)
    return a + b, (a + y) * b


def counted(m, x, n):
    y = F.relu(m.c(x))
    columns = torch.arange(n.float())
    z = y[:, :, :, :1] + columns
    a = F.max_pool2d(z, 3, 1, 1)
    return m.d(a) + z, a


@pytest.mark.parametrize("body", [expanded, padded, counted], ids=lambda f: f.__name__)
def test_sizes_by_values_have_no_places(body):
    model = Model(body).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for i, n in enumerate((4, 4, 5, 5, 3, 6, 4, 5)):
            x, t = normal(3, 16, 16, 16, seed=i), torch.tensor(n)
            for a, b in zip(fast(x, t), model(x, t), strict=True):
                assert a.shape == b.shape
                assert relative_l2(a, b) < 1e-5


class Mine(tuple):
    pass


def _default(m, x):
    made = collections.defaultdict(list)
    made["y"] = m.c(x)
    return made


RESULTS = {
    "of torch's": lambda m, x: m.c(x).max(1),
    "of torch's, inside": lambda m, x: {"top": [m.c(x).topk(2, 1)]},
    "a tuple's subclass": lambda m, x: Mine((m.c(x),)),
    "a defaultdict": _default,
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_of_eagers_types(name):
    model = Model(RESULTS[name]).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        x = normal(2, 16, 8, 8, seed=1)
        expected = model(x)
        for _ in range(3):
            got = fast(x)
            assert type(got) is type(expected)
            assert getattr(got, "default_factory", None) is getattr(expected, "default_factory", None)
            assert pytree.tree_structure(got) == pytree.tree_structure(expected)
            for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
                assert isinstance(b, Mine) or (a.dtype is b.dtype and relative_l2(a.double(), b.double()) < 1e-5)


def test_tensors_as_keys_are_the_calls_own():
    model = Model(lambda m, x: {m.c(x): 1}).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for i in range(3):
            x = normal(2, 16, 8, 8, seed=i)
            assert relative_l2(next(iter(fast(x))), next(iter(model(x)))) < 1e-5


def rank_by_size(m, x):
    y = F.max_pool2d(m.c(x), 4).squeeze()
    return y * 10 if y.dim() == 2 else y


def number_of_parts(m, x):
    y = m.c(x)
    return y / len(y.split(4, -1))


def rank_in_place(m, x):
    return m.d(F.relu(m.c(x))).unsqueeze_(0).sum((0, 1)), m.timed(x)


@pytest.mark.parametrize("body", [rank_by_size, number_of_parts, rank_in_place], ids=lambda f: f.__name__)
def test_what_depends_on_sizes(body):
    model = Model(body).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for size in (8, 8, 4, 4, 16, 8, 16, 4):
            x = normal(2, 16, size, size, seed=size)
            for a, b in zip(pytree.tree_leaves(fast(x)), pytree.tree_leaves(model(x)), strict=True):
                assert a.shape == b.shape
                assert relative_l2(a, b) < 1e-5


def test_ranks_that_depend_on_values():
    def body(m, x, t):
        i = torch.nonzero(t).squeeze()
        return m.c(x)[:, i.unsqueeze(0) if i.dim() == 0 else i]

    model = Model(body).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for k in (2, 2, 1, 1, 2):
            t, x = (torch.arange(8) < k).float(), normal(2, 16, 8, 8, seed=k)
            assert fast(x, t).shape == model(x, t).shape


@dataclasses.dataclass(slots=True)
class Slots:
    y: torch.Tensor


def test_a_dataclass_with_slots():
    model = Model(lambda m, x: Slots(m.c(x))).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for i in range(3):
            x = normal(2, 16, 8, 8, seed=i)
            assert relative_l2(fast(x).y, model(x).y) < 1e-5


def test_embeddings_that_scale_their_weight_in_place():
    def body(m, x, i):
        w = m.c.weight[0, 0] * 2
        return F.embedding(i, w, max_norm=0.5), w.sum(1), m.c(x)

    model = Model(body).eval()
    fast = pk.optimize(model)
    x = normal(2, 16, 8, 8, seed=1)
    with torch.inference_mode():
        for i in (torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([2])):
            for a, b in zip(fast(x, i), model(x, i), strict=True):
                assert relative_l2(a, b) < 1e-5


class Cached(nn.Module):
    """Writes to what it is given, then reads what it has."""

    def __init__(self):
        super().__init__()
        self.c, self.scale = nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(1))
        self.register_buffer("cache", torch.zeros(2, 3, 6, 6))

    def forward(self, x, cache):
        cache.add_(x if cache.dim() == 4 else 1)
        return F.conv2d(self.cache + x, self.c.weight * self.scale, self.c.bias).relu()


@pytest.mark.parametrize(
    "own",
    [lambda m: m.cache[:], lambda m: m.cache, lambda m: m.scale.data, lambda m: m.scale.view(1)],
    ids=["view of a buffer", "buffer", "data", "view of a parameter"],
)
@pytest.mark.parametrize("first", [False, True], ids=["after another", "at once"])
@torch.no_grad()
def test_arguments_in_the_models_own_memory(own, first):
    model = Cached().eval()
    fast, x = pk.optimize(copy.deepcopy(model)), normal(2, 3, 6, 6)
    for _ in range(0 if first else 3):
        other = torch.zeros_like(own(model))
        assert relative_l2(fast(x, other.clone()), model(x, other.clone())) < 1e-5
    for _ in range(4):
        assert relative_l2(fast(x, own(fast)), model(x, own(model))) < 1e-5


class Windows(nn.Module):
    """As audio is cut into windows: by strides, with an offset in the memory that the tensor happens to have."""

    def __init__(self, offset):
        super().__init__()
        self.c, self.d, self.offset = nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1), offset

    def forward(self, x):
        x = self.d(self.c(x).relu())
        n = (x.shape[-1] - 8) // 2 + 1
        return torch.as_strided(x, (2, 8, n, 4), (x.stride(0), x.stride(1), 2, 1), *self.offset).mean(-1)


@pytest.mark.parametrize("offset", [(), (0,), (3,)])
@torch.no_grad()
def test_an_offset_in_memory_is_that_of_eagers_memory(offset):
    model = Windows(offset).eval()
    fast = pk.optimize(model)
    for size in (16, 16, 16, 16, 22):
        x = normal(2, 8, size)
        assert relative_l2(fast(x), model(x)) < 1e-6
