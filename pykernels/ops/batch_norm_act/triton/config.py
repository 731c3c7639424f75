"""The tiles of batch norm: a pure function of the shape and the device."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from pykernels.ops._triton import Device


@dataclass(frozen=True)
class Config:
    """Tiles (block_w, block_c); kernels with sums have `slabs` programs a column of channels, the others `spread`."""

    block_w: int
    block_c: int
    warps: int
    slabs: int
    spread: int


def config(images: int, length: int, channels: int, last: bool, device: Device) -> Config:
    """Tiles of 16 elements a thread, and as many programs as are resident at once; a power of two, so that the shapes
    of a net that is traced with any batch size need few of them.
    """
    warps = 4
    tile = 16 * 32 * warps if device.platform == "cuda" else 16 * 64 * warps
    if last:  # 128 bytes of a 16-bit pixel
        block_c = min(64, max(8, triton.next_power_of_2(channels)))
        block_w = tile // block_c
    else:
        block_w = min(1024, max(8, triton.next_power_of_2(length)))
        # More channels a program would cost more registers for their parameters than the loads in flight gain.
        block_c = min(8, tile // block_w, max(1, triton.next_power_of_2(channels)))
    columns, tiles = triton.cdiv(channels, block_c), images * triton.cdiv(length, block_w)
    slabs = spread = 1
    while slabs < 512 and columns * slabs < 4 * device.multiprocessors and tiles >= 8 * slabs:
        slabs *= 2
    while columns * spread < 16 * device.multiprocessors and tiles >= 2 * spread:
        spread *= 2
    while tiles >= 64 * spread:  # the last programs to finish should not matter
        spread *= 2
    return Config(block_w, block_c, warps, slabs, spread)
