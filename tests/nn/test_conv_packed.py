"""The packed weights of ConvBNAct2d: made once where no gradient is recorded, never stale, never copied."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.harness import forced_isa, host_isas, native
from tests.nn.blocks import OPTIONS, assert_near, assert_same, make, plain


@native
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_where_no_gradient_is_recorded(options, x):
    block = make(**options)
    block(x)
    assert block._pack is None
    with torch.no_grad():
        block(x)
    assert (block._pack is not None) == options.get("track_running_stats", True)
    block.repack()
    assert block._pack is None
    with torch.inference_mode():
        block(x)
    assert (block._pack is not None) == options.get("track_running_stats", True)


@native
def test_packed_once(x):
    block = make()
    with torch.no_grad():
        block(x)
        pack = block._pack
        block(x, torch.zeros(2, 16, 9, 10))
        block(x.to(memory_format=torch.channels_last))
        block(x[0])
        block.eval()
        block(x)
    assert block._pack is pack


@native
def test_frozen_parameters_need_no_no_grad(x):
    block = make().requires_grad_(False)
    block(x)
    assert block._pack is not None
    assert block(x.clone().requires_grad_()).requires_grad
    assert block(x, torch.zeros(2, 16, 9, 10, requires_grad=True)).requires_grad


def new_values(block):
    generator = torch.Generator().manual_seed(5)
    return {
        k: torch.rand(v.shape, generator=generator) + 0.5 if v.is_floating_point() else v
        for k, v in block.state_dict().items()
    }


def set_data(owner, name):
    tensor = getattr(owner, name)
    tensor.data = torch.rand_like(tensor) + 0.5


def optimizer_step(block):
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    with torch.enable_grad():
        block(torch.ones(1, 8, 4, 4)).sum().backward()
    optimizer.step()


CHANGES = {
    "weight in place": lambda b: b.conv.weight.mul_(2),
    "bias in place": lambda b: b.conv.bias.add_(1),
    "mean in place": lambda b: b.bn.running_mean.add_(1),
    "var in place": lambda b: b.bn.running_var.mul_(4),
    "bn weight in place": lambda b: b.bn.weight.neg_(),
    "bn bias in place": lambda b: b.bn.bias.add_(1),
    "weight replaced": lambda b: setattr(b.conv, "weight", nn.Parameter(torch.randn(16, 8, 3, 3))),
    "weight of another size": lambda b: setattr(b.conv, "weight", nn.Parameter(torch.randn(16, 8, 5, 5))),
    "bias removed": lambda b: setattr(b.conv, "bias", None),
    "mean replaced": lambda b: setattr(b.bn, "running_mean", torch.randn(16)),
    "weight.data": lambda b: set_data(b.conv, "weight"),
    "bias.data": lambda b: set_data(b.conv, "bias"),
    "bn weight.data": lambda b: set_data(b.bn, "weight"),
    "load_state_dict": lambda b: b.load_state_dict(new_values(b)),
    "load_state_dict, assign": lambda b: b.load_state_dict(new_values(b), assign=True),
    "vector_to_parameters": lambda b: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(b.parameters()) * 2, b.parameters()
    ),
    "rounded": lambda b: b.bfloat16().float(),
    "conv rounded": lambda b: b.conv.bfloat16().float(),
    "bn rounded": lambda b: b.bn.bfloat16().float(),
    "optimizer": optimizer_step,
    "another conv": lambda b: setattr(b, "conv", nn.Conv2d(8, 16, 3, bias=False)),
    "another bn": lambda b: setattr(b, "bn", make(seed=3).bn),
    "bn removed": lambda b: setattr(b, "bn", None),
    "stride": lambda b: setattr(b.conv, "stride", (2, 2)),
    "padding": lambda b: setattr(b.conv, "padding", (2, 0)),
    "eps": lambda b: setattr(b.bn, "eps", 0.5),
    "activation": lambda b: setattr(b, "activation", "gelu"),
    "trained": lambda b: (b.train()(torch.randn(4, 8, 6, 6)), b.eval()),
    "parametrized": lambda b: parametrizations.weight_norm(b.conv),
}


@pytest.mark.parametrize("change", CHANGES)
def test_packed_weights_are_never_stale(change, x):
    block = make(bias=True)
    with torch.no_grad():
        before = block(x)
        CHANGES[change](block)
        after = block(x)
        # Of new weights the sums are larger, and so is what rounding takes from them.
        assert_same(block, x, growth=8)
    if change != "parametrized":
        assert before.shape != after.shape or not torch.equal(before, after)


def test_data_in_place_needs_repack(x):
    block = make()
    with torch.no_grad():
        block(x)
        block.conv.weight.data.mul_(2)
        block.repack()
        assert_same(block, x)


@native
def test_another_isa_packs_again(x):
    block = make()
    with torch.no_grad():
        for isa in (*host_isas(), *host_isas()):
            with forced_isa(isa):
                assert_same(block, x)
                assert_same(block, x)
                assert block._pack is not None


@native
def test_no_pack_mixes_isas(x):
    first, *others = host_isas()
    block, other_shape = make(), torch.randn(1, 8, 64, 64)
    with torch.no_grad():
        for isa in (first, *others):
            with forced_isa(first):
                assert_same(block, x)
            with forced_isa(isa):
                assert_same(block, other_shape)
            with forced_isa(first):
                assert_same(block, other_shape)


@native
def test_parameters_made_in_inference_mode_are_packed_and_followed(x):
    with torch.inference_mode():
        block = make()
        block(x)
        pack = block._pack
        block(x)
        assert pack is not None
        assert block._pack is pack
        for t in (block.conv.weight, block.bn.running_var, block.bn.bias):
            t.mul_(2)
            assert_near(block, block(x), plain(block, x))
    with torch.no_grad():
        assert_near(block, block(x), plain(block, x))


def test_state_dict_has_no_packed_weights(x):
    block = make()
    keys, buffers = list(block.state_dict()), len(list(block.buffers()))
    with torch.no_grad():
        block(x)
    assert (list(block.state_dict()), len(list(block.buffers()))) == (keys, buffers)


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_are_without_packed_weights_and_work(copier, x):
    block = make(bias=True, activation="leaky_relu", negative_slope=0.3)
    with torch.no_grad():
        y = block(x)
        twin = copier(block)
        assert twin._pack is None
        assert torch.equal(twin(x), y)
        if copier is not copy.copy:
            twin.conv.weight.mul_(2)
        assert torch.equal(block(x), y)
        assert_same(twin, x)


def test_torch_save(x):
    block = make()
    with torch.no_grad():
        y = block(x)
        buffer = io.BytesIO()
        torch.save(block, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


def test_eight_threads(x):
    with torch.no_grad():
        expected = make()(x)
        for _ in range(5):
            block = make()
            with ThreadPoolExecutor(8) as pool:
                for y in pool.map(torch.no_grad()(lambda _, b=block: b(x)), range(32)):
                    assert torch.equal(y, expected)


def test_repeats_to_the_bit(x):
    block = make()
    with torch.no_grad():
        y = block(x)
        for _ in range(3):
            block.repack()
            assert torch.equal(block(x), y)
