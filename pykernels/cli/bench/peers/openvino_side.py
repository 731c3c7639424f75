"""Loads OpenVINO over the ONNX graph; this process never imports torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row

_GRAPHS = {None: "model.onnx", "static": "static.onnx", "dynamic": "weights.onnx", "network": "network.onnx"}


def load(row: Row, folder: Path, threads: int, *, precision: str, int8: str | None = None) -> Loaded:
    """One stream, latency first. Left alone it would use bfloat16 wherever the CPU has it: hence the hint.

    ``int8``: None; "static", the graph with the input's scale in it; or "dynamic", the one with int8 weights, whose
    input OpenVINO quantises row by row; or "network", ONNX Runtime's static form of a whole network.
    """
    import openvino

    path = exported(folder, "onnxruntime" if int8 == "network" else "onnx", _GRAPHS[int8])
    inputs = [a.astype(np.float32) if a.dtype == np.int8 else a for a in arrays_of(folder / "inputs.npz")]
    start = time.perf_counter()
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("OpenVINO has no bfloat16 on this CPU")
    compiled = core.compile_model(
        str(path),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            **({"DYNAMIC_QUANTIZATION_GROUP_SIZE": inputs[0].shape[-1]} if int8 == "dynamic" else {}),
        },
    )
    load_s = time.perf_counter() - start
    request = compiled.create_infer_request()
    feed = dict(enumerate(inputs))
    return Loaded(
        lambda: request.infer(feed, share_inputs=True, share_outputs=True),
        lambda result: [np.array(a, dtype=np.float32) for a in result.to_tuple()],
        load_s,
    )
