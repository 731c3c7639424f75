"""Writes what a row's contenders share: inputs, the float64 answer, and the exported graphs.

``python -m peers.prepare ROW FOLDER [onnx] [pnnx] [executorch] [MNN] [onnxruntime]``, with
MNN and onnxruntime after onnx, whose graph they convert.
An export that fails leaves its reason in ``NAME.error``, and the contender that wanted the export shows that reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import int8_graphs
from .exported import exported
from .rows import Row, by_name
from .subjects import SEED, build

#: Batches that int8 contenders see before.
CALIBRATED = 8


def flat_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors inside nested tuples and lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in flat_tensors(part)] if isinstance(value, tuple | list) else []


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    """float64, except for indices."""
    return tensor if tensor.dtype == torch.int64 else tensor.double()


def write(row: Row, folder: Path, exports: list[str]) -> None:
    """Fills ``folder``; the float64 answer comes last, from the module converted in place."""
    module, inputs = build(row)
    np.savez(folder / "inputs.npz", *[t.numpy() for t in inputs])
    for name in exports:
        try:
            _EXPORTS[name](row, module, inputs, folder)
        except Exception as problem:
            reason = str(problem).strip().splitlines() or [""]
            (folder / f"{name}.error").write_text(f"{type(problem).__name__}: {reason[0][:200]}")
    module.double()
    for buffer_name, buffer in module.named_buffers():
        if buffer.dtype == torch.int8:
            setattr(module, buffer_name, buffer.double())
    with torch.no_grad():
        outputs = flat_tensors(module(*[as_double(t) for t in inputs]))
    np.savez(folder / "expected.npz", *[t.numpy() for t in outputs])


def _onnx(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    if row.kind == "gemm":
        int8_graphs.product(module, inputs[0], folder)
        return
    if row.kind == "linear":
        int8_graphs.linear(module, inputs[0], folder)
        return
    program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(folder / "model.onnx"))


def calibration(inputs: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Batches like ``inputs``, the same for every contender."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return [
        tuple(torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.roll(i, -1) for t in inputs)
        for i in range(CALIBRATED)
    ]


def _onnx_int8(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    """ONNX Runtime's own tool: static, with QDQ nodes and a scale for each channel; without convolutions dynamic."""
    if {"gemm", "linear"} & row.traits:  # their graphs are there
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, ready, made = (folder / name for name in ("model.onnx", "ready.onnx", "network.onnx"))
    if not model.exists():
        _onnx(row, module, inputs, folder)
    if "conv" not in row.traits:
        quantize_dynamic(str(model), str(made), weight_type=QuantType.QInt8, per_channel=True)
        return
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            import onnx

            names = [given.name for given in onnx.load(str(ready), load_external_data=False).graph.input]
            self.feeds = iter(
                [dict(zip(names, [t.numpy() for t in batch], strict=True)) for batch in calibration(inputs)]
            )

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(str(ready), str(made), Reader(), per_channel=True, weight_type=QuantType.QInt8)


def _pnnx(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    # ncnn knows no batches: the graph is made for one sample and called for each.
    torch.jit.trace(module, tuple(t[:1] for t in inputs)).save(str(folder / "model.pt"))
    tool = Path(sys.executable).with_name("pnnx")
    done = subprocess.run(
        [str(tool) if tool.exists() else "pnnx", "model.pt", "fp16=0"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0 or not (folder / "model.ncnn.param").exists():
        raise RuntimeError(f"pnnx exit {done.returncode}: {(done.stderr or done.stdout).strip()[-160:]}")


def _executorch(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported_program = torch.export.export(module, inputs)
    edge = to_edge_transform_and_lower(exported_program, partitioner=[XnnpackPartitioner()])
    (folder / "model.pte").write_bytes(edge.to_executorch().buffer)


def _mnn(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
    # What `mnnconvert` calls, without that script: it installs a logging service's client with whatever pip is on the
    # path and reports what it converted.
    convert = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
    exported(folder, "onnx", "model.onnx")
    files = ["-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn"]
    done = subprocess.run(
        [sys.executable, "-c", convert, *files, "--bizCode", "-"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0 or not (folder / "model.mnn").exists():
        raise RuntimeError(f"MNN's converter, exit {done.returncode}: {(done.stderr or done.stdout).strip()[-160:]}")


_EXPORTS = {"onnx": _onnx, "onnxruntime": _onnx_int8, "pnnx": _pnnx, "executorch": _executorch, "MNN": _mnn}


def main() -> None:
    """The process that the driver starts for each row."""
    name, folder, *exports = sys.argv[1:]
    torch.set_num_threads(os.cpu_count() or 1)
    write(by_name(name), Path(folder), exports)


if __name__ == "__main__":
    main()
