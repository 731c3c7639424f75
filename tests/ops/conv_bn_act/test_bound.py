"""conv_bind and conv_bn_act_bound: the packed op, with all but x and the residual given beforehand."""

from __future__ import annotations

import pytest
import torch

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


def test_opcheck():
    x, weight, scale, shift = tensors()
    packed = OPS.conv_pack(weight, GEOMETRY[3], 0)
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
    with pytest.raises(RuntimeError, match=r"pykernels\.conv_bn_act_bound: (bound_conv|packed): "):
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
