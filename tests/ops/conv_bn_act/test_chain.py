"""Several bound convolutions as one call, each of what the one before it gave."""

from __future__ import annotations

import pytest
import torch

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
