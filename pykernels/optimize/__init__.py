"""`optimize`: your model with the fused ops inside.

`_face` makes the twin. `_stub` stands in front of its modules' calls. `_record` writes one call down, while `_purity`
and `_watch` see what the call depends on. `_patterns` and `_layout` rewrite the steps, and `_program` makes Python of
them. `_dynamo` is the second way to a program: ``torch.compile(model, backend="pykernels")``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pykernels import _native
from pykernels._imports import after_import
from pykernels.optimize._face import Optimized, face
from pykernels.optimize._report import Entry, Left, Plain, Ran, Replaced, Report

if TYPE_CHECKING:
    from pykernels.optimize._face import Callee, P, R

__all__ = ["Entry", "Left", "Optimized", "Plain", "Ran", "Replaced", "Report", "optimize"]


def optimize(
    model: Callee[P, R], dtype: torch.dtype | None = None, *, keep: Literal["packed"] | None = None
) -> Optimized[P, R]:
    """Makes an evaluation-mode twin of ``model`` that computes the same with fused kernels.

    The twin is an instance of the original's class and has its parameters, state_dict, attributes, methods, submodules
    and hooks. It follows what you change about them at its next call. The first call of each kind of input runs your
    code, and pykernels records it. Later calls run a program, with convolution, batch norm, addition and activation as
    one step. A module runs as it is if it may depend on anything but its inputs and what pykernels watches.
    ``.report()`` says what runs and why.

    The original stays as it is. The twin shares its parameters and buffers: it sees an update of the original's weights
    (an optimizer step, ``load_state_dict``) at its next call.

    Args:
        model: Any ``nn.Module``, in any mode. The result is in evaluation mode and stays there (its ``train`` does
            nothing), and its weights do not require gradients.
        dtype: ``torch.bfloat16``, ``torch.float32`` or, on CUDA, ``torch.float16`` to compute in. The weights are then
            converted copies; inputs and results keep the model's own dtype. None means the model's dtype.
        keep: "packed" drops the plain form of weights that the kernels have packed (on the CPU). Reading or writing
            their elements (``state_dict``, training, conversion) then raises an error; copies and pickles carry the
            packed form. None keeps the plain weights too.

    Returns:
        An `Optimized`, which has the type of the original's calls: what ``model.forward`` takes and returns.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, is TorchScript, or is optimised already.
        ValueError: ``dtype`` or ``keep`` has another value, ``dtype`` is float16 and the model is not on CUDA, or the
            model has lazy parameters.

    Example:
        >>> fast = pk.optimize(model)
        >>> with torch.inference_mode():
        ...     y = fast(x)
        >>> print(fast.report())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"pykernels.optimize: model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"pykernels.optimize: dtype: expected a torch.dtype or None, got {type(dtype).__name__}; "
            "optimize takes no example input"
        )
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"pykernels.optimize: dtype: expected None, torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}"
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
    if _native.error is None:  # a wrong PYKERNELS_WINOGRAD raises here, not at a call that would fall back
        _native.introspect().conv_algorithm((1, 1, 3, 3), (1, 1, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    outside = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return face(model, outside, outside if dtype is None else dtype, keep)


def _know_backend(registry: Any) -> None:
    point = EntryPoint("pykernels", "pykernels.optimize._dynamo:compile_graph", "torch_dynamo_backends")
    registry._BACKENDS.setdefault(point.name, point)


# The package's entry point says the same; a source tree that is not installed has none.
after_import("torch._dynamo.backends.registry", _know_backend)
