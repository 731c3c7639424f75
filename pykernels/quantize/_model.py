"""The quantised model."""

from __future__ import annotations

from typing import Any

from torch import nn

from pykernels.optimize._face import Optimized, P, R, family_of
from pykernels.quantize._report import QuantReport, with_layers

_KEY = "_extra_state"


class Quantized(Optimized[P, R]):
    """A quantised model, which `pykernels.quantize` returns: an `Optimized` whose layers compute in int8.

    Its parameters are the original's, in float. Its state_dict has one more entry, ``_extra_state``: the options and
    ranges of the calibration, as a tensor of bytes. (If the original has an extra state too, it is a dict of both.)
    """

    def report(self, time: bool = False) -> QuantReport:
        """Says what ran in the calls so far, in int8 or in float, and why.

        Args:
            time: Whether to time each step too: a few times, on random inputs of the last call's sizes.
        """
        return with_layers(super().report(time), self)

    def get_extra_state(self) -> Any:
        """Returns what the calibration found."""
        told = family_of(self).plan.to_bytes()
        return {"pykernels": told, "own": super().get_extra_state()} if self._has_own_state() else told

    def set_extra_state(self, state: Any) -> None:
        """Takes what the calibration of another model found.

        Args:
            state: What `get_extra_state` of that gave.

        Raises:
            ValueError: It is something else.
        """
        if self._has_own_state() and isinstance(state, dict):
            super().set_extra_state(state.get("own"))
            state = state.get("pykernels")
        family = family_of(self)
        family.plan.take_bytes(state)
        family.forget()

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict, as `torch.nn.Module.load_state_dict` does.

        Args:
            state_dict: The model's own or, to change its weights alone, the original's.
            strict: Whether the keys have to be those of the model.
            assign: Whether to put the tensors in the parameters' places, and not to copy them.
        """
        if _KEY not in state_dict:
            state_dict = {**state_dict, _KEY: self.get_extra_state()}
        return super().load_state_dict(state_dict, strict, assign)

    def _has_own_state(self) -> bool:
        kind: Any = type(self)
        return kind._pykernels_original.get_extra_state is not nn.Module.get_extra_state
