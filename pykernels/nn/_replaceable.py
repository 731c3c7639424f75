"""Which modules another may stand in for: those that do what torch's class does, and nothing beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from pykernels.ops._arguments import fail

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Has someone registered hooks on ``module``, which a replacement would lose?"""
    return any(getattr(module, name) for name in _HOOKS)


def is_torchs(module: Any, kind: type, *methods: str) -> bool:
    """Is ``module`` a ``kind`` (a class of torch.nn) that runs torch's own ``methods``, not its class's or its own?"""
    return isinstance(module, kind) and all(
        getattr(type(module), m) is getattr(kind, m) and m not in vars(module) for m in methods
    )


def is_replaceable(module: Any, kind: type, *methods: str) -> bool:
    """Is it `is_torchs` (its ``forward`` where no method is named), without hooks?"""
    return is_torchs(module, kind, *(methods or ("forward",))) and not has_hooks(module)


def check_replaceable(where: str, argument: str, module: Any, kind: type, *methods: str) -> None:
    """TypeError or ValueError where the module is not `is_replaceable`."""
    if not is_torchs(module, kind, *(methods or ("forward",))):
        fail(TypeError, where, argument, f"a torch.nn.{kind.__name__} with its own forward", type(module).__name__)
    if has_hooks(module):
        fail(ValueError, where, argument, "a module without hooks", "some, which would not run")
