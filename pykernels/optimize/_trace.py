"""An optimised model inside of what Dynamo compiles: where the graph may break, the program is called as it is.

Inductor, or another backend, compiles what is before and after it. The call itself checks what a program depends on.
One whole graph (``fullgraph=True``) has no place for that check: there Dynamo traces the model's own layers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pykernels._imports import after_import


def apart(run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """``run(*args, **kwargs)``, of which Dynamo sees nothing."""
    return run(*args, **kwargs)


def _tracer() -> Any:
    """Dynamo's, if it is tracing."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        return InstructionTranslator.current_tx()
    except (ImportError, AttributeError):
        return None


def by_dynamo() -> bool:
    """Whether Dynamo is tracing."""
    return _tracer() is not None


def may_break() -> bool:
    """Whether there may be more than one graph."""
    tracer = _tracer()
    try:
        # In the body of a cond, a checkpoint or the like there can be no break either.
        return not (tracer.one_graph or tracer.error_on_graph_break) and len(tracer.output.tracers) == 1
    except AttributeError:  # there is none, or it is another Dynamo's
        return False


# As `ops/_dispatch.asked_backend`: constants of the trace.
by_dynamo._dynamo_marked_constant = True  # type: ignore[attr-defined]
may_break._dynamo_marked_constant = True  # type: ignore[attr-defined]


def any_requires_grad(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does one of the arguments? Then no program would run, and a compiled backward is worth having."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves((args, kwargs)))


def _hide(dynamo: ModuleType) -> None:
    global apart
    apart = dynamo.disable(apart)


after_import("torch._dynamo", _hide)
