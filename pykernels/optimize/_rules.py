"""Which convolutions and linear layers our CPU kernels win, and which stay torch's, as measured.

One table, which ``bench/layers.py`` measured, covers convolutions. A layer is of a kind (`kind_of`). `_TABLE` says for
each kind when torch runs it; ours run all else. The figures are of float32 and one thread, against torch's convolution
(oneDNN) with the batch norm folded in and the activation in place, in a loop (``bench/results/layers-avx2.json``,
``layers-avx512_vnni.json``) and inside networks. Other ISAs follow the rows of AVX2, and other numbers of threads
follow the same rows, because nobody has measured them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Layer(NamedTuple):
    """What the table decides by.

    ``c`` are the channels of a group, ``k`` those of all groups' results and ``group_k`` of one's, ``pixels`` those of
    one image's result.
    """

    c: int
    k: int
    group_k: int
    taps: int
    stride: int
    pixels: int
    contiguous: bool


class Row(NamedTuple):
    """Layers of this kind are torch's ``when``."""

    kind: str
    when: Callable[[Layer], bool]
    why: str
    #: Whether it holds where the kernels are those of AVX-512.
    on_avx512: bool = True


_TABLE = (
    # Groups that our loop for narrow ones does not take: of 3 channels, of 24, of more filters than channels.
    Row(
        "grouped",
        lambda x: x.contiguous and x.stride > 1 and x.pixels > 700,
        "torch's grouped convolution with a stride is faster on large contiguous images",
        on_avx512=False,
    ),
    # A vector of ours is then half empty, and more.
    Row(
        "grouped",
        lambda x: 1 < x.group_k <= 4 and x.pixels > 100,
        "torch's grouped convolution is faster to few channels a group",
    ),
    Row(
        "narrow",
        lambda x: x.contiguous and x.taps == 1 and x.pixels > 1000,
        "torch's grouped 1x1 convolution is faster on large contiguous images",
    ),
    # A panel of ours has 8 channels and more, most of which are then empty.
    Row(
        "dense",
        lambda x: x.contiguous and x.k <= 4 and x.pixels > 4000,
        "torch's convolution to few channels is faster on large contiguous images",
    ),
    Row(
        "wide",
        lambda x: x.pixels > 10_000 and x.c <= 16,
        "torch's convolution with wide filters is faster on large images of few channels",
    ),
    # One sequence in contiguous memory; in channels_last ours wins by a fifth or more.
    Row(
        "line",
        lambda x: (
            x.contiguous
            and ((x.stride > 1 and x.pixels > 1000) or (x.taps == 1 and x.pixels > 100 and x.c * x.k < 500_000))
        ),
        "torch's convolution is faster on long contiguous sequences with a stride or a single tap",
    ),
)


def kind_of(weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int, height: int = 0) -> str:
    """What distinguishes the layers of the table; ``weight``: (K, C / groups, R, S), ``height``: x's, if known."""
    k, c, r, s = weight
    if groups > 1:
        if max(dilation) > 1:
            return "dilated groups"
        return "narrow" if c == 1 or (c in (2, 4, 8, 16) and k in (c * groups, c * groups // 2)) else "grouped"
    if c <= 4:
        return "stem"
    if height == r == 1:
        return "line"
    if r == s == 1 and tuple(stride) == (1, 1):
        return "pointwise"
    if max(dilation) > 1:
        return "dilated"
    if max(stride) > 1 and max(r, s) <= 3:
        return "strided"
    return "dense" if r == s == 3 else "wide"


def torchs_because(
    shape: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    layout: str,
    isa: str = "avx2",
) -> str:
    """Why a float32 convolution of an image of ``shape`` (N, C, H, W) stays torch's on the CPU; "" where ours wins.

    ``padding``: top, left, bottom, right; ``layout``: "contiguous" or "channels_last", of the image.
    """
    height, width = shape[2:]
    k, c, r, s = weight
    p = (height + padding[0] + padding[2] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (width + padding[1] + padding[3] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    layer = Layer(c, k, k // groups, r * s, max(stride), p * q, layout != "channels_last")
    kind, on_avx512 = kind_of(weight, stride, dilation, groups, height), isa.startswith("avx512")
    rows = (row for row in _TABLE if row.kind == kind and (row.on_avx512 or not on_avx512))
    return next((row.why for row in rows if row.when(layer)), "")


def transposed_torchs_because(
    shape: Sequence[int], weight: Sequence[int], stride: Sequence[int], groups: int, layout: str
) -> str:
    """Why a transposed convolution of an image of ``shape`` stays torch's on the CPU; "" where ours wins.

    ``weight``: (C, K / groups, R, S). Measured in a loop against torch's with the batch norm folded in, on float32,
    AVX2 and one thread: torch turns the weight at each call, and loses the more the larger that is beside the image.
    """
    c, k, r, s = weight
    contiguous, pixels = layout != "channels_last", shape[2] * shape[3]
    if groups > 1:
        return "torch's grouped one is faster with large strides" if max(stride) > 4 else ""
    if k < 16:
        return "torch's is faster to few channels"
    if r * s <= stride[0] * stride[1] and (c < 128 or (contiguous and c * k < 128 * pixels)):
        return "torch's is faster where its filters do not overlap, and where the image is large beside the weight"
    if k <= 32 and (min(stride) > 2 or (contiguous and stride[0] * stride[1] * pixels > 4000)):
        return "torch's is faster on large contiguous images to few channels, and with large strides"
    return ""


def linear_torchs_because(rows: int, c: int, k: int, activation: str, bf16: bool = False, isa: str = "avx2") -> str:
    """Why a linear layer of ``c`` inputs and ``k`` outputs a row stays torch's on the CPU; "" where ours wins.

    Measured by ``bench/linears.py`` (``bench/results/linears-avx2.json``, ``linears-avx512_vnni.json``): packed weights
    win from two rows on.
    """
    if bf16:
        # Without such instructions torch multiplies number by number.
        return "torch uses bfloat16 instructions, and our kernels do not" if isa.startswith("avx512") else ""
    # With AVX-512 the packed weight is read 1.1 to 2 times as fast, until all of it comes from memory.
    if rows == 1 and c * k >= (1 << 24 if isa.startswith("avx512") else 2_000_000):
        return "a single row reads each weight once, and torch is as fast at that without a packed copy"
    if activation == "none" and rows * c * k < 8192:
        return "torch's call is as fast for so little work"
    return ""
