"""Tiles measured on a device by ``python -m pykernels tune``: a small JSON table that users can ship.

    {"triton": "3.6.0", "devices": {"NVIDIA H100": {"int8_matmul": {"1024,4096,4096 int8": {"block_m": 128, ...}}}}}

The table is the file that ``PYKERNELS_TUNED`` names, read once, at the first use of a Triton kernel; nothing is ever
tuned by itself. Without it, and for devices and shapes that it doesn't hold, the ``config`` functions choose.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

#: Device -> op -> "m,n,k dtype" -> the config's fields.
Table = dict[str, dict[str, dict[str, dict[str, Any]]]]

#: Op -> where its Config is: the ops that `pykernels.cli.tune` tunes. `read` imports those that a table names, to know
#: their fields.
CONFIGS = {
    "conv_bn_act": "pykernels.ops.conv_bn_act.triton.config",
    "int8_matmul": "pykernels.ops.int8_matmul.triton.config",
    "lstm_product": "pykernels.ops.lstm.triton.gemm",
}

_NOTHING: Mapping[str, dict[str, Any]] = MappingProxyType({})
_forced: contextvars.ContextVar[Mapping[str, dict[str, Any]]] = contextvars.ContextVar("tuned", default=_NOTHING)


@functools.cache
def table() -> Table:
    """The table in force, empty if there is none. ValueError if the file is not such a table."""
    name = os.environ.get("PYKERNELS_TUNED")
    return read(Path(name)) if name else {}


def read(path: Path) -> Table:
    """The table of a file; ValueError, with the reason, if the file is not a table."""
    try:
        found = json.loads(path.read_text())
        _check_kind("the file", found)
        devices = found.get("devices")
        _check_kind("'devices'", devices)
        for device, ops in devices.items():
            _check_kind(device, ops)
            for op, shapes in ops.items():
                if op not in CONFIGS:
                    raise ValueError(f"{device}: expected ops among {', '.join(CONFIGS)}, got {op!r}")
                _check_kind(f"{device}, {op}", shapes)
                for shape, fields in shapes.items():
                    check_fields(f"{device}, {op}, {shape}", op, fields)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"pykernels: {path}: expected a table that `python -m pykernels tune` wrote; {problem}"
        ) from problem
    return devices


def _check_kind(what: str, value: object) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected an object, got {value!r}")


def check_fields(what: str, op: str, fields: object) -> None:
    """ValueError unless ``fields`` are those of the op's Config, with values that tiles can have."""
    _check_kind(what, fields)
    assert isinstance(fields, dict)
    known = {f.name: f for f in dataclasses.fields(importlib.import_module(CONFIGS[op]).Config)}
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"{what}: expected fields among {', '.join(known)}, got {name!r}")
        if known[name].type in ("bool", bool):
            if type(value) is not bool:
                raise ValueError(f"{what}: {name}: expected true or false, got {value!r}")
            continue
        least = 0 if name.startswith("tail") else 1
        most = {"warps": 32, "stages": 16}.get(name, 2**16)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{what}: {name}: expected a whole number from {least} to {most}, got {value!r}")
        if (name.startswith("block") or name == "warps") and value & (value - 1):
            raise ValueError(f"{what}: {name}: expected a power of two, got {value}")
    missing = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in fields]
    if missing:
        raise ValueError(f"{what}: expected all of {', '.join(known)}; {', '.join(missing)} missing")


@functools.cache
def _device_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def key(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """The name of a shape in the table."""
    return f"{','.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"


def tuned(op: str, t: torch.Tensor, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The measured config for exactly this shape and the dtype of ``t``, on the device of ``t``; or None."""
    found = _forced.get().get(op)
    if found is not None:
        return found
    if not table() or not t.is_cuda or not torch.cuda.is_available():
        return None
    return table().get(_device_name(t.device.index), {}).get(op, {}).get(key(shape, t.dtype))


@contextmanager
def forced(op: str, fields: dict[str, Any]) -> Iterator[None]:
    """The op's kernels take this config inside the block, whatever the shape: how ``tune`` tries its candidates.

    As `pykernels.backend`, the block is of the thread (and task) that entered it.
    """
    token = _forced.set({**_forced.get(), op: fields})
    try:
        yield
    finally:
        _forced.reset(token)
