"""Which modules a replacement may stand in for: those that do what torch's class does, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

from pykernels.ops._arguments import fail

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether someone has registered hooks on ``module``, which a replacement would lose."""
    return any(getattr(module, name) for name in _HOOKS)


def is_torchs(module: Any, kind: type, *methods: str) -> bool:
    """Whether ``module`` is a ``kind`` (a class of torch.nn) that runs torch's own ``methods``."""
    return isinstance(module, kind) and all(
        getattr(type(module), m) is getattr(kind, m) and m not in vars(module) for m in methods
    )


def is_replaceable(module: Any, kind: type, *methods: str) -> bool:
    """Whether `is_torchs` holds (for ``forward`` if no method is named), and there are no hooks."""
    return is_torchs(module, kind, *(methods or ("forward",))) and not has_hooks(module)


def check_replaceable(where: str, argument: str, module: Any, kind: type, *methods: str) -> None:
    """TypeError or ValueError where the module is not `is_replaceable`."""
    if not is_torchs(module, kind, *(methods or ("forward",))):
        fail(TypeError, where, argument, f"a torch.nn.{kind.__name__} with its own forward", type(module).__name__)
    if has_hooks(module):
        fail(ValueError, where, argument, "a module without hooks", "some, which would not run")
