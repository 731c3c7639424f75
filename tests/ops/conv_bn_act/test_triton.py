"""conv_bn_act in Triton beyond the spec's samples: tiles, split sums, layouts, offsets."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import opcheck

from pykernels.ops.conv_bn_act import conv_bn_act
from pykernels.ops.conv_bn_act.spec import conv_bn_act_reference
from tests.harness import DEVICE, FORMATS, normal, relative_l2, triton_reason
from tests.ops.conv_bn_act.cases import bound

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
if triton_reason() is None:
    from pykernels.ops import _triton
    from pykernels.ops.conv_bn_act import triton
    from pykernels.ops.conv_bn_act.triton.config import Config, config, depthwise_tiles, is_depthwise

each_layout = pytest.mark.parametrize("layout", FORMATS, ids=str)


@pytest.fixture
def tiles(monkeypatch):
    """Forces the tiles of the matrix product."""

    def force(**fields: int) -> None:
        chosen = {"block_m": 16, "block_n": 16, "block_k": 16, "warps": 4, "stages": 2, **fields}
        monkeypatch.setattr(triton, "config", lambda *shape: Config(**chosen))

    return force


def randn(*shape, **options):
    return normal(*shape, **options, device=DEVICE)


SHAPES = [
    (n * size * size, k, c, taps, groups)
    for n, size in ((1, 7), (1, 56), (64, 14), (64, 112), (1, 1))
    for k, c, taps, groups in (
        (64, 3, 49, 1), (64, 64, 9, 1), (256, 64, 1, 1), (2048, 512, 1, 1), (512, 512, 9, 1), (37, 13, 9, 1),
        (1, 9, 9, 1), (16, 8, 9, 4), (4, 4, 9, 32), (1000, 2048, 1, 1),
    )
]  # fmt: skip


@pytest.mark.parametrize("element", [1, 2, 4])
@pytest.mark.parametrize("vec", [1, 8])
def test_config_is_pure_and_fits_every_target(element, vec):
    for device in (_triton.AMPERE, _triton.HOPPER, _triton.CDNA3, _triton.INTERPRETER):
        for shape in SHAPES:
            c = config(*shape, element, vec, device)
            assert c == config(*shape, element, vec, device)
            for block in (c.block_m, c.block_n, c.block_k):
                assert block >= 16
                assert block & (block - 1) == 0
            assert element > 1 or c.block_k >= 32
            assert c.splits in (1, 2, 4, 8, 16)
            # Each of the stages but the one that is being multiplied waits in shared memory.
            assert (c.stages - 1) * (c.block_m + c.block_n) * c.block_k * element <= device.shared
            # Sums, a thread's.
            assert c.block_m * c.block_n <= 64 * 32 * c.warps


def test_config_fills_the_gpu():
    for device in (_triton.AMPERE, _triton.HOPPER):
        small = config(49, 512, 512, 9, 1, 2, 8, device)
        assert small.splits > 1
        tiles = -(-49 // small.block_m) * -(-512 // small.block_n)
        assert 2 * tiles * small.splits > device.multiprocessors
        assert config(64 * 56 * 56, 64, 64, 9, 1, 2, 8, device).splits == 1


def test_depthwise_is_for_few_channels_a_group():
    assert is_depthwise(1, 1, 40)
    assert is_depthwise(4, 4, 32)
    assert not is_depthwise(1, 64, 1)
    assert not is_depthwise(8, 8, 4)
    for m, width, planes in itertools.product((1, 100, 10**6), (3, 64, 1000), (False, True)):
        block_m, block_n = depthwise_tiles(m, width, planes)
        assert block_m * block_n <= 4096
        assert block_m & (block_m - 1) == block_n & (block_n - 1) == 0


# The kernels' own paths, where the spec's small samples do not choose them.


def check(x, w, **options):
    y = conv_bn_act(x, w, backend="triton", **options)
    given = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    assert y.dtype == x.dtype
    assert relative_l2(y, conv_bn_act_reference(x.double(), w.double(), **given)) <= bound(w)
    return y


@each_layout
@pytest.mark.parametrize(("splits", "flat"), [(2, False), (4, True), (16, False)])
def test_split_sums(tiles, splits, flat, layout):
    tiles(block_k=32, block_n=32, block_m=128, splits=splits, flat=flat)
    x, w = randn(3, 20, 5, 6, layout=layout), randn(24, 20, 3, 3, seed=1)
    options = {"bias": randn(24, seed=2), "residual": randn(3, 24, 5, 6, seed=3, layout=layout), "padding": 1}
    y = check(x, w, **options)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(y, conv_bn_act(x, w, **options, backend="triton"))


def test_split_sums_of_groups(tiles):
    tiles(block_m=64, block_n=32, block_k=32, splits=4)
    check(randn(2, 36, 5, 6), randn(40, 18, 3, 3, seed=1), groups=2, padding=1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "padding": (2, 0)}, {"dilation": 2}])
def test_both_ways_of_stepping(tiles, flat, options):
    tiles(flat=flat, block_k=32, block_m=64, block_n=32)
    for channels in (32, 20):
        check(randn(2, channels, 7, 6), randn(40, channels, 3, 2, seed=1), **options)


def test_offsets_of_64_bits(monkeypatch):
    """Images are too large for 32 bits only where they are gigabytes: so the arithmetic is asked for on small ones."""
    monkeypatch.setattr(triton, "_extent", lambda strides, sizes: 2**31)
    for c, k, groups in ((20, 24, 1), (3, 24, 1), (8, 8, 8)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x, w = randn(2, c, 7, 6, layout=layout), randn(k, c // groups, 3, 3, seed=1)
            check(x, w, groups=groups, padding=1, stride=2, residual=randn(2, k, 4, 3, seed=2))


@pytest.mark.parametrize(("c", "groups"), [(4, 1), (16, 1), (16, 16)])
def test_an_image_further_away_than_32_bits(c, groups):
    """The second image begins 2^31 elements after the first; no memory is taken for what lies between them."""
    x = torch.empty(2**31 + 16 * c, dtype=torch.float16, device=DEVICE)
    x = x.as_strided((2, c, 4, 4), (2**31, 1, 4 * c, c)).copy_(randn(2, c, 4, 4))
    check(x, randn(16, c // groups, 3, 3, dtype=torch.float16, seed=1), padding=1, groups=groups)


STRIDES = {
    "expanded over the batch": lambda t: t[:1].expand_as(t),
    "expanded over the filters": lambda t: t[:, :1].expand_as(t),
    "expanded over the pixels": lambda t: t[:, :, :1, :1].expand_as(t),
    "expanded over the rows": lambda t: t[:, :, :1].expand_as(t),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
    "channels first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("groups", [1, 16])
def test_strides(strides, layout, groups):
    lay = STRIDES[strides]
    x, w = randn(2, 16, 6, 5), randn(16, 16 // groups, 3, 3, seed=1)
    residual = randn(2, 16, 6, 5, seed=2)
    check(x.to(memory_format=layout), w, residual=lay(residual), padding=1, groups=groups)
    check(lay(x), w.to(memory_format=layout), residual=residual, padding=1, groups=groups)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded over the filters"])
def test_one_tap_reads_few_channels_from_any_strides(channels, layout):
    x = STRIDES.get(layout, lambda t: t)(randn(2, channels, 5, 6))
    check(x, randn(7, channels, 1, 1, seed=1), activation="none")


@each_layout
@pytest.mark.parametrize("groups", [1, 8])
def test_opcheck(groups, layout):
    x = randn(2, 8, 6, 5, layout=layout).requires_grad_()
    w = randn(8, 8 // groups, 3, 3, seed=1).requires_grad_()
    vectors = [randn(8, seed=i).requires_grad_() for i in (2, 3)]
    residual = randn(2, 8, 3, 3, seed=4, layout=layout).requires_grad_()
    given = (x, w, *vectors, residual, [2, 2], [1, 1, 1, 1], [1, 1], groups, 6, 0.0, False)
    opcheck(torch.ops.pykernels.conv_bn_act_triton.default, given)
