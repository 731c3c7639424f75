"""What a program has to say for the report: its steps, their operations, and why torch runs what it runs."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from pykernels import _native
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize._graph import Step, Value
from pykernels.optimize._patterns import FusedConv, bound
from pykernels.optimize._report import ITSELF, OURS, TORCH, Left, Ran, Replaced, Report

if TYPE_CHECKING:
    from pykernels.optimize._program import Program

#: The door that recordings come through.
RECORDED = "recording a call"
_NO_KERNELS = "has no kernels of ours"
_NOT_FUSED = "is no activation of the kernels: runs by itself"
#: Torch's functions that a user may have expected to be replaced.
_OF_INTEREST = {
    "conv2d": "is of a dtype, a device or a rank that the kernels don't take, or its weights are no constants",
    "batch_norm": "does not follow a convolution that nothing else reads, or its statistics are no constants",
    "linear": "is of a dtype or on a device where torch's own is as fast, or its weights are no constants",
    **dict.fromkeys(
        ["conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "layer_norm", "group_norm",
        "instance_norm", "scaled_dot_product_attention", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
        "multi_head_attention_forward", "matmul", "__matmul__", "bmm", "einsum", "interpolate"], _NO_KERNELS
    ),
    **dict.fromkeys(["relu6", "hardtanh", "hardsigmoid", "mish", "prelu", "softplus", "celu", "selu"], _NOT_FUSED),
}  # fmt: skip
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_PRODUCTS = ("matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm")


def tell(program: Program, report: Report, seconds: dict[Step, float]) -> None:
    """Adds what ``program`` runs to ``report``; ``seconds`` are its steps' times, if they were measured."""
    report.programs += 1
    report.doors[RECORDED] = report.doors.get(RECORDED, 0) + 1
    report.packed_bytes += program.packed_bytes()
    report.arena_bytes += program.memory()
    reasons = dict(zip(program.fused, program.reasons, strict=True))
    for step in program.graph.steps:
        who = _tell_step(step, reasons.get(step, ""), report)
        where, what = step.where or "the model", _what(step)
        report.steps.append(Ran(report.programs, where, what, who, flops(step), seconds.get(step)))
    report.left += [Left(where or "the model", what, why) for where, what, why in program.graph.opaque]


def _what(step: Step) -> str:
    name = step.note or step.name()
    return name.replace("as_", "to ").replace("_", " ") if step.kind == "format" else name


def _tell_step(step: Step, why: str, report: Report) -> str:
    where = step.where or "the model"
    if isinstance(step.function, FusedConv):
        if why:
            report.torch_steps += 1
            report.left.append(Left(where, step.note, why))
            return TORCH
        report.replaced.append(Replaced(step.sources, step.note, "pk.ops.conv_bn_act"))
        return OURS
    if step.kind == "module" and step.note:
        report.replaced.append(Replaced((step.where,), step.note, f"pk.nn.{step.note}"))
        return OURS
    if step.kind == "opaque":
        return ITSELF
    report.torch_steps += 1
    name = step.name() if step.name() in _OF_INTEREST else step.name().removesuffix("_")
    if step.kind == "module" or (step.kind == "call" and name in _OF_INTEREST):
        report.left.append(Left(where, name, _why_not(step, name)))
    return TORCH


def _why_not(step: Step, name: str) -> str:
    """Why a call is torch's."""
    if getattr(step.function, "proj_size", 0):
        return "has projections (proj_size), which the kernels don't know"
    x = next(step.reads(), None)
    if name == "conv2d" and x is not None:
        if _native.error is not None:
            return _native.error
        takes = CONV_BN_ACT.takes(x.device.type)
        if x.dtype not in takes:
            return f"is {_short(x.dtype)}; the kernels take {' and '.join(map(_short, takes))}"
    return _OF_INTEREST.get(name, _NO_KERNELS)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def flops(step: Step) -> int:
    """The operations of a step's products, for the recorded sizes; 0 of what has none."""
    out = next(iter(step.results()), None)
    if out is None:
        return 0
    if isinstance(step.function, FusedConv):
        return 2 * prod(out.shape) * step.function.depth()
    if isinstance(step.function, nn.Module):
        return _of_module(step)
    name = step.name()
    x, other = _first_two(step)
    if x is None or other is None:
        return 0
    if name in _CONVOLUTIONS:
        return 2 * prod(out.shape) * prod(other.shape[1:])
    if name.startswith("conv_transpose"):
        return 2 * prod(x.shape) * prod(other.shape[1:])
    if name == "linear" or name in _PRODUCTS:
        return 2 * prod(out.shape) * (x.shape[-1] if x.shape else 1)
    if name == "scaled_dot_product_attention" and x.shape:
        return 4 * prod(x.shape) * other.shape[-2]
    return 0


def _first_two(step: Step) -> tuple[Value | None, Value | None]:
    given = bound(step, ("input", "weight"))
    values = [v for v in (given.get("input"), given.get("weight")) if isinstance(v, Value)]
    values += [v for v in step.reads() if v not in values]
    return (values[0], values[1]) if len(values) > 1 else (None, None)


def _of_module(step: Step) -> int:
    """Each position of the input is multiplied with each matrix: so it is in recurrent layers and transformers."""
    x = next(step.reads(), None)
    if x is None or not x.shape:
        return 0
    matrices = sum(p.numel() for p in step.function.parameters() if p.dim() == 2)
    return 2 * prod(x.shape[:-1]) * matrices
