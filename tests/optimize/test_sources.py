"""What happens to a model's tensors after it is optimised is seen by its programs."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pykernels as pk
from pykernels import _native
from pykernels.optimize import _program
from pykernels.optimize._program import _counters
from pykernels.optimize._sources import Sources
from pykernels.optimize._watch import Watch
from tests.harness import relative_l2
from tests.optimize.models import agree, image, programs, randomise


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@torch.no_grad()
def _step(net: nn.Sequential) -> None:
    net[3].weight.requires_grad_(True).grad = torch.ones_like(net[3].weight)
    torch.optim.SGD([net[3].weight], lr=1.0, fused=True).step()
    net[3].weight.requires_grad_(False)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "written to": lambda net: net[0].weight.fill_(1),
    "other data": lambda net: setattr(net[0].weight, "data", torch.randn(3, 3, 1, 1)),
    "its data transposed": lambda net: setattr(net[0].weight, "data", net[0].weight.data.transpose(0, 1)),
    "its data, a part": lambda net: setattr(net[4].running_var, "data", net[4].running_var.data[:1].expand(4)),
    "another parameter": lambda net: setattr(net[3], "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
    "statistics": lambda net: net[1].running_mean.add_(1),
    "loaded": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "a fused optimizer": _step,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen(name):
    model = randomise(_net())
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(3):
            fast(image())
        before = fast(image())
        CHANGES[name](fast)
        now = copy.deepcopy(model)  # what the twin shares has changed here as well, what was set on it has not
        now.load_state_dict(fast.state_dict())
    agree(fast, now, image())
    assert not torch.equal(fast(image()), before)


@pytest.mark.parametrize("which", ["original", "twin"])
@pytest.mark.parametrize("gradients", [False, True])
def test_statistics_that_training_moves_are_seen(which, gradients):
    model = randomise(_net())
    fast = pk.optimize(model)
    for turn in range(3):
        agree(fast, model, image())
        with torch.set_grad_enabled(gradients):
            trained = model if which == "original" else fast[1]
            trained.train()
            trained(image() * (turn + 2))
            trained.eval()
    agree(fast, model, image())


def test_packed_blocks_see_statistics_that_training_moves():
    conv, bn = nn.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval()
    block = pk.nn.ConvBNAct2d.from_torch(conv, bn, "none").eval()
    with torch.no_grad():
        block(image()), block(image())
        bn.train()
        bn(conv(image()) * 3 + 1)
        bn.eval()
        assert relative_l2(block(image()), bn(conv(image()))) < 1e-5


def test_notes_of_tensors():
    ops, forget = torch.ops.pykernels, _native.guard().forget_note
    t = torch.randn(3, 3)
    note = ops.note_tensors([t, torch.empty(0)])
    assert ops.are_as_noted(note)
    t.add_(1)
    assert ops.are_as_noted(note), "of where a tensor's elements are, not of what they are"
    t.data = t.data.t()
    assert not ops.are_as_noted(note)
    forget(note)
    forget(note)
    for unknown in (note, 0, -1, 2**62):
        with pytest.raises(RuntimeError, match=f"are_as_noted: note: expected what note_tensors gave.* got {unknown}"):
            ops.are_as_noted(unknown)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_no_trace_sees_a_program_go(pre_dispatch):
    sources = [Sources([torch.ones(2)])]

    def forward(x):
        sources.clear()  # as the garbage collector may, at any time
        return x + 1

    graph = make_fx(forward, pre_dispatch=pre_dispatch)(torch.ones(2)).graph
    assert [n.name for n in graph.nodes if n.op == "call_function"] == ["add"]


def test_norms_on_a_gpu_are_told_by_their_counters():
    norms = nn.Sequential(
        nn.BatchNorm2d(3, device="meta"), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False, device="meta")
    )
    watch = Watch()
    watch.add(norms)
    found = _counters(watch)
    assert list(found) == [id(norms[0].running_mean)]
    assert found[id(norms[0].running_mean)] is norms[0].num_batches_tracked


@torch.no_grad()
def test_a_step_of_a_counter_packs_anew(monkeypatch):
    """On a GPU elements are not compared: a batch norm's own writes are told by its counter."""
    monkeypatch.setattr(_program, "_counters", lambda watch: {id(fast[1].running_mean): fast[1].num_batches_tracked})
    model = randomise(_net())
    fast = pk.optimize(model)
    for _ in range(3):
        fast(image())
    (program,) = programs(fast)
    before = program.current()
    assert program.current() is before
    model[1].num_batches_tracked.add_(1)
    now = program.current()
    assert now is not before
    assert now.convs[0] is not before.convs[0]
    assert now.convs[1] is before.convs[1]


def _swap_all(model):
    for p, q in zip(model.parameters(), copy.deepcopy(model).double().parameters(), strict=True):
        torch.utils.swap_tensors(p, q)
    for b, c in zip(model.buffers(), copy.deepcopy(model).double().buffers(), strict=True):
        torch.utils.swap_tensors(b, c)


def _part_by_part(model):
    for m in model:
        m.double()


def _load_parts(model):
    for m in model:
        m.load_state_dict(m.double().state_dict())


SWAPS = {
    "double": lambda m: m.double(), "load": lambda m: m.load_state_dict(m.double().state_dict()),
    "of each part": _part_by_part, "load each part": _load_parts, "by itself": _swap_all,
    "of pieces": lambda m: (m[:2].double(), m[2:].double()),
    "from outside": lambda m: nn.Sequential(nn.Sequential(m)).double(),
}  # fmt: skip


@pytest.mark.parametrize("change", SWAPS.values(), ids=SWAPS)
def test_tensors_may_be_swapped(change):
    gc.disable()
    model = randomise(_net())
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(3):
            fast(image())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        change(fast)  # whether or not garbage was collected
    finally:
        gc.enable()
        torch.__future__.set_swap_module_params_on_conversion(False)
    agree(fast, copy.deepcopy(model).double(), image().double())


@torch.no_grad()
def test_a_swapped_tensor_counts_at_the_next_call():
    model = randomise(_net())
    fast = pk.optimize(model)
    agree(fast, model, image())
    other = copy.deepcopy(model)
    for i in (0, 1):
        weight = nn.Parameter(torch.rand_like(model[i].weight))
        other[i].weight.copy_(weight)
        torch.utils.swap_tensors(fast[i].weight, weight)
    agree(fast, other, image())
    torch.utils.swap_tensors(fast[1].running_mean, torch.ones_like(other[1].running_mean))
    other[1].running_mean.fill_(1)
    agree(fast, other, image())


@torch.no_grad()
def test_what_is_packed_alone_is_not_swapped():
    model = randomise(_net())
    fast = pk.optimize(model, keep="packed")
    agree(fast, model, image())
    with pytest.raises(RuntimeError, match=r'0\.weight: .* got swap_tensors; with keep="packed"'):
        torch.utils.swap_tensors(fast[0].weight, nn.Parameter(torch.ones(1)))
    agree(fast, model, image())
