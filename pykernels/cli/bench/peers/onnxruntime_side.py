"""Loads ONNX Runtime; this process never imports torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row


def load(row: Row, folder: Path, threads: int, *, int8: str | None = None) -> Loaded:
    """A session over the exported graph, or the one quantised as ``int8`` says, all optimisations on."""
    import onnxruntime

    path = exported(folder, "onnxruntime" if int8 == "network" else "onnx", f"{int8 or 'model'}.onnx")
    inputs = arrays_of(folder / "inputs.npz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    load_s = time.perf_counter() - start
    feed = {given.name: _as(given.type, array) for given, array in zip(session.get_inputs(), inputs, strict=True)}
    return Loaded(lambda: session.run(None, feed), lambda result: [np.asarray(a) for a in result], load_s)


def _as(kind: str, array: np.ndarray) -> np.ndarray:
    """int8 as bytes around 128 where the graph takes those: the form that ONNX Runtime has fast kernels for."""
    return array.view(np.uint8) ^ 128 if kind == "tensor(uint8)" and array.dtype == np.int8 else array
