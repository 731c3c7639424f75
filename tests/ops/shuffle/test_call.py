"""The shuffles: torch's values, gradients, the calls of several tensors, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pykernels.ops import channel_shuffle, pixel_shuffle, pixel_unshuffle
from tests.harness import (
    FORMATS,
    assert_one_graph,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    native,
    normal,
)

OPS = torch.ops.pykernels


def call(kind, k):
    return torch.tensor([kind, k])


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_they_are_torchs(layout):
    x = normal(2, 36, 6, 12, layout=layout)
    for ours, theirs, k in (
        (channel_shuffle, F.channel_shuffle, 4),
        (pixel_shuffle, F.pixel_shuffle, 3),
        (pixel_unshuffle, F.pixel_unshuffle, 3),
    ):
        got, expected = ours(x, k), theirs(x, k)
        assert torch.equal(got, expected)
        assert got.stride() == x.new_empty(got.shape).to(memory_format=layout).stride()
        assert torch.equal(ours(x, k, backend="reference"), expected)


@native
@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_several_tensors_are_joined(layout, dtype, groups):
    other = next(f for f in FORMATS if f != layout)
    for isa in host_isas():
        with forced_isa(isa):
            pieces = [normal(2, 37, 4, 5, layout=layout, dtype=dtype, seed=i) for i in range(groups)]
            pieces[0] = torch.cat((pieces[0], pieces[0]), 1)[:, 37:]
            pieces[-1] = pieces[-1].contiguous(memory_format=other)
            expected = F.channel_shuffle(torch.cat(pieces, 1), groups)
            assert torch.equal(OPS.shuffle_bound(pieces, call(0, groups)), expected)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_shuffle_out_writes_where_it_is_told(layout):
    x = normal(2, 12, 4, 6, layout=layout)
    for kind, k, f in ((0, 3, F.channel_shuffle), (1, 2, F.pixel_shuffle), (2, 2, F.pixel_unshuffle)):
        expected = f(x, k)
        for memory_format in FORMATS:
            n, c, h, w = expected.shape
            wide = torch.full((n, c + 4, h, w), 7.0).contiguous(memory_format=memory_format)
            OPS.shuffle_out([x], call(kind, k), wide[:, 1 : 1 + c])
            assert torch.equal(wide[:, 1 : 1 + c], expected)
            assert (wide[:, :1] == 7).all()
            assert (wide[:, 1 + c :] == 7).all()


@native
def test_shuffle_out_refuses_what_does_not_fit():
    x, out = normal(1, 4, 6, 6), torch.empty(1, 4, 6, 6)
    for bad, words in (
        (([], call(0, 2), out), "x: expected a tensor"),
        (([x], call(0, 2).float(), out), "call: expected 2 int64 numbers"),
        (([x], call(3, 2), out), "kind: expected a code"),
        (([x], call(0, 0), out), "k: expected an int of 1 to 64, got 0"),
        (([x], call(0, 65), out), "k: expected an int of 1 to 64, got 65"),
        (([x], call(1, 9), out), "k: expected a factor of 1 to 8, got 9"),
        (([x], call(0, 3), out), "x: expected channels that 3 groups divide, got 4"),
        (([x], call(1, 3), out), "x: expected channels that 9 divides, got 4"),
        (([x], call(2, 4), out), "x: expected H and W that 4 divides, got 6 and 6"),
        (([x, x, x], call(0, 2), out), "x: expected one tensor, or one for each group, got 3"),
        (([x, x], call(1, 2), out), "x: expected one tensor"),
        (([x, x[:, :2]], call(0, 2), out), r"x: expected shape \(1, 4, 6, 6\)"),
        (([x, x.bfloat16()], call(0, 2), out), "x: expected torch.float32"),
        (([x[0]], call(0, 2), out), "x: expected 4 dimensions"),
        (([x.int()], call(0, 2), out), "x: expected torch.float32 or torch.bfloat16"),
        (([x], call(0, 2), out[..., :5]), r"out: expected shape \(1, 4, 6, 6\)"),
        (([x], call(0, 2), out.bfloat16()), "out: expected torch.float32"),
        (([x], call(0, 2), torch.empty(1, 1, 1, 6).expand(1, 4, 6, 6)), "out: expected elements that do not overlap"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.shuffle_out: {words}"):
            OPS.shuffle_out(*bad)


@native
def test_threads_change_nothing():
    x = normal(2, 64, 40, 42)
    for t in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_threads_change_nothing(
            lambda t=t: [channel_shuffle(t, 4), pixel_shuffle(t, 2), pixel_unshuffle(t, 2)], (1, 2, 3)
        )


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_gradients(layout, backend):
    x = normal(2, 36, 6, 12, layout=layout).requires_grad_()
    for ours, theirs, k in (
        (channel_shuffle, F.channel_shuffle, 4),
        (pixel_shuffle, F.pixel_shuffle, 3),
        (pixel_unshuffle, F.pixel_unshuffle, 3),
    ):
        found = []
        for f in (lambda x, f=ours, k=k: f(x, k, backend=backend), lambda x, f=theirs, k=k: f(x, k)):
            y = f(x)
            first = torch.autograd.grad((y.sin() * y.detach().cos()).sum(), x, create_graph=True)[0]
            found.append((first, torch.autograd.grad(first.square().sum(), x)[0]))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout, requires_grad):
    x = normal(2, 8, 6, 4, layout=layout).requires_grad_(requires_grad)
    for kind in range(3):
        opcheck(OPS.shuffle.default, (x, kind, 2))
        if not requires_grad:
            y = OPS.shuffle(x, kind, 2)
            opcheck(OPS.shuffle_out.default, ([x], call(kind, 2), torch.empty_like(y)))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        return channel_shuffle(x, 2) + 1, pixel_shuffle(x, 2), pixel_unshuffle(x, 2)

    def calls():
        for n, h in ((2, 8), (3, 10), (5, 6)):
            x = normal(n, 4, h, 12, layout=layout)
            torch._dynamo.maybe_mark_dynamic(x, (0, 2))
            yield (x,)

    assert_one_graph(f, calls(), dynamic=None)


def test_other_dtypes_and_devices_run_as_torchs():
    x = normal(1, 4, 6, 6, dtype=torch.float64)
    assert torch.equal(pixel_shuffle(x, 2), F.pixel_shuffle(x, 2))
    with pytest.raises(RuntimeError, match="pixel_shuffle: backend='triton' cannot run: torch's own op runs"):
        pixel_shuffle(x, 2, backend="triton")


X = torch.zeros(1, 4, 6, 9)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (channel_shuffle, (X, 3), ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (channel_shuffle, (X, 0), ValueError, "groups: expected an int >= 1"),
        (channel_shuffle, (X, 2.0), TypeError, "groups: expected an int"),
        (pixel_shuffle, (X, 4), ValueError, "upscale_factor: expected a number whose square divides the 4 channels"),
        (pixel_unshuffle, (X, 2), ValueError, "downscale_factor: expected a divisor of H and W, 6 and 9, got 2"),
        (pixel_unshuffle, (X[0], 3), ValueError, r"x: expected \(N, C, H, W\)"),
        (pixel_shuffle, (X.int(), 2), TypeError, "x: expected a floating dtype"),
    ],
)
def test_bad_arguments_are_named(function, arguments, error, words):
    with pytest.raises(error, match=f"pykernels.{function.__name__}: {words}"):
        function(*arguments)


@pytest.mark.parametrize("function", [channel_shuffle, pixel_shuffle, pixel_unshuffle])
def test_an_empty_batch_in_any_layout(function):
    x = torch.randn(0, 8, 16, 16)[:, :, ::2, ::2]
    assert function(x, 2).shape[0] == 0
