"""Tiles measured on a device by ``python -m pykernels tune``: a small JSON table that users can ship.

    {"triton": "3.6.0", "devices": {"NVIDIA H100": {"int8_matmul": {"1024,4096,4096": {"block_m": 128, ...}}}}}

The table is the file that ``PYKERNELS_TUNED`` names, read once, at the first use of a Triton kernel; nothing is ever
tuned by itself. Without it, and for devices and shapes that it doesn't hold, the ``config`` functions choose.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

#: Device -> op -> shape as "m,n,k" -> the config's fields.
Table = dict[str, dict[str, dict[str, dict[str, Any]]]]


@functools.cache
def table() -> Table:
    """The table in force, empty if there is none. ValueError where the file is no such table."""
    name = os.environ.get("PYKERNELS_TUNED")
    return read(Path(name)) if name else {}


def read(path: Path) -> Table:
    """The table of a file; ValueError, with what is wrong, if it is none."""
    try:
        devices = json.loads(path.read_text())["devices"]
        for ops in devices.values():
            for shapes in ops.values():
                for fields in shapes.values():
                    if not all(type(value) in (int, bool) for value in fields.values()):
                        raise TypeError(f"expected whole numbers, got {fields}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"pykernels: {path}: expected a table that `python -m pykernels tune` wrote, got {problem!r}"
        ) from problem
    return devices


@functools.cache
def _device_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def tuned(op: str, t: torch.Tensor, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The measured config for exactly this shape on the device of ``t``, or None."""
    if not table() or not t.is_cuda or not torch.cuda.is_available():
        return None
    return table().get(_device_name(t.device.index), {}).get(op, {}).get(",".join(map(str, shape)))
