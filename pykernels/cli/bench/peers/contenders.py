"""Who takes part: what each needs, which rows it can run, how exact it must be. This module loads none of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import Row


@dataclass
class Loaded:
    """A contender ready to be called: ``call()`` is what is timed, ``arrays(result)`` makes numpy of its result."""

    call: Callable[[], Any]
    arrays: Callable[[Any], list[Any]]
    load_s: float
    #: Bytes of packed weights; asked after the first call, which may be what packs them.
    packed_bytes: Callable[[], int] | None = None
    keeps: Any = None


@dataclass(frozen=True)
class Contender:
    """One way of running a row."""

    name: str
    says: str
    #: Module of this package that loads it, and the options that it gives to that module's ``load``.
    side: str
    options: dict[str, Any] = field(default_factory=dict)
    #: Packages by import name, in the order of import; the time they take is its start-up time.
    needs: tuple[str, ...] = ("torch",)
    #: Packages that only the preparation needs (exporters).
    prepares: tuple[str, ...] = ()
    tolerance: str = "float32"
    #: A row takes part if it has every trait of ``wants`` and none of ``shuns``.
    wants: frozenset[str] = frozenset()
    shuns: frozenset[str] = frozenset({"gemm", "linear"})

    def takes(self, row: Row) -> bool:
        """Whether it can run the row at all."""
        return self.wants <= row.traits and not (self.shuns & row.traits)

    def load(self, row: Row, folder: Path, threads: int) -> Loaded:
        """Builds it in this process; ``folder`` holds what `prepare` wrote."""
        side = importlib.import_module(f".{self.side}", __package__)
        return side.load(row, folder, threads, **self.options)


CONV, BN, RNN, GEMM, LINEAR = (frozenset({trait}) for trait in ("conv", "bn", "rnn", "gemm", "linear"))
ANY: frozenset[str] = frozenset()
OURS = ("torch", "pykernels")
_ONNX = ("onnx", "onnxscript")


def _torch(
    name: str, says: str, wants: frozenset[str] = ANY, shuns: frozenset[str] = GEMM | LINEAR, *,
    exact_as: str = "float32", **options: Any,
) -> Contender:  # fmt: skip
    needs = OURS if "ours" in options else ("torch",)
    return Contender(name, says, "torch_side", options, needs, (), exact_as, wants, shuns)


def _engine(
    name: str, says: str, package: str, exports: tuple[str, ...], exact_as: str = "float32", *,
    wants: frozenset[str] = ANY, shuns: frozenset[str] = GEMM | LINEAR, beside: tuple[str, ...] = (), **options: Any,
) -> Contender:  # fmt: skip
    side, needs = f"{package.lower()}_side", (*beside, package)
    return Contender(name, says, side, options, needs, exports, exact_as, wants, shuns)


def _product(name: str, says: str, needs: tuple[str, ...] = ("torch",), exact_as: str = "exact") -> Contender:
    return Contender(name, says, "int8_side", {"how": name}, needs, (), exact_as, GEMM, ANY)


def _int8_engine(
    name: str, says: str, package: str, wants: frozenset[str], exact_as: str = "int8", **options: Any
) -> Contender:
    return _engine(name, says, package, ("onnx", "onnxruntime"), exact_as, wants=wants, shuns=ANY, **options)


CONTENDERS: tuple[Contender, ...] = (
    _torch("eager", "PyTorch as it is", shuns=GEMM),
    _torch("eager_cl", "eager, channels_last", CONV, channels_last=True),
    _torch("folded", "eager, BN folded", BN, fold=True),
    _torch("folded_cl", "BN folded, channels_last", BN, fold=True, channels_last=True),
    _torch("compile", "torch.compile", compiled="plain"),
    _torch("compile_frz", "torch.compile, freezing", compiled="freezing"),
    _torch("compile_frz_cl", "torch.compile, freezing, channels_last", CONV, compiled="freezing", channels_last=True),
    _torch(
        "compile_bf16", "torch.compile, freezing, bfloat16", exact_as="bfloat16", compiled="freezing", dtype="bfloat16"
    ),
    _torch("eager_bf16", "eager, bfloat16", exact_as="bfloat16", dtype="bfloat16"),
    _torch("dyn_int8", "torch.ao dynamic int8", RNN, exact_as="int8", dynamic_int8=True),
    _engine("ort", "ONNX Runtime", "onnxruntime", _ONNX, shuns=LINEAR),
    _engine("ov", "OpenVINO, float32", "openvino", _ONNX, precision="f32"),
    _engine("ov_bf16", "OpenVINO, bfloat16", "openvino", _ONNX, "bfloat16", precision="bf16"),
    _engine("ncnn", "ncnn", "ncnn", ("pnnx",), winograd=True),
    _engine("ncnn_nowino", "ncnn without Winograd", "ncnn", ("pnnx",), wants=CONV, winograd=False),
    _engine("executorch", "ExecuTorch, XNNPACK", "executorch", ("executorch",), beside=("torch",)),
    _engine("mnn", "MNN", "MNN", (*_ONNX, "MNN")),
    _torch("ours", "pk.optimize", ours=True),
    _torch("ours_bf16", "pk.optimize, bfloat16", exact_as="bfloat16", ours=True, dtype="bfloat16"),
    _product("int_mm", "torch._int_mm, W (K, N)"),
    _product("int_mm_t", "torch._int_mm, W (N, K).t()"),
    _product("linear_f32", "F.linear, float32", exact_as="float32"),
    _product("qlinear", "oneDNN, W packed, float32 out", exact_as="float32"),
    _product("int8_ours", "pk.ops.int8_matmul, W (K, N)", OURS),
    _product("int8_ours_t", "pk.ops.int8_matmul, W (N, K).t()", OURS),
    _product("int8_packed", "pk.ops.int8_matmul, W packed", OURS),
    _int8_engine("ov_int8", "OpenVINO, float32 ends", "openvino", GEMM, "float32", precision="f32", int8="static"),
    _torch("dyn8_torch", "torch.ao dynamic int8", LINEAR, ANY, exact_as="int8", dynamic_int8=True),
    _int8_engine("dyn8_ort", "ONNX Runtime, dynamic int8", "onnxruntime", LINEAR, int8="dynamic"),
    _int8_engine("dyn8_ov", "OpenVINO, dynamic int8", "openvino", LINEAR, precision="f32", int8="dynamic"),
    _int8_engine("static8_ov", "OpenVINO, static int8", "openvino", LINEAR, precision="f32", int8="static"),
    _engine("q8_ort", "ONNX Runtime, int8", "onnxruntime", (*_ONNX, "onnxruntime"), "int8", int8="network"),
    _engine(
        "q8_ov",
        "OpenVINO, the same graph",
        "openvino",
        (*_ONNX, "onnxruntime"),
        "int8",
        precision="f32",
        int8="network",
    ),
    _torch("q8_pt2e", "torchao PT2E, Inductor", CONV, exact_as="int8", int8="pt2e"),
    _torch("q8_pt2e_ours", "the same model, pk.optimize", CONV, exact_as="int8", ours=True, int8="pt2e_ours"),
    _torch("q8_ours", "pk.quantize", exact_as="int8", ours=True, int8="ours"),
    _torch("dyn8_ours", "pk.nn.Int8Linear", LINEAR, ANY, exact_as="int8", ours=True, dynamic_int8=True),
)


def by_name(name: str) -> Contender:
    """The contender of that name; `ValueError` where there is none."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"--contenders: expected some of {', '.join(c.name for c in CONTENDERS)}; got {name!r}")


def why_missing(contender: Contender) -> str | None:
    """None if its packages are installed, or a sentence that says which are not."""
    needed = dict.fromkeys((*contender.needs, *contender.prepares))
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not installed (pip install '.[bench]' in the source tree)"
