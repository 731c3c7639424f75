"""The packed op with all but x and the residual given beforehand, and into memory of the caller's."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.conv_bn_act.autograd import packed_at
from tests.harness import FORMATS, native, normal

pytestmark = native

OPS = torch.ops.pykernels
GEOMETRY = ([2, 1], [1, 2, 1, 1], [1, 2], 2)


def tensors(dtype=torch.float32):
    return (
        normal(2, 8, 7, 9, dtype=dtype),
        normal(6, 4, 3, 3, seed=1, dtype=dtype),
        normal(6, seed=2),
        normal(6, seed=3),
    )


def bind(weight, scale, shift):
    packed = OPS.conv_pack(weight, GEOMETRY[3], 0)
    return OPS.conv_bind(packed, weight.shape, scale, shift, *GEOMETRY, 2, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("vectors", ["scale and shift", "scale", "shift", "neither"])
def test_equals_the_packed_op(vectors, memory_format, dtype):
    x, weight, *both = tensors(dtype)
    x = x.to(memory_format=memory_format)
    scale, shift = (v if name in vectors else None for v, name in zip(both, ("scale", "shift"), strict=True))
    packed = OPS.conv_pack(weight, GEOMETRY[3], 0)
    for residual in (None, normal(2, 6, 4, 8, seed=4, dtype=dtype)):
        expected = OPS.conv_bn_act_packed(x, packed, weight.shape, scale, shift, residual, *GEOMETRY, 2, 0.25)
        y = OPS.conv_bn_act_bound(x, bind(weight, scale, shift), residual)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vectors", ["scale and shift", "shift", "neither"])
@pytest.mark.parametrize("algorithm", [0, 1])
def test_packing_in_place_gives_the_same_bytes(algorithm, vectors, dtype):
    call = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    weight, *both = normal(16, 32, 3, 3, seed=1, dtype=dtype), normal(16, seed=2), normal(16, seed=3)
    scale, shift = (v if name in vectors else None for v, name in zip(both, ("scale", "shift"), strict=True))
    slopes = None if vectors == "shift" else normal(1, 16, seed=4)
    activation = 0 if slopes is None else ACTIVATIONS.index("leaky_relu")
    packed = OPS.conv_pack(weight, 1, algorithm)
    expected = OPS.conv_bind(packed, weight.shape, scale, shift, *call, activation, 0.25, False, slopes)
    bound = OPS.conv_pack_bound(weight, algorithm, scale, shift, *call, activation, 0.25, False, slopes)
    assert torch.equal(bound, expected)
    assert torch.equal(bound[packed_at(16, scale, shift, slopes) :], packed)


def test_opcheck():
    x, weight, scale, shift = tensors()
    packed = OPS.conv_pack(weight, GEOMETRY[3], 0)
    torch.library.opcheck(OPS.conv_pack_bound.default, (weight, 0, scale, shift, *GEOMETRY, 2, 0.25))
    torch.library.opcheck(OPS.conv_bind.default, (packed, weight.shape, scale, shift, *GEOMETRY, 2, 0.25))
    torch.library.opcheck(OPS.conv_bn_act_bound.default, (x, bind(weight, scale, shift), None))


def test_sizes_of_zero_have_torchs_strides():
    _, weight, scale, shift = tensors()
    y = OPS.conv_bn_act_bound(torch.randn(0, 8, 7, 9), bind(weight, scale, shift), None)
    assert y.stride() == torch.empty(0, 6, 4, 8).stride()


def altered(blob, at, value):
    """``blob`` with another 8 bytes at ``at``."""
    blob = blob.clone()
    blob[at : at + 8] = torch.tensor([value]).view(torch.uint8)
    return blob


@pytest.mark.parametrize("length", [0, 100, 192, 300, 448])
def test_a_part_is_refused(length):
    x, weight, scale, shift = tensors()
    with pytest.raises(RuntimeError, match=r"pykernels\.conv_bn_act_bound: bound_conv: "):
        OPS.conv_bn_act_bound(x, bind(weight, scale, shift)[:length], None)


# The magic number and the version; c; then k, r, s, strides, padding, dilations and groups.
@pytest.mark.parametrize("at", [0, 16, *range(40, 136, 8)])
@pytest.mark.parametrize("value", [-1, 1 << 40, -(1 << 63)])
def test_no_size_is_trusted(at, value):
    x, weight, scale, shift = tensors()
    with pytest.raises(RuntimeError, match=r"pykernels\.conv_bn_act_bound: "):
        OPS.conv_bn_act_bound(x, altered(bind(weight, scale, shift), at, value), None)


def test_no_activation_is_trusted():
    x, weight, scale, shift = tensors()
    with pytest.raises(RuntimeError, match=r"pykernels\.conv_bn_act_bound: activation: "):
        OPS.conv_bn_act_bound(x, altered(bind(weight, scale, shift), 136, -1), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, b: (x[0], b, None), "x: expected 4 dimensions"),
        (lambda x, b: (x[:, :4], b, None), "x: expected 8 channels"),
        (lambda x, b: (x.double(), b, None), "x: expected torch.float32 or torch.bfloat16"),
        (lambda x, b: (x[..., :2, :1], b, None), "the kernel"),
        (lambda x, b: (x, b.float(), None), "bound_conv: expected the contiguous 1-D torch.uint8"),
        (lambda x, b: (x, torch.zeros_like(b), None), "bound_conv: expected what conv_bind of this version"),
        (lambda x, b: (x, b, x), "residual: expected shape"),
        (lambda x, b: (x, b, torch.zeros(2, 6, 4, 8).double()), "residual: expected torch.float32"),
    ],
)
def test_what_is_refused(change, message):
    x, weight, scale, shift = tensors()
    with pytest.raises(RuntimeError, match=message):
        OPS.conv_bn_act_bound(*change(x, bind(weight, scale, shift)))


def places(shape, dtype):
    """Tensors of ``shape`` in all sorts of places: dense, and slices of larger ones."""
    n, k, p, q = shape
    wide = torch.full((n, k + 5, p, q + 2), 7.0, dtype=dtype)
    yield torch.full(shape, 7.0, dtype=dtype)
    yield torch.full(shape, 7.0, dtype=dtype).to(memory_format=torch.channels_last)
    yield wide.to(memory_format=torch.channels_last)[:, 3:-2, :, 1:-1]
    yield wide[:, 3:-2, :, 1:-1]
    yield torch.full((n, k, q, p), 7.0, dtype=dtype).transpose(2, 3)


def others(t):
    """The elements of the storage that ``t`` does not show."""
    everything = torch.as_strided(t, (t.untyped_storage().nbytes() // t.itemsize,), (1,), 0).clone()
    mask = torch.ones_like(everything, dtype=torch.bool)
    torch.as_strided(mask, t.shape, t.stride(), t.storage_offset()).fill_(False)
    return everything[mask]


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("algorithm", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 32])
def test_writes_into_any_place(groups, algorithm, memory_format, dtype, room):
    if groups > 1 and algorithm:
        return
    x = normal(2, 32, 7, 9, dtype=dtype).to(memory_format=memory_format)
    weight = normal(32, 32 // groups, 3, 3, seed=1, dtype=dtype)
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1], groups)
    packed = OPS.conv_pack(weight, groups, algorithm)
    bound = OPS.conv_bind(packed, weight.shape, None, normal(32, seed=3), *geometry, 1, 0.0)
    x[0, 0, 0, 0] = float("inf")  # Winograd does such a tile twice
    for residual in (None, normal(2, 32, 7, 9, seed=4, dtype=dtype)):
        expected = OPS.conv_bn_act_bound(x, bound, residual)
        for out in places(expected.shape, dtype):
            assert OPS.conv_bn_act_bound_workspace(x, bound, out) >= 0
            OPS.conv_bn_act_bound_out(x, bound, residual, out, torch.empty(room, dtype=torch.uint8))
            assert torch.equal(out.nan_to_num(8), expected.nan_to_num(8))
            assert torch.all(others(out) == 7)


def test_reads_slices_as_it_reads_copies():
    wide = normal(2, 40, 7, 9).to(memory_format=torch.channels_last)
    x = wide[:, 3:11]
    _, weight, scale, shift = tensors()
    bound = bind(weight, scale, shift)
    y = OPS.conv_bn_act_bound(x, bound, None)
    assert torch.equal(y, OPS.conv_bn_act_bound(x.contiguous(), bound, None))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_out_is_checked():
    x, weight, scale, shift = tensors()
    bound, y, room = bind(weight, scale, shift), torch.empty(2, 6, 4, 8), torch.empty(0, dtype=torch.uint8)
    torch.library.opcheck(OPS.conv_bn_act_bound_out.default, (x, bound, None, y, room))
    for out, workspace, message in (
        (y[:, :5], room, "out: expected shape"),
        (y[0], room, "out: expected 4 dimensions"),
        (y.bfloat16(), room, "out: expected torch.float32"),
        (y[:, :1].expand_as(y), room, "out: expected elements that do not overlap"),
        (y, room.float(), "workspace: expected the contiguous 1-D torch.uint8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.conv_bn_act_bound_out(x, bound, None, out, workspace)
