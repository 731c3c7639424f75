"""Which modules another may stand in for: those that do what torch's class does, and nothing beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Has someone registered hooks on ``module``, which a replacement would lose?"""
    return any(getattr(module, name) for name in _HOOKS)


def is_torchs(module: Any, kind: type, *methods: str) -> bool:
    """Is ``module`` a ``kind`` (a class of torch.nn) that runs torch's own ``methods``, not its class's or its own?"""
    return isinstance(module, kind) and all(
        getattr(type(module), m) is getattr(kind, m) and m not in vars(module) for m in methods
    )


def check_replaceable(where: str, argument: str, module: Any, kind: type, *methods: str) -> None:
    """TypeError unless `is_torchs`, ValueError where the module `has_hooks`; for ``forward`` where none is named."""
    if not is_torchs(module, kind, *(methods or ("forward",))):
        raise TypeError(
            f"pykernels.{where}: {argument}: expected a torch.nn.{kind.__name__} with its own forward, "
            f"got {type(module).__name__}"
        )
    if has_hooks(module):
        raise ValueError(
            f"pykernels.{where}: {argument}: expected a module without hooks, got some, which would not run"
        )
