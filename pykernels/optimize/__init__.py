"""`optimize`: your model with the fused ops inside.

`_trace` gets a graph or says why there is none, `_patterns` reads it, `_rewrite` replaces, `_modules` is what stands
there afterwards, `_report` says what was done.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from pykernels import _native
from pykernels.ops._dispatch import triton_missing
from pykernels.optimize._modules import Optimized
from pykernels.optimize._report import Left, Replaced, Report
from pykernels.optimize._rewrite import Rewriter

__all__ = ["Left", "Optimized", "Replaced", "Report", "optimize"]


def optimize(model: nn.Module, dtype: torch.dtype | None = None) -> Optimized:
    """An evaluation-mode copy of ``model`` that computes the same with fused kernels.

    Folds Conv2d + BatchNorm2d (+ addition) + activation wherever they stand, as modules, functions, methods, in place
    or not; replaces LSTM, LSTMCell and Linear (+ activation); leaves everything else alone. A model whose ``forward``
    can't be traced safely is rewritten module by module. ``.report()`` of the result says what was replaced by what,
    and what was not and why.

    The original is untouched. Parameters and buffers are shared with it, not copied: an update of the original's
    weights (an optimizer step, ``load_state_dict``) is seen by the optimised model at its next call.

    Args:
        model: any ``nn.Module``, in any mode; the result is in evaluation mode and without gradients for its weights.
        dtype: ``torch.bfloat16``, ``torch.float32`` or, on CUDA, ``torch.float16`` to compute in; the weights are then
            converted copies, and inputs and results keep the model's own dtype. None: the model's.

    Returns:
        A module that is called as the original is, and hands on its attributes and methods.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: ``dtype`` is another one, or float16 where the model is not on CUDA.

    Example:
        >>> fast = pk.optimize(model)
        >>> print(fast.report())
        >>> with torch.inference_mode():
        ...     y = fast(x)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"pykernels.optimize: model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"pykernels.optimize: dtype: expected None, torch.float32, torch.bfloat16 or torch.float16, got {dtype}"
        )
    if dtype == torch.float16 and not all(p.is_cuda for p in model.parameters()):
        raise ValueError(
            "pykernels.optimize: dtype: expected None, torch.float32 or torch.bfloat16, got torch.float16, which only "
            "the GPU kernels take; move the model to CUDA first"
        )
    if isinstance(model, Optimized):
        raise TypeError("pykernels.optimize: model: is optimised already; pass the original")
    outside = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inside = outside if dtype is None else dtype
    twin = _shared_copy(model, outside, inside).eval()
    rewriter = Rewriter()
    if _native.error is None or _has_triton(model):
        twin = rewriter.rewrite(twin)
    else:
        rewriter.report.left.append(Left("the model", type(model).__name__, _native.error))
    return Optimized(twin, rewriter.report, outside, inside)


def _has_triton(model: nn.Module) -> bool:
    """Is the model on a GPU where Triton's kernels run, which need no native library?"""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device.type == "cuda" and triton_missing(device) is None


def _shared_copy(model: nn.Module, outside: torch.dtype, inside: torch.dtype) -> nn.Module:
    """A deep copy of the modules whose tensors are the original's: same storage, same version counter.

    Where the dtype changes they are converted; batch norm keeps its own, because its scale and shift are folded in
    float32.
    """
    stay = {id(t) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for t in _tensors(m)}
    memo: dict[int, object] = {}
    for t in _tensors(model):
        data = t.detach()
        if t.dtype == outside and outside != inside and id(t) not in stay:
            data = data.to(inside)
        memo[id(t)] = nn.Parameter(data, requires_grad=False) if isinstance(t, nn.Parameter) else data
    return copy.deepcopy(model, memo)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
