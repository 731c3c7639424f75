"""The memory of optimised models: planned, borrowed by a call, and never seen by the caller."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.cli.bench.peers.networks.residual import DenseBlock, DenseLayer
from pykernels.optimize import _arena, _layout, _torchs
from tests.harness import native, relative_l2
from tests.optimize.models import image, programs, randomise

pytestmark = native


def block(i, o, k=3, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Net(nn.Module):
    """Residuals, branches, a view, an in-place step; what it returns is drawn from ``give``."""

    def __init__(self, give=lambda a, b, c: c):
        super().__init__()
        self.a, self.b, self.c, self.d = block(3, 16), block(16, 16), block(8, 16), block(16, 16, 1, 2)
        self.give = give

    def forward(self, x):
        a = self.a(x)
        b = self.b(a) + a
        left, right = b.chunk(2, 1)
        c = self.c(left * 2) + self.c(right)
        c = self.d(F.silu(c, inplace=True))
        return self.give(a, b, c)


@pytest.fixture(autouse=True)
def _small_models_turn(monkeypatch):
    """Models so small would keep their layout."""
    monkeypatch.setattr(_layout, "_TURN", 0)


def kept(fast):
    return sum(p.memory() for p in programs(fast))


def plans(fast):
    return [plan for p in programs(fast) for plan in p.plans()]


@torch.no_grad()
def warm(net, *inputs):
    fast = pk.optimize(net)
    for _ in range(3):
        fast(*inputs)
    return fast


def close(a, b):
    assert relative_l2(a, b) < 1e-4


@pytest.mark.parametrize("seed", range(20))
def test_places_never_overlap_in_time_and_memory(seed):
    r = random.Random(seed)
    items = []
    for i in range(40):
        form = SimpleNamespace(nbytes=r.choice((4, 64, 100, 5000, r.randint(1, 9000))))
        items.append(_arena._Item(form, i, i + r.randint(0, 9)))
    end = _arena._place(items, 128)
    for x in items:
        assert x.offset % 64 == 0
        assert 128 <= x.offset <= x.offset + x.form.nbytes <= end
        for y in items:
            if x is not y and x.first <= y.last and y.first <= x.last:
                assert x.offset + x.form.nbytes <= y.offset or y.offset + y.form.nbytes <= x.offset
    most = max(sum(x.form.nbytes for x in items if x.first <= t <= x.last) for t in range(50))
    assert end <= 128 + 2 * (most + 64 * 12)


def test_one_arena_serves_call_after_call():
    fast = warm(randomise(Net()), image())
    (plan,) = plans(fast)
    assert len(plan.keys) == 5  # five convolutions; sums write over a summand
    assert kept(fast) == plan.nbytes
    first = plan.idle[0]
    with torch.no_grad():
        for _ in range(3):
            fast(image())
    assert list(plan.idle) == [first]


@pytest.mark.parametrize(
    "give",
    [
        lambda a, b, c: c,
        lambda a, b, c: (a, b, c),
        lambda a, b, c: b[:, 1:],
        lambda a, b, c: {"a": a.transpose(1, 2), "c": c.flatten(1)},
        lambda a, b, c: (a.movedim(1, 3), c[:, None]),
        lambda a, b, c: [F.dropout(a, 0.5, False), b.chunk(2, 1)[1]],
        lambda a, b, c: (a.contiguous(), a.relu_()),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_the_callers(mode, memory_format, give):
    net = randomise(Net(give))
    fast = pk.optimize(net)
    inputs = [torch.randn(2, 3, 12, 12).to(memory_format=memory_format) for _ in range(5)]
    with mode():
        given = [fast(x) for x in inputs]
        for x, got in zip(inputs, given, strict=True):
            ours, theirs = (torch.utils._pytree.tree_leaves(t) for t in (got, net(x)))
            for a, b in zip(ours, theirs, strict=True):
                close(a, b)
                assert a.stride() == b.stride()
                assert a.is_inference() == b.is_inference()
    assert plans(fast) or isinstance(given[0], list | tuple)


class Joins(nn.Module):
    """Branches that ``join`` puts together, and a convolution behind them."""

    def __init__(self, join, channels):
        super().__init__()
        self.a, self.b, self.c = block(3, 16), block(16, 8, 1), block(16, 12)
        self.narrow, self.d, self.last = block(8, 8), block(16, 16), block(channels, 4)
        self.join = join
        for m in self.modules():
            m.inplace = False  # or the views forbid to fuse it

    def forward(self, x):
        a = self.a(x)
        y = self.last(self.join(self, a.neg()))
        return self.last(self.join(self, a)) + y


def _halves(m, a):
    left, right = m.d(a).chunk(2, 1)
    return torch.cat([left, right, m.narrow(right)], 1)


#: How, to how many channels, and whether anything is written at once.
JOINS = {
    "branches": (lambda m, a: torch.cat([m.b(a), m.c(a)], 1), 20, True),
    "with others": (lambda m, a: torch.cat((m.b(a), F.max_pool2d(a, 3, 1, 1), m.c(a)), -3), 36, True),
    "halves": (_halves, 24, True),
    "half": (
        lambda m, a: torch.cat([m.narrow(m.b(a).chunk(2, 1)[0].repeat(1, 2, 1, 1)), m.b(a)[:, 4:]], dim=1),
        12,
        True,
    ),
    "swapped": (lambda m, a: torch.cat([*m.b(a).split([3, 5], 1)[::-1], m.c(a)], 1), 20, True),
    "twice": (lambda m, a: torch.cat([(b := m.b(a)), b], 1), 16, False),
    "in two": (lambda m, a: torch.cat([(b := m.b(a)), torch.cat([b, m.c(a)], 1)], 1), 28, True),
    "read by torch": (lambda m, a: torch.cat([b := m.b(a), b.sigmoid()], 1), 16, False),
    "written to": (lambda m, a: torch.cat([m.b(a).mul_(2), m.c(a)], 1), 20, True),
}


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_joined_results_are_written_at_once(name, dtype):
    join, channels, at_once = JOINS[name]
    net = randomise(Joins(join, channels).to(dtype))
    fast = pk.optimize(net)
    for seed in range(5):
        x = torch.randn(2, 3, 10, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert relative_l2(fast(x), net(x)) < (1e-4 if dtype is torch.float32 else 3e-2)
    (plan,) = plans(fast)
    assert any(isinstance(key, tuple) and key[1] == "at once" for key in plan.keys) is at_once


@torch.no_grad()
def peak(call, x):
    """The most bytes that torch had given out at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(x)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_joins_that_are_normed_need_less_than_eagers():
    dense = DenseBlock(DenseLayer(64 + 32 * i) for i in range(6))
    end = nn.BatchNorm2d(256), nn.ReLU(inplace=True), nn.Conv2d(256, 8, 1)
    model = randomise(nn.Sequential(block(3, 64), dense, *end))
    x = image(1, 3, 24, 24)
    fast = warm(model, x)
    close(fast(x), model(x))
    (plan,) = plans(fast)
    assert peak(fast, x) + plan.nbytes - plan.workspace <= 0.9 * peak(model, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
@torch.no_grad()
def test_norms_into_memory_that_is_there(affine, memory_format):
    x = torch.randn(2, 5, 6, 7).contiguous(memory_format=memory_format)
    norm = randomise(nn.BatchNorm2d(5, affine=affine))
    given = norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    expected, out = norm(x), torch.empty_like(x)
    assert torch.equal(_torchs.norm_into(x, *given, out=out), expected)
    assert torch.equal(_torchs.batch_norm_(x, *given), expected)
    assert x.stride() == out.stride() == expected.stride()


class Tangle(nn.Module):
    """Random convolutions, joins, chunks, sums, poolings and in-place steps; what it returns is drawn too."""

    def __init__(self, seed):
        super().__init__()
        r = random.Random(seed)
        channels, self.plan, self.convs = [4], [], nn.ModuleList()
        for _ in range(r.randint(6, 16)):
            name = r.choice(("conv", "conv", "conv", "cat", "cat", "chunk", "add", "pool", "mul_", "sigmoid", "slice"))
            picks = [r.randrange(len(channels)) for _ in range(r.randint(2, 3))]
            if r.random() < 0.5:
                picks[0] = len(channels) - 1
            c, made = channels[picks[0]], None
            name = "sigmoid" if name in ("chunk", "slice") and c % 2 else name
            if name == "conv":
                made = r.choice((4, 8, 12))
                self.convs.append(block(c, made, r.choice((1, 3))))
                self.convs[-1][2].inplace = r.random() < 0.3
            elif name == "cat":
                made = sum(channels[i] for i in picks)
            elif name == "add":
                picks = [picks[0], r.choice([i for i, x in enumerate(channels) if x == c])]
            elif name in ("chunk", "slice"):
                made = picks[1] = c // 2
            self.plan.append((name, picks))
            channels.append(made or c)
        self.give = [r.randrange(1, len(channels)) for _ in range(r.randint(1, 3))]

    def forward(self, x):
        values, convs = [x], iter(self.convs)
        for name, picks in self.plan:
            a = values[picks[0]]
            if name == "conv":
                y = next(convs)(a)
            elif name == "cat":
                y = torch.cat([values[i] for i in picks], 1)
            elif name == "add":
                y = a + values[picks[1]]
            elif name == "chunk":
                y = a.chunk(2, 1)[1]
            elif name == "slice":
                y = a.narrow(1, 0, picks[1])
            else:
                y = F.max_pool2d(a, 3, 1, 1) if name == "pool" else a.sigmoid() if name == "sigmoid" else a.mul_(0.5)
            values.append(y)
        return [values[i] for i in self.give]


def tangle(seed):
    """Whether the model of ``seed`` had a plan."""
    torch.manual_seed(seed)
    net = randomise(Tangle(seed), seed)
    fast = pk.optimize(net)
    held = []
    for call in range(8):
        x = torch.randn(1 + call % 2, 4, 7, 6 + (call // 3) % 2)
        with (torch.no_grad, torch.inference_mode)[seed % 2]():
            expected, got = net(x.clone()), fast(x.clone())
            for mine, theirs in zip(got, expected, strict=True):
                assert mine.is_contiguous() == theirs.is_contiguous(), seed
                assert relative_l2(mine, theirs) < 1e-4, seed
            held += [(t, t.clone()) for t in got]
    assert all(torch.equal(a, b) for a, b in held), seed
    return bool(plans(fast))


def test_tangles():
    assert sum(tangle(seed) for seed in range(40)) > 20


class Keeps(nn.Module):
    def forward(self, x):
        print(end="")  # can't be followed
        KEPT.append(x)
        return x * 2


KEPT: list[torch.Tensor] = []


def test_what_a_module_keeps_is_not_overwritten():
    net = randomise(nn.Sequential(block(3, 8), block(8, 8), Keeps(), block(8, 8), block(8, 8)))
    fast = pk.optimize(net)
    KEPT.clear()
    inputs = [torch.randn(1, 3, 9, 9) for _ in range(5)]
    with torch.no_grad():
        for x in inputs:
            fast(x)
        for x, got in zip(inputs, list(KEPT), strict=True):
            close(got, net[:2](x))


def call_again(module, args, result):
    """A hook that calls the model that it is in, for two calls deep."""
    fast, net, inputs = HOOKED
    for x, then in itertools.pairwise(inputs):
        if relative_l2(args[0], net[:2](x)) < 1e-4:
            close(fast(then), net(then))


HOOKED: list = []


@torch.no_grad()
def test_a_call_within_a_call_has_an_arena_of_its_own():
    net = randomise(nn.Sequential(block(3, 16), block(16, 16), nn.Sequential(nn.AvgPool2d(3, 1, 1)), block(16, 16)))
    fast = pk.optimize(net)
    inputs = [torch.full((1, 3, 9, 9), float(i)) for i in (3, 1, 2)]
    HOOKED[:] = fast, net, inputs
    fast[2].register_forward_hook(call_again)
    for _ in range(4):
        close(fast(inputs[0]), net(inputs[0]))
    assert [len(p.idle) for p in plans(fast)] == [3]
    HOOKED.clear()


@torch.no_grad()
def test_a_call_that_fails_does_no_harm():
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = block(3, 8), block(8, 8)

        def forward(self, x, i):
            return self.b(self.a(x).index_select(1, i))

    net = randomise(Picks())
    x, i = torch.randn(1, 3, 9, 9), torch.arange(8)
    fast = warm(net, x, i)
    assert plans(fast)
    with pytest.raises(RuntimeError, match="out of DATA bounds"):
        fast(x, i + 1)
    for _ in range(4):
        close(fast(x, i.flip(0)), net(x, i.flip(0)))


@torch.no_grad()
def test_threads_share_no_arena():
    net = randomise(Net())
    fast = warm(net, torch.randn(1, 3, 9, 9))
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for i in range(20):
            x = torch.randn(1, 3, 9 + (seed + i) % 3, 9, generator=generator)
            with torch.no_grad():
                if relative_l2(fast(x), net(x)) > 1e-4:
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert all(len(p.idle) + len(p.aged) <= _arena._MOST_IDLE for p in plans(fast))


@torch.no_grad()
def test_sizes_that_depend_on_values_are_not_planned():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = block(3, 8), block(8, 8), block(8, 8)

        def forward(self, x):
            y = self.a(x)
            y = y[y.mean((1, 2, 3)) > x[0].mean()]
            return self.c(self.b(y))

    net = randomise(Chosen())
    fast = pk.optimize(net)
    for seed in range(6):
        x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
        got, expected = fast(x), net(x)
        assert got.shape == expected.shape
        assert not got.numel() or relative_l2(got, expected) < 1e-4
    assert all(len(p.keys) == 1 for p in plans(fast))


def test_arenas_that_wait_for_long_are_given_back():
    fast = warm(randomise(Net()), image())
    (plan,) = plans(fast)
    assert kept(fast) == plan.nbytes
    plan.sweep()
    assert kept(fast) == plan.nbytes  # used since the last time, perhaps
    with torch.no_grad():
        fast(image())
    plan.sweep()
    assert kept(fast) == plan.nbytes
    plan.sweep()
    assert kept(fast) == 0
    with torch.no_grad():
        fast(image())
    assert kept(fast) == plan.nbytes


def test_few_bytes_wait(monkeypatch):
    net = randomise(Net())
    fast = pk.optimize(net)
    one = sum(p.nbytes for p in plans(warm(net, torch.randn(1, 3, 40, 40))))
    monkeypatch.setattr(_arena, "_MOST_IDLE_BYTES", 3 * one)
    with torch.no_grad():
        for h in range(8, 40):
            x = torch.randn(1, 3, h, 40)
            for _ in range(3):
                close(fast(x), net(x))
    assert len(plans(fast)) > 20
    assert 0 < kept(fast) <= 3 * one


def test_arenas_go_with_the_model():
    fast = warm(randomise(Net()), image())
    mine = set(map(id, plans(fast)))
    assert mine
    del fast
    gc.collect()
    assert not mine & set(map(id, _arena._plans))


_IN_A_NEW_PROCESS = """
import os, resource, torch
torch.set_num_threads(1)
from tests.optimize.test_memory import *

@torch.no_grad()
def main():
    net = randomise(nn.Sequential(block(3, 32), *(block(32, 32) for _ in range(4)), nn.AdaptiveAvgPool2d(1)))
    x = torch.randn(1, 3, 96, 96)
    fast = warm(net, x)
    expected = fast(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        fast(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 20, faults
    child = os.fork()
    if child == 0:
        good = torch.equal(fast(x), expected) and relative_l2(fast(x + 1), net(x + 1)) < 1e-4
        os._exit(0 if good else 1)
    fast(x - 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(fast(x), expected)

main()
"""


def test_no_page_faults_and_forks():
    # Eager's allocations are then pages fresh from the system: nothing is recycled by chance.
    settings = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", _IN_A_NEW_PROCESS]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
