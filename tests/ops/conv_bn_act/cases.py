"""The samples of conv_bn_act, and how exact a call that is no sample has to be."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from tests.harness import samples_of

SAMPLES = samples_of(CONV_BN_ACT_SPEC)
each_sample = pytest.mark.parametrize("name", SAMPLES)


def bound(weight: torch.Tensor, dtype: torch.dtype | None = None) -> float:
    """Of y: a sum over a filter, then scale, shift, residual, activation."""
    return CONV_BN_ACT_SPEC.bound(dtype or weight.dtype, weight[0].numel() + 4)


def gradient_bound(weight: torch.Tensor, y: torch.Tensor, dtype: torch.dtype | None = None, order: int = 1) -> float:
    """Of gradients: the sums of y, those over all filters for x's, those over all pixels for the weights'.

    All of them twice, in the derivative and in what it is multiplied with; and again for a second derivative.
    """
    over_filters, over_pixels = weight.numel() // max(weight.shape[1], 1), y.numel() // weight.shape[0]
    terms = weight[0].numel() + over_filters + over_pixels + 4
    return CONV_BN_ACT_SPEC.bound(dtype or weight.dtype, 2 * order * terms)
