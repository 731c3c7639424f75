"""Checks that the models' constructors share."""

from __future__ import annotations


def check_positive(model: str, **counts: int) -> None:
    """TypeError or ValueError, naming the model and the argument, where a count is no positive int."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"pykernels.{model}: {name}: expected an int; got {value!r}")
        if value < 1:
            raise ValueError(f"pykernels.{model}: {name}: expected at least 1; got {value}")
