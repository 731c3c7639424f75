"""The quantised model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pykernels.optimize._face import Optimized, P, R, _family


class Quantized(Optimized[P, R]):
    """A quantised model, which `pykernels.quantize` returns: an `Optimized` whose layers compute in int8."""

    def get_extra_state(self) -> Tensor:
        """Returns what the calibration found, as bytes."""
        return _family(self).plan.to_bytes()

    def set_extra_state(self, state: Any) -> None:
        """Takes what the calibration of another model found."""
        family = _family(self)
        family.plan.take_bytes(state)
        family.forget()
