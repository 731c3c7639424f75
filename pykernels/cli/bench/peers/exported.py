"""Reads what `prepare` wrote, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def arrays_of(path: Path) -> list[np.ndarray]:
    """The arrays of an ``.npz`` file, in order."""
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def exported(folder: Path, export: str, name: str) -> Path:
    """The exported file; `RuntimeError` with the exporter's reason where there is none."""
    if (folder / name).exists():
        return folder / name
    reason = folder / f"{export}.error"
    raise RuntimeError(f"{export} export: {reason.read_text() if reason.exists() else 'was not made'}")
