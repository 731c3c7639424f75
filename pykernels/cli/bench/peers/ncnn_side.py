"""Loads ncnn over what pnnx made of the traced module; this process never imports torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from .contenders import Loaded
from .exported import arrays_of, exported
from .rows import Row


def load(row: Row, folder: Path, threads: int, *, winograd: bool) -> Loaded:
    """ncnn knows no batches: a batch is a loop over its samples."""
    import ncnn

    param = exported(folder, "pnnx", "model.ncnn.param")
    inputs = arrays_of(folder / "inputs.npz")
    start = time.perf_counter()
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_winograd_convolution = winograd
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(param)) != 0 or net.load_model(str(param.with_suffix(".bin"))) != 0:
        raise RuntimeError("ncnn cannot read the graph that pnnx wrote")
    load_s = time.perf_counter() - start
    # int64 indices are int32 in ncnn; the batch axis is gone.
    feeds = [[np.ascontiguousarray(a[i]) for a in inputs] for i in range(row.batch)]
    feeds = [[a.astype(np.int32) if a.dtype == np.int64 else a for a in feed] for feed in feeds]
    mats = [[ncnn.Mat(a) for a in feed] for feed in feeds]

    def one(feed: list[Any]) -> Any:
        extractor = net.create_extractor()
        for i, mat in enumerate(feed):
            extractor.input(f"in{i}", mat)
        # The first output only: an LSTM's state would come without its batch axis.
        return extractor.extract("out0")[1]

    def arrays(result: list[Any]) -> list[np.ndarray]:
        return [np.stack([np.array(sample) for sample in result])]

    # ncnn.Mat borrows numpy's memory, so the arrays must outlive this function.
    return Loaded(lambda: [one(feed) for feed in mats], arrays, load_s, keeps=feeds)
