"""The tiles of the int8 product: pure functions of the shape and the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton

from pykernels.ops._triton import Device


@dataclass(frozen=True)
class Config:
    """Tiles of the product: BLOCK_M x BLOCK_N outputs; a step is `products` dots of BLOCK_K bytes of K each."""

    block_m: int
    block_n: int
    block_k: int
    #: Dots a step. Two for mma of sm_8x: with one, Triton prefetches fragments, and keeps each byte in a register.
    products: int
    warps: int
    #: Steps of K in shared memory.
    stages: int
    #: Programs a multiprocessor is to hold.
    resident: int
    #: Parts that K is cut into.
    splits: int = 1


#: The tiles of a kind of device. None spills in any epilogue (docs/kernels/int8_matmul/triton.md); `cycles` chooses.
_TILES = {
    "ampere": (
        Config(16, 64, 64, 2, 4, 5, 2),
        Config(16, 128, 64, 2, 4, 4, 2),
        Config(32, 128, 64, 2, 4, 4, 2),
        Config(64, 128, 64, 2, 4, 4, 2),
        Config(128, 128, 32, 2, 4, 5, 2),
        Config(128, 256, 64, 2, 8, 4, 1),
    ),
    "hopper": (
        Config(16, 64, 128, 1, 4, 5, 2),
        Config(16, 128, 128, 1, 4, 5, 2),
        Config(32, 128, 128, 1, 4, 4, 2),
        Config(64, 128, 128, 1, 4, 4, 2),
        Config(128, 128, 128, 1, 4, 3, 2),
        Config(128, 256, 128, 1, 8, 4, 1),
    ),
    "amd": (
        Config(16, 64, 128, 1, 4, 2, 2),
        Config(16, 128, 128, 1, 4, 2, 2),
        Config(32, 128, 128, 1, 4, 2, 2),
        Config(64, 128, 128, 1, 4, 2, 2),
        Config(128, 128, 64, 1, 8, 2, 1),
        Config(128, 256, 64, 1, 8, 2, 1),
    ),
}
#: Products of bytes that a multiprocessor finishes a cycle, and the share of them that a tile of so many outputs gets.
_PEAK = {"ampere": 2048, "hopper": 4096, "amd": 4096}
_SHARE = {128 * 256: 0.85, 128 * 128: 0.75, 64 * 128: 0.6}


def _kind(device: Device) -> str:
    return "amd" if device.platform == "hip" else "hopper" if device.capability == 90 else "ampere"


def shared_bytes(c: Config, device: Device) -> int:
    """What a program takes of shared memory: steps of both operands. wgmma reads one while all others are loaded."""
    wgmma = device.platform == "cuda" and device.capability == 90 and c.block_m >= 64
    buffers = c.stages if wgmma else max(1, c.stages - 1)
    return buffers * c.products * c.block_k * (c.block_m + c.block_n)


def candidates(m: int, n: int, k: int, device: Device) -> list[Config]:
    """What ``python -m pykernels tune`` times, and `config` chooses from."""
    found = []
    for tile in _TILES[_kind(device)]:
        if tile.block_m >= 4 * max(m, 16) or 4 * tile.block_m <= min(m, 64):
            continue  # mostly rows that are not there, or mostly b read again
        if shared_bytes(tile, device) > device.shared:
            continue
        if tile.block_n > 128 and n % 16 != 0:
            continue  # an output whose rows are not aligned is stored in single elements, which takes more registers
        steps = triton.cdiv(k, tile.block_k * tile.products)
        tasks = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
        for splits in (1, 2, 3, 4, 6, 8, 12, 16):
            # A part has work enough to be worth a launch, none is empty, and all programs are resident at once.
            fills = steps >= 4 * splits and (splits - 1) * triton.cdiv(steps, splits) < steps
            if splits == 1 or (fills and tasks * splits <= 2 * device.multiprocessors * tile.resident):
                found.append(replace(tile, splits=splits))
    return found


def config(m: int, n: int, k: int, device: Device) -> Config:
    """The candidate of the fewest estimated cycles, of those whose rows are neither mostly absent nor too few."""
    suitable = [c for c in candidates(m, n, k, device) if min(m, 64) <= c.block_m < 2 * max(m, 16)]
    return min(suitable, key=lambda c: cycles(c, m, n, k, device))


def cycles(c: Config, m: int, n: int, k: int, device: Device) -> float:
    """An estimate, as that of csrc/cuda/int8_matmul/choose.h: its constants were not measured either.

    A multiprocessor takes for a step of K the longer of multiplying, of reading (from L2, at most) and of waiting; so
    many times as it has programs. Then there are the epilogue, and the parts of K, which are written and read again.
    """
    rate = _PEAK[_kind(device)] * _SHARE.get(c.block_m * c.block_n, 0.4)
    tasks = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n) * c.splits
    each = triton.cdiv(tasks, device.multiprocessors)
    resident = min(each, c.resident)
    outputs = c.block_m * c.block_n
    step_k = c.block_k * c.products
    step = max(
        resident * outputs * step_k / rate,
        resident * (c.block_m + c.block_n) * step_k / 32,
        800 / max(c.stages - 1, 1),
    )
    steps = triton.cdiv(triton.cdiv(k, step_k), c.splits)
    total = triton.cdiv(each, resident) * (steps * step + 0.06 * resident * outputs + 1500)
    return total + (3000 + 8 * c.splits * m * n / 2048 if c.splits > 1 else 0)


def pieces(c: Config) -> int:
    """The parts that the epilogue is run in: 32 sums a thread or so at a time."""
    return {128: 4, 64: 2}.get(c.block_m * c.block_n // (32 * c.warps), 1)
