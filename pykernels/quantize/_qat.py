"""A model that trains with the rounding of int8."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pykernels.nn.int8_conv import Grid
from pykernels.optimize._face import face
from pykernels.optimize._graph import Step
from pykernels.optimize._program import Program
from pykernels.optimize._watch import SKIPPED
from pykernels.quantize._calibrate import OP
from pykernels.quantize._grid import Observer, grid_of
from pykernels.quantize._model import Quantized
from pykernels.quantize._plan import Plan
from pykernels.quantize._simulate import Simulation

#: How much of the way a range shrinks in a step to what the batch has.
_SHRINKS = 0.01


class _Training(Simulation):
    """Evaluates ``program`` on the grids that ``plan`` has now; if ``follows``, these cover what they get."""

    def __init__(
        self, program: Program, live: Callable[[Tensor], Tensor], plan: Plan, method: str, follows: bool
    ) -> None:
        super().__init__(program, live)
        self._graph, self._method, self._follows = program.graph.rewritten, method, follows
        self._table, self._factors = plan.tables.get(self._graph.name, []), plan.factors.get(self._graph.name, {})
        self._scaled = {self._graph.positions[v] for v in self._graph.scaled}

    def rounded(self, x: Tensor, grid: Grid, step: Step) -> Tensor:
        """``x`` on the grid of what ``step`` gives; NaN stays, so that the loss tells of it."""
        joined = self._graph.joined[step.function]
        if self._follows:
            self._follow(joined, x.detach())
        return torch.where(x.isnan(), x, super().rounded(x, grid_of(*self._range(joined)), step))

    def _range(self, joined: tuple[int, ...]) -> tuple[float, float]:
        """What the grid of the values at these places covers."""
        if joined[0] in self._scaled:  # the result of one layer, whose channels are scaled
            return self._factors[joined[0]][:2]
        known = [r for at in joined if (r := self._table[at]) is not None]
        return min(low for low, _ in known), max(high for _, high in known)

    def _follow(self, joined: tuple[int, ...], x: Tensor) -> None:
        """Lets that grow to what ``x`` has, and shrink some way to it."""
        observer = Observer(self._method)
        observer.see(x)
        found, (low, high) = observer.range(), self._range(joined)
        if found is None:  # it has no elements, or not only finite ones
            return
        low = min(found[0], low + _SHRINKS * (found[0] - low))
        high = max(found[1], high + _SHRINKS * (found[1] - high))
        if joined[0] in self._scaled:
            self._factors[joined[0]] = self._factors[joined[0]]._replace(low=low, high=high)
        else:
            for at in joined:
                self._table[at] = low, high


class QuantAware(nn.Module):
    """A trainable copy of a model, rounded as int8 rounds; ``pykernels.quantize(..., qat=True)`` makes it.

    ``model`` is the copy, and its parameters are those to train, in an ordinary loop. A call computes what the int8
    model would, in float; gradients pass through the rounding as if it were not there, and stop where a grid clamps.
    Batch norms take their running statistics, and their weights and biases train. Dropout does nothing.

    The grids follow what they have to cover: a call in training mode that records gradients widens a range to what the
    observer finds in the batch, and narrows it by a hundredth of the way. After ``eval()``, or under
    ``torch.no_grad()``, they stay.

    `convert` gives the int8 model of the parameters and grids as they are then.
    """

    def __init__(self, model: nn.Module, plan: Plan, observer: str = "minmax") -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.plan, self.observer = plan, observer
        self._remake()

    def _remake(self) -> None:
        self.__dict__["_twin"] = face(self.model, torch.float32, torch.float32, None, Quantized, self.plan)
        self.__dict__["_made_of"] = _parts(self.model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the model does, in the numbers of int8.

        Args:
            args: The model's, by position.
            kwargs: The model's, by name.

        Raises:
            RuntimeError: The model cannot be followed for these arguments as a whole.
        """
        parts, before = _parts(self.model), self.__dict__["_made_of"]
        if len(parts) != len(before) or any(a is not b for a, b in zip(parts, before, strict=True)):
            self._remake()  # hooks, patches or attributes are others now
        twin: Any = self._twin
        stub = vars(twin).get("_compiled_call_impl")
        if stub is None:
            raise RuntimeError(f"pykernels.{OP}: qat: the model is a single layer of torch's that has no int8 form")
        with torch.no_grad():
            given: dict[int, Tensor] = {}

            def detached(t: Tensor) -> Tensor:
                plain = t.detach()
                given[id(plain)] = t
                return plain

            plain, named = tree_map_only(Tensor, detached, (args, kwargs))
            tensors, program = stub.program_for(plain, named, False)
            if program is None or not program.watch.unchanged():
                twin(*plain, **named)
                tensors, program = stub.program_for(plain, named, False)
        if program is None or not program.again:
            raise RuntimeError(f"pykernels.{OP}: qat: the model cannot be followed as a whole:\n{twin.report()}")
        live = self._live(twin)
        follows = self.training and torch.is_grad_enabled()
        run = _Training(program, lambda t: live.get(id(t), t), self.plan, self.observer, follows)
        return run.evaluate([given[id(t)] for t in tensors])

    def _live(self, twin: nn.Module) -> dict[int, Tensor]:
        """By the twin's tensors: the parameters and buffers that train."""
        own = _tensors(self.model)
        return {id(t): own[name] for name, t in _tensors(twin).items()}

    def convert(self) -> Quantized:
        """Returns the int8 model of the parameters and grids as they are; it shares the parameters."""
        return face(self.model, torch.float32, torch.float32, None, Quantized, copy.deepcopy(self.plan))

    def get_extra_state(self) -> Any:
        """Returns what the calibration found, and the training since."""
        return self.plan.to_bytes()

    def set_extra_state(self, state: Any) -> None:
        """Takes what the calibration of another model found.

        Args:
            state: What `get_extra_state` of that gave.

        Raises:
            ValueError: It is something else.
        """
        self.plan.take_bytes(state)
        self._remake()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._remake()  # the parameters may be others now
        return self

    def __deepcopy__(self, memo: Any) -> QuantAware:
        made = QuantAware(copy.deepcopy(self.model, memo), copy.deepcopy(self.plan, memo), self.observer)
        return made.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_twin", "_made_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._remake()


def _parts(model: nn.Module) -> list[Any]:
    """What the modules hold besides tensors: attributes, children, hooks, methods that are patched."""
    found: list[Any] = []
    for module in model.modules():
        found += [module, type(module)]
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "training", *SKIPPED):
                continue
            found += [key, *(x for item in value.items() for x in item)] if isinstance(value, dict) else [key, value]
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by all of their names."""
    own = dict(model.named_parameters(remove_duplicate=False))
    return own | dict(model.named_buffers(remove_duplicate=False))
