"""`optimize`: your model with the fused ops inside.

`_face` makes the twin, `_stub` stands in front of its modules' calls, `_record` writes one call down while `_purity`
and `_watch` see what it depends on, `_patterns` and `_layout` rewrite the steps, `_program` makes Python of them.
`_dynamo` is the second door: ``torch.compile(model, backend="pykernels")``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import torch
from torch import nn

from pykernels._imports import after_import
from pykernels.optimize._face import Optimized, face
from pykernels.optimize._report import Left, Replaced, Report

__all__ = ["Left", "Optimized", "Replaced", "Report", "optimize"]


def optimize(model: nn.Module, dtype: torch.dtype | None = None, *, keep: str | None = None) -> Any:
    """An evaluation-mode twin of ``model`` that computes the same with fused kernels.

    The twin is a model of the original's class: its parameters, state_dict, attributes, methods, submodules and hooks
    are there, and what is done to them counts at the next call. At the first call of each kind of input it runs as it
    is and is recorded; from the second on a program runs, with convolution, batch norm, addition and activation as one
    step. What can't be proven to depend on nothing but its inputs and what is watched runs as it is. ``.report()`` says
    what runs and why.

    The original is untouched. Parameters and buffers are shared with it, not copied: an update of the original's
    weights (an optimizer step, ``load_state_dict``) is seen by the twin at its next call.

    Args:
        model: any ``nn.Module``, in any mode; the result is in evaluation mode, stays there (its ``train`` does
            nothing), and is without gradients for its weights.
        dtype: ``torch.bfloat16``, ``torch.float32`` or, on CUDA, ``torch.float16`` to compute in; the weights are then
            converted copies, and inputs and results keep the model's own dtype. None: the model's.
        keep: "packed" to keep weights that the kernels have packed in that form alone (on the CPU): reading or
            writing their elements (``state_dict``, training, conversion) then raises; copies and pickles carry the
            packed form. None: beside the plain ones.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, TorchScript, or optimised already.
        ValueError: ``dtype`` or ``keep`` is another one, or float16 where the model is not on CUDA, or parameters are
            lazy.

    Example:
        >>> fast = pk.optimize(model)
        >>> with torch.inference_mode():
        ...     y = fast(x)
        >>> print(fast.report())
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
        raise TypeError("pykernels.optimize: model: expected an original model, got one that is optimised already")
    if keep is not None and keep != "packed":
        raise ValueError(f'pykernels.optimize: keep: expected None or "packed", got {keep!r}')
    outside = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return face(model, outside, outside if dtype is None else dtype, keep)


def _know_backend(registry: Any) -> None:
    point = EntryPoint("pykernels", "pykernels.optimize._dynamo:compile_graph", "torch_dynamo_backends")
    registry._BACKENDS.setdefault(point.name, point)


# The package's entry point says the same; a source tree that is not installed has none.
after_import("torch._dynamo.backends.registry", _know_backend)
