"""Loads MNN over what its converter made of the ONNX graph; this process never imports torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row


def load(row: Row, folder: Path, threads: int) -> Loaded:
    """Float32 throughout, for inputs of these very sizes, with the weights packed at loading."""
    from MNN import expr, nn

    path = exported(folder, "MNN", "model.mnn")
    inputs = arrays_of(folder / "inputs.npz")
    start = time.perf_counter()
    # `load_module_from_file(thread_num=1)` runs as many threads as there are CPUs; a runtime manager keeps its number.
    manager = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    net = nn.load_module_from_file(str(path), [], [], runtime_manager=manager, shape_mutable=False, rearrange=True)
    load_s = time.perf_counter() - start
    # int64 indices are int32 in MNN.
    arrays = [a.astype(np.int32) if a.dtype == np.int64 else a for a in inputs]
    feed = [expr.const(a, list(a.shape), expr.NCHW, expr.int if a.dtype == np.int32 else expr.float) for a in arrays]

    def call() -> list[Any]:
        """Maps come out in blocks of channels, and are read as everybody reads them."""
        return [(expr.convert(y, expr.NCHW) if y.data_format == expr.NC4HW4 else y).read() for y in net.forward(feed)]

    return Loaded(call, lambda result: [np.array(a, dtype=np.float32) for a in result], load_s, keeps=arrays)
