"""Loads ExecuTorch over the program whose layers its XNNPACK backend took; its tensors are torch's."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row


def load(row: Row, folder: Path, threads: int) -> Loaded:
    """Results are read where the program left them: the next call writes there."""
    from executorch.extension.pybindings import portable_lib

    path = exported(folder, "executorch", "model.pte")
    inputs = tuple(torch.from_numpy(a) for a in arrays_of(folder / "inputs.npz"))
    start = time.perf_counter()
    portable_lib._unsafe_reset_threadpool(threads)
    program = portable_lib._load_for_executorch(str(path))
    load_s = time.perf_counter() - start
    return Loaded(
        lambda: program.forward(inputs, clone_outputs=False), lambda result: [t.clone().numpy() for t in result], load_s
    )
