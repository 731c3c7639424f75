"""What a program says for the report: its steps, their operations, and why torch runs what it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pykernels import _native
from pykernels.ops._op import FLOATS
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize._calls import OurCall
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, bound, mapped
from pykernels.optimize._keep import PackedWeight
from pykernels.optimize._kinds import runs_ours
from pykernels.optimize._norms import is_norm
from pykernels.optimize._program import packed_by, sizes
from pykernels.optimize._report import ITSELF, OURS, TORCH, Entry, Left, Plain, Ran, Replaced, Report
from pykernels.optimize._squeeze import is_squeeze
from pykernels.optimize._timing import seconds_by_step
from pykernels.optimize._watch import kind_of

if TYPE_CHECKING:
    from pykernels.optimize._program import Program
    from pykernels.optimize._stub import Family, Stub

#: How the report names recordings.
RECORDED = "recording a call"
_NO_KERNELS = "pykernels has no kernel for it"
_BARE = "is a single layer of torch's, where a program would take longer than it could save"
_NOT_FUSED = "the kernels do not have this activation, so it runs by itself"
_IMAGE_KERNELS = FLOATS["cpu"]
#: Functions of images, with what may still be wrong where the kernels take the image.
_OF_IMAGES = {
    **dict.fromkeys(
        ["group_norm", "instance_norm"],
        "has a size for which torch is faster, or weights or a result that the kernels do not take",
    ),
    "max_pool2d": "returns indices, or has a size that the model computes",
    "avg_pool2d": "has a size that the model computes",
    "adaptive_avg_pool2d": "makes more than one pixel",
    "interpolate": "has a mode, an option or a size that the kernels do not take",
}
#: Torch's functions that a user may have expected to be replaced.
_OF_INTEREST = {
    **dict.fromkeys(
        ["conv1d", "conv2d"],
        "has a dtype, a device or a rank that the kernels do not take, or weights that the model computes at each call",
    ),
    **dict.fromkeys(
        ["conv_transpose1d", "conv_transpose2d"],
        "has a dtype, a device or a rank that the kernels do not take, weights that the model computes at each call, "
        "or pixels that no tap reaches",
    ),
    "batch_norm": "has a dtype, a device or a layout that the kernels do not take, or computed statistics",
    "layer_norm": "has a dtype or a device that the kernels do not take",
    "linear": "has a dtype or a device where torch's own is as fast, or weights that the model computes at each call",
    **_OF_IMAGES,
    **dict.fromkeys(
        ["conv3d", "conv_transpose3d", "scaled_dot_product_attention",
        "multi_head_attention_forward", "matmul", "__matmul__", "bmm", "einsum"], _NO_KERNELS
    ),
    **dict.fromkeys(["hardtanh", "clamp", "prelu", "softplus", "celu", "selu"], _NOT_FUSED),
}  # fmt: skip
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_SUMS_FIRST = ("addmm", "baddbmm")
_PRODUCTS = ("matmul", "__matmul__", "bmm", "mm", *_SUMS_FIRST)
_COUNTED_BY_TORCH = ("einsum", "multi_head_attention_forward", "bilinear", "tensordot", "addbmm")
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def report_of(family: Family, time: bool) -> Report:
    """What the programs of one optimised model run, and what went another way."""
    report = Report(left=[Left(*n) for n in family.notes])
    if family.outside is not family.inside:
        report.conversions[f"inputs from {_short(family.outside)} to {_short(family.inside)}, results back"] = 1
    if family.is_bare:
        report.left.append(Left("the model", kind_of(family.root).__name__, _BARE))
    stubs = family.stubs()
    packed = sizes(packed_by(family.root))
    for stub in stubs:
        name = stub.path or "the model"
        why = {p for p in stub.programs.values() if isinstance(p, str) and p}
        inside = any(s.why is not None and s is not stub and _is_in(stub.path, s.path) for s in stubs)
        why |= {stub.why} if stub.why is not None and not inside and not _is_ours(stub.module) else set()
        told = [Left(name, type(stub.module).__name__, reason) for reason in sorted(why)]
        report.left = _together(report.left, told)
        for reason, calls in stub.plainly.items():
            if not any(reason in s.plainly for s in stubs if s is not stub and _is_in(stub.path, s.path)):
                report.plain.append(Plain(name, reason, calls))
        programs = {id(p): (p, key) for key, p in stub.programs.items() if not isinstance(p, str)}
        last = id(stub.last) if id(stub.last) in programs else next(reversed(programs), None)
        for program, key in programs.values():
            counts = id(program) == last and not _is_part(stub, stubs)
            _tell_program(program, name, _inputs(program, key), counts, time, report)
            packed |= program.packed()
    held = [p for p in family.root.parameters() if isinstance(p, PackedWeight)]
    blobs = sizes(b for p in held for b in p.blobs.values())
    report.packed_bytes = sum((blobs | packed).values())
    report.released_bytes = sum(p.nbytes for p in held)
    return report


def _is_ours(module: Any) -> bool:
    return type(module).__module__.startswith("pykernels.nn.")


def _is_in(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


def _is_part(stub: Stub, stubs: list[Stub]) -> bool:
    """Whether the last program of a module around it contains its steps."""
    around = [s.last for s in stubs if s is not stub and s.last is not None and _is_in(stub.path, s.path)]
    return any(not any(_is_in(stub.path, opaque[0]) for opaque in p.graph.opaque) for p in around)


def _inputs(program: Program, key: Any) -> tuple[str, ...]:
    """The arguments that ``program`` was called with, in words; sizes are those of the last choice."""
    sizes = zip(program.graph.inputs, program.sizes, strict=True)
    words = [f"{_short(v.dtype)} {'x'.join(map(str, size)) or 'scalar'}" for v, size in sizes]
    words += [] if len(key) < 5 else _plain_values(key[:2])
    mode = "inference mode" if len(key) > 3 and key[3] else "enabled gradients" if len(key) > 3 and key[2] else ""
    return (*words, *([mode] if mode else []))


def _plain_values(part: Any) -> list[str]:
    if not isinstance(part, tuple):
        return []
    if len(part) == 2 and part[0] in (bool, int, float, str):
        return [repr(part[1])]
    if len(part) == 2 and part[0] is dict:
        return [f"{key[1]}={word}" for key, value in part[1] for word in _plain_values(value)]
    return [word for p in part for word in _plain_values(p)]


def _together(known: list[Any], more: list[Any]) -> list[Any]:
    """Both, with what is in both not twice: two programs may run one layer."""
    return list((Counter(known) | Counter(more)).elements())


def _tell_program(
    program: Program, name: str, inputs: tuple[str, ...], counts: bool, time: bool, report: Report
) -> None:
    report.programs += 1
    report.entries.append(Entry(report.programs, name, inputs, program.exact, counts))
    report.doors[RECORDED] = report.doors.get(RECORDED, 0) + 1
    report.arena_bytes += program.memory()
    seconds = seconds_by_step(program) if time and counts else {}
    reasons = dict(zip(program.fused, program.reasons, strict=True))
    replaced: list[Replaced] = []
    left = [Left(where or "the model", what, why) for where, what, why in (*program.graph.opaque, *program.graph.left)]
    for step in program.graph.steps:
        if step.kind == "view":
            continue
        who = _tell_step(step, reasons.get(step, ""), replaced, left)
        what, turns = _what(step), step in program.turned
        if step.kind == "format" and not turns:
            what = "unchanged memory format"
        where, count = step.where or "the model", flops(step, program.shapes)
        report.steps.append(Ran(report.programs, where, what, who, count, seconds.get(step)))
        report.torch_steps += counts and who == TORCH
        if counts and turns:
            to = what if step.kind == "format" else "to channels last"
            report.conversions[to] = report.conversions.get(to, 0) + 1
    report.replaced, report.left = _together(report.replaced, replaced), _together(report.left, left)


def _what(step: Step) -> str:
    name = step.note or step.name()
    return name.replace("as_", "to ").replace("_", " ") if step.kind == "format" else name


def _tell_step(step: Step, why: str, replaced: list[Replaced], left: list[Left]) -> str:
    """Who runs the step. Notes what it replaces, or why torch runs it."""
    where = step.where or "the model"
    if isinstance(step.function, FusedConv):
        if why:
            left.append(Left(where, step.note, why))
            return TORCH
        by = f"pk.ops.{step.function.op}"
        replaced.append(Replaced(tuple(s or "the model" for s in step.sources), step.note, by))
        return OURS
    if isinstance(step.function, OurCall):
        sources = tuple(s or "the model" for s in step.sources) if step.note else (where,)
        replaced.append(Replaced(sources, step.note or step.name(), f"pk.ops.{step.function.op}"))
        return OURS
    if is_norm(step):
        replaced.append(Replaced(tuple(s or "the model" for s in step.sources), step.note, "our batch_norm_act_bound"))
        return OURS
    if is_squeeze(step):
        replaced.append(Replaced(tuple(s or "the model" for s in step.sources), step.note, "pk.ops.squeeze_excite"))
        return OURS
    if step.kind == "module" and step.note:
        replaced.append(Replaced((where,), step.note, f"pk.nn.{step.note.split()[-1]}"))
        return OURS
    if step.kind == "opaque":
        return ITSELF
    if step.kind == "module" and runs_ours(step.function):
        return OURS
    name = step.name() if step.name() in _OF_INTEREST else step.name().removesuffix("_")
    if step.kind == "module" or (step.kind == "call" and name in _OF_INTEREST):
        left.append(Left(where, name, _why_not(step, name)))
    return TORCH


def _why_not(step: Step, name: str) -> str:
    """Why torch runs a call."""
    if getattr(step.function, "proj_size", 0):
        return "has projections (proj_size), which the kernels don't support"
    x = next(step.reads(), None)
    if name in ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d") and x is not None:
        if _native.error is not None:
            return _native.error
        takes = CONV_BN_ACT.takes(x.device.type)
        if x.dtype not in takes:
            return f"is {_short(x.dtype)}; the kernels take {' and '.join(map(_short, takes))}"
    if name in _OF_IMAGES and x is not None:
        return _why_no_image(x) or _OF_IMAGES[name]
    return _OF_INTEREST.get(name, _NO_KERNELS)


def _why_no_image(x: Value) -> str | None:
    """Why the kernels do not take ``x``; None if they do."""
    if x.device.type != "cpu":
        return "has kernels for CPUs only"
    if _native.error is not None:
        return _native.error
    if x.dtype not in _IMAGE_KERNELS:
        return f"is {_short(x.dtype)}; the kernels take {' and '.join(map(_short, _IMAGE_KERNELS))}"
    if len(x.shape) != 4:
        return f"has an input of {len(x.shape)} dimensions; the kernels take four, (N, C, H, W)"
    if x.layout == "other":
        return "has an input that is neither contiguous nor channels_last, such as a permuted one"
    return None


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def flops(step: Step, shapes: Mapping[Value, Sequence[int]]) -> int | None:
    """The operations of a step's products, two for each multiplication; 0 if it has none, None if unknown.

    ``shapes`` are those of the values that differ from the recorded ones.
    """

    def shape(v: Value) -> Sequence[int]:
        return shapes.get(v, v.shape)

    if step.kind == "opaque":
        return None
    out = next(iter(step.results()), None)
    if out is None:
        return 0
    if isinstance(step.function, FusedConv):
        return 2 * step.function.products(shape(step.args[0]), shape(out))
    if is_squeeze(step):
        x, weight = step.args[:2]
        return 4 * shape(x)[0] * prod(shape(weight))
    name = step.name()
    if isinstance(getattr(step.function, "source", step.function), _RECURRENT):
        return _of_recurrent(step, shape)
    if isinstance(step.function, nn.Module) or name in _COUNTED_BY_TORCH:
        return _counted_by_torch(step, shape)
    x, other = _first_two(step)
    if x is None or other is None:
        return 0
    if name in _CONVOLUTIONS:
        return 2 * prod(shape(out)) * prod(shape(other)[1:])
    if name.startswith("conv_transpose"):
        return 2 * prod(shape(x)) * prod(shape(other)[1:])
    if name == "linear" or name in _PRODUCTS:
        return 2 * prod(shape(out)) * (shape(x)[-1] if x.shape else 1)
    if name == "scaled_dot_product_attention" and x.shape:
        return 4 * prod(shape(x)) * shape(other)[-2]
    return 0


def _first_two(step: Step) -> tuple[Value | None, Value | None]:
    if step.name() in _SUMS_FIRST:
        values = [v for v in step.args if isinstance(v, Value)][1:]
        return (values[0], values[1]) if len(values) > 1 else (None, None)
    given = bound(step, ("input", "weight"))
    values = [v for v in (given.get("input"), given.get("weight")) if isinstance(v, Value)]
    values += [v for v in step.reads() if v not in values]
    return (values[0], values[1]) if len(values) > 1 else (None, None)


def _of_recurrent(step: Step, shape: Callable[[Value], Sequence[int]]) -> int:
    """Each position of the input is multiplied with each matrix."""
    x = next(step.reads(), None)
    module = getattr(step.function, "source", step.function)
    matrices = sum(p.numel() for p in module.parameters() if p.dim() == 2)
    return 0 if x is None else 2 * prod(shape(x)[:-1]) * matrices


def _counted_by_torch(step: Step, shape: Callable[[Value], Sequence[int]]) -> int | None:
    """By the formulas of torch's operators, in a run without elements; with gradients no kernel takes it as a whole."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    more: Any = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}

    def like(x: Any) -> Any:
        if not isinstance(x, Value):
            return x
        t = torch.empty(tuple(shape(x)), dtype=x.dtype, device=x.device)
        return t.requires_grad_(t.is_floating_point() and not _is_ours(step.function))

    try:
        counter = FlopCounterMode(display=False, custom_mapping=more)
        with torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
            step.function(*mapped(step.args, like), **mapped(step.kwargs, like))
    except Exception:  # whatever it is, it is not known
        return None
    return int(counter.get_total_flops())
