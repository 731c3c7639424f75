"""The tiles of the Triton recurrences: pure functions of the shape and the device. Those of the products: gemm.py."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import triton

from pykernels.ops._triton import INTERPRETER, Device

#: A persistent program holds its part of W_hh in so many tensors at most.
_CHUNKS = 4


@dataclass(frozen=True)
class Config:
    """Tiles of block_b sequences x units; a warp multiplies block_k + tail_k of K at a time."""

    persistent: bool
    resident: bool
    block_b: int
    units: int
    splits: int
    block_k: int
    tail_k: int
    warps: int
    stages: int


def config(steps: int, batch: int, hidden: int, directions: int, size: int, device: Device) -> Config:
    """How a layer's recurrence, or with one step a cell, runs with elements of `size` bytes."""
    amd = device.platform == "hip"
    warps = 4 if amd else 8
    if device == INTERPRETER:  # programs run one after another: one a group, or it would wait for ever
        block_b, units = max(16, triton.next_power_of_2(batch)), max(16, triton.next_power_of_2(hidden))
        return Config(steps > 1, True, block_b, units, 2, max(16, units // 2), 0, warps, 1)
    block_b = 16 if batch <= 16 else 32
    groups = directions * triton.cdiv(batch, block_b)
    # The fewer units the sooner a program has its products, and all of them have to be resident.
    for units in (8, 16, 32) if steps > 1 else ():
        if groups * triton.cdiv(hidden, units) <= device.multiprocessors:
            block_k, tail_k = _parts(hidden, warps)
            weights, h = (warps * (block_k + tail_k) * n * size for n in (4 * units, block_b))
            shared = max(weights, h) if amd else weights + h
            # What the compiler has registers for: a quarter to a half of them hold W_hh.
            room = 49152 if size == 4 else 98304 if block_b == 16 else 65536
            fits = weights <= room and h <= 49152 and shared <= device.shared and block_b * units <= 512
            if fits and (size == 2 or block_b == 16):
                return Config(True, True, block_b, units, warps, block_k, tail_k, warps, 1)
            return _streamed(True, block_b, units, warps, size)
    if batch > 32:
        block_b = 64
    tiles = directions * triton.cdiv(batch, block_b) * triton.cdiv(hidden, 8)
    # Float32's three products of tf32 (none on AMD) leave Triton 3.7 no registers for 16 units: it spills kilobytes.
    few = (size == 4 and not amd) or (block_b < 64 and tiles <= 2 * device.multiprocessors)
    return _streamed(False, block_b, 8 if few else 16, warps, size)


def _streamed(persistent: bool, block_b: int, units: int, warps: int, size: int) -> Config:
    """W_hh from L2: as many splits as the registers have room for their sums."""
    splits = max(1, min(warps, (2048 if size == 2 or block_b < 64 else 1024) // (block_b * units)))
    block_k = 32 if size == 2 or splits == 1 else 16
    # With two stages the compiler aims at 128 registers there, and just misses them.
    stages = 3 if size == 2 and block_b == 32 and warps == 8 else 2
    return Config(persistent, False, block_b, units, splits, block_k, 0, warps, stages)


def _parts(hidden: int, parts: int) -> tuple[int, int]:
    """K in so many parts, each of a power of two or the sum of two, as tensors have to be: 96 = 64 + 32."""
    part = triton.cdiv(triton.cdiv(hidden, parts), 16) * 16
    block_k = 1 << (part.bit_length() - 1)
    tail_k = triton.next_power_of_2(part - block_k) if part > block_k else 0
    return (2 * block_k, 0) if tail_k == block_k else (block_k, max(16, tail_k) if tail_k else 0)


@dataclass(frozen=True)
class BackwardConfig:
    """A program's tile of sequences x units; `splits` slices of K side by side, `block_k` of each at once.

    chunks: the program holds its part of W_hh, K in so many parts of splits * block_k; 0: it reads W_hh each step.
    """

    persistent: bool
    block_b: int
    block_u: int
    block_k: int
    splits: int
    warps: int
    stages: int
    chunks: int = 0


def backward_config(steps: int, batch: int, hidden: int, directions: int, size: int, device: Device) -> BackwardConfig:
    """The tiles for elements of `size` bytes: what a program reads each step, 4H (block_b + block_u), is what counts.

    Persistent where all tiles are resident at once, one a multiprocessor: the programs wait for each other. W_hh stays
    on the multiprocessor (NVIDIA: in shared memory, AMD: in registers) where it fits; float32's, split in two for tf32,
    would take twice its bytes.
    """
    if device == INTERPRETER:  # one program after another there; what they would wait for is never there
        block_b, block_u = (max(16, triton.next_power_of_2(n)) for n in (batch, hidden))
        if size == 2 and steps > 1 and block_u <= 256:
            return BackwardConfig(True, block_b, block_u, 2 * block_u, 2, 4, 1, 1)
        return BackwardConfig(steps > 1, block_b, block_u, 64, 2, 4, 1)
    amd = device.platform == "hip"
    warps, most = 4 if amd else 8, 4096 if size == 2 else 2048  # float32's three products leave no registers for more
    waiting: list[tuple[int, int, BackwardConfig]] = []
    launched: list[tuple[int, int, BackwardConfig]] = []
    for block_b, block_u in itertools.product((16, 32, 64), repeat=2):
        if block_b >= 2 * max(batch, 16) or block_b * block_u > most:
            continue
        tiles = directions * triton.cdiv(batch, block_b) * triton.cdiv(hidden, block_u)
        splits = max(1, min(warps, 2048 // (block_b * block_u)))
        block_k = 64 if size == 2 else 16 if splits > 1 else 32
        streams = BackwardConfig(True, block_b, block_u, block_k, splits, warps, 2 if amd else 3)
        launched.append((min(tiles, 2 * device.multiprocessors), block_b + block_u, streams))
        if steps == 1 or tiles > device.multiprocessors:
            continue
        waiting.append((2 * (block_b + block_u), tiles, streams))
        # Shared memory gives a program twice what L2 does.
        for part in sorted((128, 256, 512, 1024), key=lambda part: (triton.cdiv(4 * hidden, part) * part, -part)):
            chunks = triton.cdiv(4 * hidden, part)
            fits = 2 * part * (min(chunks, 2) * block_b + (0 if amd else chunks * block_u)) + 2048 <= device.shared
            fits = fits and (not amd or chunks * part * block_u <= 65536)  # in registers there
            if size == 2 and splits > 1 and chunks <= _CHUNKS and fits:
                holds = BackwardConfig(True, block_b, block_u, part // splits, splits, warps, 1, chunks)
                waiting.append((2 * block_b + block_u, chunks * part, holds))
                break
    if waiting:
        return min(waiting, key=lambda choice: choice[:2])[2]
    # The largest tiles that still fill the GPU twice.
    return replace(max(launched, key=lambda choice: choice[:2])[2], persistent=False)
