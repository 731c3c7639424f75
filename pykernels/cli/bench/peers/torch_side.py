"""Loads what runs inside PyTorch: eager and its variants, torch.compile, torch.ao's dynamic int8, and ours."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .contenders import Loaded
from .exported import arrays_of
from .measure import forget_peak
from .prepare import calibration, flat_tensors
from .rows import Row
from .subjects import build


def load(
    row: Row,
    folder: Path,
    threads: int,
    *,
    channels_last: bool = False,
    fold: bool = False,
    compiled: str | None = None,
    dynamic_int8: bool = False,
    ours: bool = False,
    int8: str | None = None,
    dtype: str = "float32",
) -> Loaded:
    """The plain module of the row, changed as the options say; the change is what load_s times."""
    torch.set_num_threads(threads)
    module, _ = build(row)
    inputs = tuple(torch.from_numpy(a) for a in arrays_of(folder / "inputs.npz"))
    inputs = tuple(_as(t, dtype, channels_last) for t in inputs)
    # What building the plain module took at its worst is nobody's: it is there before the contender is.
    forget_peak()

    start = time.perf_counter()
    model = module
    if ours and dynamic_int8:
        model = _int8_linear(module)
    elif int8 in ("pt2e", "pt2e_ours"):
        model = _pt2e(module, inputs, ours)
    elif int8 == "ours":
        model = _quantize(row, module, inputs)
    elif ours:
        model = _optimize(module, dtype)
    elif dtype != "float32":
        model = model.to(getattr(torch, dtype))
    if fold:
        from torch.fx.experimental.optimization import fuse

        model = fuse(model)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dynamic_int8 and not ours:
        model = _dynamic_int8(model)
    forward: Callable[..., Any] = _compile(model, compiled) if compiled else model
    load_s = time.perf_counter() - start

    def call() -> Any:
        with torch.no_grad():
            return forward(*inputs)

    return Loaded(call, _arrays, load_s, (lambda: extra_bytes(model, module)) if ours else None)


def _as(tensor: torch.Tensor, dtype: str, channels_last: bool) -> torch.Tensor:
    if tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, dtype))
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last and tensor.dim() == 4 else tensor


def _arrays(result: Any) -> list[Any]:
    return [t.detach().float().numpy() if t.is_floating_point() else t.numpy() for t in flat_tensors(result)]


def _compile(model: nn.Module, how: str) -> Callable[..., Any]:
    """Set once for the whole process: torch compiles lazily and again, under whatever options then stand."""
    if how == "freezing":
        from torch._inductor import config

        config.freezing = True
    return torch.compile(model)


def _dynamic_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(model, {nn.LSTM, nn.LSTMCell, nn.Linear}, dtype=torch.qint8)


def _pt2e(module: nn.Module, inputs: tuple[torch.Tensor, ...], ours: bool) -> Any:
    """torchao's export flow for the CPU; then Inductor with frozen weights, or our programs."""
    from torch._inductor import config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config.freezing = True
    exported = torch.export.export(module, inputs).module()
    _tell_apart(exported)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for batch in calibration(inputs):
            prepared(*batch)
        converted = convert_pt2e(prepared)
    return _optimize(converted, "float32") if ours else torch.compile(converted)


def _tell_apart(exported: Any) -> None:
    """Names a module's calls one by one: the quantizer refuses a ReLU that is called twice, as those of ResNets are."""
    for node in exported.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            last = next(reversed(stack))
            node.meta["nn_module_stack"] = {**stack, last: (node.name, stack[last][1])}


def _quantize(row: Row, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """Rows without convolutions have their linear layers and LSTMs quantised as they come."""
    import pykernels as pk

    if "conv" not in row.traits:
        return pk.quantize(module, dynamic=True)
    return pk.quantize(module, calibration(inputs))


def _int8_linear(module: Any) -> nn.Module:
    import pykernels as pk
    from pykernels import _native

    if _native.error is not None:
        raise RuntimeError(_native.error)
    return nn.Sequential(pk.nn.Int8Linear.from_torch(module[0]))


def _optimize(module: nn.Module, dtype: str) -> nn.Module:
    import pykernels as pk
    from pykernels import _native

    if _native.error is not None:
        raise RuntimeError(_native.error)
    return pk.optimize(module, dtype=None if dtype == "float32" else getattr(torch, dtype))


def extra_bytes(model: nn.Module, original: nn.Module) -> int:
    """Bytes of the tensors that ``model`` holds and ``original`` does not: its packed weights.

    Whatever its modules hold counts, registered as a buffer or not. What lies between tensors of one storage does not.
    """
    known = {t.untyped_storage().data_ptr() for t in (*original.parameters(), *original.buffers())}
    extra = end = 0
    new = [t for t in _held(model) if t.untyped_storage().data_ptr() not in known]
    for first, last in sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in new):
        extra += max(last - max(first, end), 0)
        end = max(end, last)
    return extra


def _held(root: Any) -> list[torch.Tensor]:
    """Every tensor that is reached through modules, containers and pykernels' own objects."""
    found, seen, waiting = [], set(), [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, tuple | list):
            waiting.extend(value)
        elif isinstance(value, nn.Module) or type(value).__module__.startswith("pykernels"):
            waiting.extend(getattr(value, "__dict__", {}).values())
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting.extend(getattr(value, name, None) for name in slots)
    return found
