"""The tiles of the Triton convolutions: pure functions of the shape and the device."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from pykernels.ops._triton import Device


@dataclass(frozen=True)
class Config:
    """Tiles of the matrix product: BLOCK_M pixels x BLOCK_N filters, BLOCK_K terms a step, `splits` parts."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1
    #: Steps through all terms rather than through the channels of a tap.
    flat: bool = False


def is_depthwise(channels: int, filters: int, groups: int) -> bool:
    """Do so few channels and filters share a group that a matrix product would be mostly zeros?"""
    return groups > 1 and channels <= 4 and filters < 16


def config(
    m: int, filters: int, channels: int, taps: int, groups: int, element: int, vec: int, device: Device
) -> Config:
    """The tiles for ``m`` pixels; ``filters`` and ``channels`` of one group, of ``element`` bytes.

    ``vec`` elements of y are stored at once: what a thread keeps of addresses, if that is one, leaves room for half.
    """
    hip = device.platform == "hip"
    flat = taps > 1 and channels < 32
    single = channels * element % 16 != 0  # few elements of x are read at once, and take an address each
    terms = taps * channels
    # A step is a cache line of channels. Triton wants 16 terms, of int8 32.
    least = 32 if element == 1 else 16
    most = (64 if single or (hip and element == 1) else 128) // element
    block_k = max(least, min(most, _power(terms if flat else channels)))
    steps = triton.cdiv(terms, block_k) if flat else taps * triton.cdiv(channels, block_k)
    block_n = max(16, min(_power(filters), 64 if flat or vec < 4 or element == 4 else 128))
    # Large tiles read least for an operation; smaller ones where they would leave multiprocessors without one.
    for block_m in (128, 64) if element < 4 else (64,):
        tiles = triton.cdiv(m, block_m) * triton.cdiv(filters, block_n) * groups
        if tiles >= device.multiprocessors:
            break
    while block_n > 32 and tiles < device.multiprocessors:
        block_n //= 2
        tiles = triton.cdiv(m, block_m) * triton.cdiv(filters, block_n) * groups
    # A part is worth its launch and its second pass if it has some steps of its own.
    splits = 1
    while splits < 16 and 2 * tiles * splits <= device.multiprocessors and steps >= 8 * splits:
        splits *= 2
    warps = 8 if block_m == 128 and (block_n == 128 or flat or vec < 4) else 4
    return Config(block_m, block_n, block_k, warps, 2 if hip else 3 if element == 4 else 4, splits, flat)


def depthwise_tiles(m: int, width: int, planes: bool) -> tuple[int, int]:
    """(pixels, filters) of a tile: 4096 sums at most, and mostly along what is adjacent in memory."""
    most_m, most_n = (256, 16) if planes else (64, 64)
    block_n = most_n if width >= most_n else _power(width)
    most_m = min(256, most_m * most_n // block_n)
    return (most_m if m >= most_m else max(16, _power(m))), block_n


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()
