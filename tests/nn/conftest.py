"""What the modules' tests share."""

from __future__ import annotations

import pytest

from tests.harness import normal


@pytest.fixture
def x():
    """Two images for the blocks of `tests.nn.blocks.make`."""
    return normal(2, 8, 9, 10, seed=1)
