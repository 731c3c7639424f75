"""Memory formats inside a program."""

from __future__ import annotations

import torch
from torch import Tensor


def as_contiguous(t: Tensor) -> Tensor:
    """``t``, copied only where it is not contiguous."""
    return t if t.is_contiguous() else t.contiguous()


def as_channels_last(t: Tensor) -> Tensor:
    """``t``, copied only where it is not in channels_last."""
    return t.contiguous(memory_format=torch.channels_last)
