"""Loads ONNX Runtime; this process never imports torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row


def load(row: Row, folder: Path, threads: int, *, file: str = "model.onnx") -> Loaded:
    """A session over the exported graph, all optimisations on."""
    import onnxruntime

    path = exported(folder, "onnx" if file == "model.onnx" else "onnx_int8", file)
    inputs = arrays_of(folder / "inputs.npz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    load_s = time.perf_counter() - start
    feed = {given.name: array for given, array in zip(session.get_inputs(), inputs, strict=True)}
    return Loaded(lambda: session.run(None, feed), lambda result: [np.asarray(a) for a in result], load_s)
