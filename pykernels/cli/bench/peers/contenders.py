"""Who takes part: what each needs, which rows it can run, how exact it must be. Loads nothing by itself."""

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
    shuns: frozenset[str] = frozenset({"gemm"})

    def takes(self, row: Row) -> bool:
        """Whether it can run the row at all."""
        return self.wants <= row.traits and not (self.shuns & row.traits)

    def load(self, row: Row, folder: Path, threads: int) -> Loaded:
        """Builds it in this process; ``folder`` holds what `prepare` wrote."""
        side = importlib.import_module(f".{self.side}", __package__)
        return side.load(row, folder, threads, **self.options)


CONV, BN, RNN, GEMM = (frozenset({trait}) for trait in ("conv", "bn", "rnn", "gemm"))
_ONNX = ("onnx", "onnxscript")

CONTENDERS: tuple[Contender, ...] = (
    Contender("eager", "PyTorch as it is", "torch_side"),
    Contender("eager_cl", "eager, channels_last", "torch_side", {"channels_last": True}, wants=CONV),
    Contender("folded", "eager, BN folded", "torch_side", {"fold": True}, wants=BN),
    Contender("folded_cl", "BN folded, channels_last", "torch_side", {"fold": True, "channels_last": True}, wants=BN),
    Contender("compile", "torch.compile", "torch_side", {"compiled": "plain"}),
    Contender("compile_frz", "torch.compile, freezing", "torch_side", {"compiled": "freezing"}),
    Contender(
        "compile_frz_cl",
        "torch.compile, freezing, channels_last",
        "torch_side",
        {"compiled": "freezing", "channels_last": True},
        wants=CONV,
    ),
    Contender(
        "compile_bf16",
        "torch.compile, freezing, bfloat16",
        "torch_side",
        {"compiled": "freezing", "dtype": "bfloat16"},
        tolerance="bfloat16",
    ),
    Contender("dyn_int8", "torch.ao dynamic int8", "torch_side", {"dynamic_int8": True}, tolerance="int8", wants=RNN),
    Contender("ort", "ONNX Runtime", "onnxruntime_side", needs=("onnxruntime",), prepares=_ONNX, shuns=frozenset()),
    Contender("ov", "OpenVINO, float32", "openvino_side", {"precision": "f32"}, ("openvino",), _ONNX),
    Contender(
        "ov_bf16", "OpenVINO, bfloat16", "openvino_side", {"precision": "bf16"}, ("openvino",), _ONNX, "bfloat16"
    ),
    Contender("ncnn", "ncnn", "ncnn_side", {"winograd": True}, ("ncnn",), ("pnnx",)),
    Contender(
        "ncnn_nowino", "ncnn without Winograd", "ncnn_side", {"winograd": False}, ("ncnn",), ("pnnx",), wants=CONV
    ),
    Contender("ours", "pk.optimize", "torch_side", {"ours": True}, ("torch", "pykernels")),
    Contender(
        "ours_bf16",
        "pk.optimize, bfloat16",
        "torch_side",
        {"ours": True, "dtype": "bfloat16"},
        ("torch", "pykernels"),
        tolerance="bfloat16",
    ),
    *(
        Contender(
            name,
            says,
            "int8_side",
            {"how": name},
            ("torch", "pykernels") if "ours" in name else ("torch",),
            tolerance="float32" if name == "linear_f32" else "exact",
            wants=GEMM,
            shuns=frozenset(),
        )
        for name, says in (
            ("int_mm", "torch._int_mm, W (K, N)"),
            ("int_mm_t", "torch._int_mm, W (N, K).t()"),
            ("linear_f32", "F.linear, float32"),
            ("int8_ours", "pk.ops.int8_matmul, W (K, N)"),
            ("int8_ours_t", "pk.ops.int8_matmul, W (N, K).t()"),
        )
    ),
)


def by_name(name: str) -> Contender:
    """The contender of that name; `ValueError` where there is none."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"contenders: {name!r} is none of {', '.join(c.name for c in CONTENDERS)}")


def why_missing(contender: Contender) -> str | None:
    """None where its packages are installed, or a sentence that says which are not."""
    absent = [name for name in (*contender.needs, *contender.prepares) if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not installed (pip install '.[bench]' in the source tree)"
