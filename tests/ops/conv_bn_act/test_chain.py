"""Several bound convolutions as one call, each of what the one before it gave."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pykernels.ops import ACTIVATIONS
from tests.harness import FORMATS, native, normal

pytestmark = native

OPS = torch.ops.pykernels
NO_ROOM = torch.empty(0, dtype=torch.uint8)


def bind(k, c, size, *, stride=1, groups=1, activation="none", seed=0, dtype=torch.float32):
    weight = normal(k, c // groups, size, size, seed=seed, dtype=dtype) / (c // groups * size**2) ** 0.5
    pad = size // 2
    geometry = ([stride, stride], [pad] * 4, [1, 1], groups)
    packed = OPS.conv_pack(weight, groups, 0)
    vectors = normal(k, seed=seed + 1), normal(k, seed=seed + 2)
    return OPS.conv_bind(packed, weight.shape, *vectors, *geometry, ACTIVATIONS.index(activation), 0.0)


def inverted_residual(dtype=torch.float32, memory_format=torch.channels_last):
    """What MobileNetV2 is made of: x, the convolutions, and the residual of each."""
    bound = [
        bind(144, 24, 1, activation="relu6", seed=10, dtype=dtype),
        bind(144, 144, 3, groups=144, activation="relu6", seed=20, dtype=dtype),
        bind(24, 144, 1, seed=30, dtype=dtype),
    ]
    x = normal(1, 24, 60, 50, dtype=dtype).to(memory_format=memory_format)
    return x, bound, [None, None, x]


def one_by_one(x, bound, residuals):
    made = []
    for b, residual in zip(bound, residuals, strict=True):
        x = OPS.conv_bn_act_bound(x, b, residual)
        made.append(x)
    return made


def run(x, bound, residuals, out, kept, workspace=NO_ROOM):
    OPS.conv_bn_act_chain_out([x, *out[:-1]], bound, residuals, out, kept, [], [], workspace)


@pytest.fixture
def one_thread():
    """The strips of many threads are too small for bands."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kept", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
def test_equals_one_by_one(kept, memory_format, dtype):
    x, bound, residuals = inverted_residual(dtype, memory_format)
    expected = one_by_one(x, bound, residuals)
    out = [torch.full_like(y, 7) for y in expected]
    run(x, bound, residuals, out, kept)
    assert torch.equal(out[2], expected[2])
    assert all(torch.equal(y, e) for y, e, wanted in zip(out, expected, kept, strict=True) if wanted)


def test_goes_by_bands_of_rows(one_thread):
    x, bound, residuals = inverted_residual()
    expected = one_by_one(x, bound, residuals)
    out = [torch.full_like(y, 7) for y in expected]
    run(x, bound, residuals, out, [0, 0, 0], torch.empty(1 << 20, dtype=torch.uint8))
    assert torch.equal(out[2], expected[2])
    assert torch.all(out[1] == 7)  # the depthwise one's results are never all there


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [3, 8])  # by direct.cpp, narrow.cpp
@pytest.mark.parametrize("kept", [[0, 0, 0], [0, 1, 0]])
def test_groups_go_by_bands_of_rows(kept, groups, stride, one_thread):
    bound = [
        bind(96 + 32 * (groups == 8), 24, 1, activation="relu", seed=10),
        bind(*(96 + 32 * (groups == 8),) * 2, 3, stride=stride, groups=groups, activation="relu", seed=20),
        bind(24, 96 + 32 * (groups == 8), 1, seed=30),
    ]
    x, residuals = normal(2, 24, 61, 50).to(memory_format=torch.channels_last), [None] * 3
    expected = one_by_one(x, bound, residuals)
    out = [torch.full_like(y, 7) for y in expected]
    run(x, bound, residuals, out, kept, torch.empty(1 << 20, dtype=torch.uint8))
    assert torch.equal(out[2], expected[2])
    assert torch.equal(out[1], expected[1]) if kept[1] else torch.all(out[1] == 7)
    assert torch.any(out[0] == 7)  # a band is less than all


def squeeze(c, m, seed=0, bias=True, dtype=torch.float32):
    weights = normal(m, c, 1, 1, seed=seed) / c**0.5, normal(c, m, seed=seed + 1) / m**0.5
    biases = (normal(m, seed=seed + 2), normal(c, seed=seed + 3)) if bias else (None, None)
    made = weights[0], biases[0], weights[1], biases[1]
    return [None if t is None else t.to(dtype) for t in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("in_place", [True, False])
def test_squeezes_between(in_place, memory_format, dtype):
    x, (a, b, c), _ = inverted_residual(dtype, memory_format)
    first, second = squeeze(144, 12, dtype=dtype), squeeze(24, 3, seed=7, bias=False, dtype=dtype)
    codes = [ACTIVATIONS.index(name) for name in ("relu", "sigmoid", "silu", "hardsigmoid")]
    y = one_by_one(x, [a, b], [None, None])
    gated = OPS.squeeze_excite(y[1], *first, *codes[:2])
    z = OPS.conv_bn_act_bound(gated, c, x)
    expected = OPS.squeeze_excite(z, *second, *codes[2:])
    made = [torch.full_like(t, 7) for t in (*y, gated, z, expected)]
    if in_place:
        made[2], made[4] = made[1], made[3]
    before = x.clone()
    arguments = [a, b, None, c, None], [None, None, None, x, None], made, [0, 0, 1, 0, 1]
    OPS.conv_bn_act_chain_out([x, *made[:-1]], *arguments, [*first, *second], codes, NO_ROOM)
    assert torch.equal(made[2], gated)
    assert torch.equal(made[4], expected)
    assert torch.equal(x, before)


def test_operations_of_a_chain():
    x, (a, b, c), residuals = inverted_residual()
    y = one_by_one(x, [a, b, c], residuals)
    codes = [ACTIVATIONS.index("relu"), ACTIVATIONS.index("sigmoid")]
    with FlopCounterMode(display=False) as counter:
        arguments = [a, b, None, c], [None, None, None, x], [y[0], y[1], y[1], y[2]], [0, 0, 1, 1]
        OPS.conv_bn_act_chain_out([x, y[0], y[1], y[1]], *arguments, squeeze(144, 12), codes, NO_ROOM)
    pixels = 60 * 50
    assert counter.get_total_flops() == 2 * pixels * (24 * 144 + 9 * 144 + 144 * 24) + 4 * 144 * 12


def test_longer_chains():
    x, bound, residuals = inverted_residual()
    bound, residuals = bound * 3, residuals * 3
    expected = one_by_one(x, bound, residuals)
    out = [torch.empty_like(y) for y in expected]
    run(x, bound, residuals, out, [0, 0, 1] * 3)
    assert all(torch.equal(out[i], expected[i]) for i in (2, 5, 8))


def test_opcheck():
    x, bound, residuals = inverted_residual()
    out = one_by_one(x, bound, residuals)
    torch.library.opcheck(
        OPS.conv_bn_act_chain_out.default, ([x, *out[:2]], bound, residuals, out, [1, 1, 1], [], [], NO_ROOM)
    )


def test_arguments_are_checked():
    x, bound, residuals = inverted_residual()
    out = one_by_one(x, bound, residuals)
    none = [0, 0, 0]
    for arguments, message in (
        ((x, [], [], [], [], NO_ROOM), "bound_convs: expected at least one"),
        ((x, bound, residuals[:2], out, none, NO_ROOM), "residual: expected 3 of them and of kept, got 2 and 3"),
        ((x, bound, residuals, out, none[:1], NO_ROOM), "residual: expected 3 of them and of kept, got 3 and 1"),
        ((x, bound, residuals, out[:2], none, NO_ROOM), "out: expected 3 tensors, got 2"),
        ((x, bound, residuals, [out[0], out[1], out[2][:, :5]], none, NO_ROOM), "out: expected shape"),
        ((x, [bound[0], bound[0], bound[2]], residuals, out, none, NO_ROOM), "x: expected 24 channels"),
        ((x, bound, [None, None, x[:, :5]], out, none, NO_ROOM), "residual: expected shape"),
        ((x, bound, residuals, out, none, NO_ROOM.float()), "workspace: expected the contiguous 1-D torch.uint8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)
    weights, (relu, sigmoid) = squeeze(144, 12), map(ACTIVATIONS.index, ("relu", "sigmoid"))
    for squeezes, activations, message in (
        (weights[:3], [relu, sigmoid], "squeezes: expected 4 and 2 for each of 1 without a bound_conv, got 3 and 2"),
        (weights, [relu], "squeezes: expected 4 and 2 for each of 1 without a bound_conv, got 4 and 1"),
        ([None, *weights[1:]], [relu, sigmoid], "squeezes: expected weights, got None"),
        (squeeze(24, 12), [relu, sigmoid], "reduce_weight: expected shape"),
        (weights, [relu, 99], "activation: expected a code"),
    ):
        given = [bound[0], None], [None, None], [out[0], out[0]], [0, 1]
        with pytest.raises(RuntimeError, match=message):
            OPS.conv_bn_act_chain_out([x, out[0]], *given, squeezes, activations, NO_ROOM)
    with pytest.raises(RuntimeError, match="x: expected 3 tensors, got 1"):
        OPS.conv_bn_act_chain_out([x], bound, residuals, out, none, [], [], NO_ROOM)
