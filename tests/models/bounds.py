"""How near a whole model has to come to its float64 twin."""

from __future__ import annotations

import torch
from torch import nn

from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC


def model_bound(model: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """The roundings of all layers add up as those of one sum would that is as long as theirs together.

    In 16 bits the weights and what each layer stores count: two roundings a layer, which add up as their root. Each of
    these is 0.41 roundoffs in the mean, and a fifth more is allowed: 0.69 for two.
    """
    weights = [p for p in model.parameters() if p.dim() > 1]
    terms = sum(p[0].numel() + 4 for p in weights)
    accumulate = torch.promote_types(dtype, torch.float32)
    stored = 0.0 if dtype == accumulate else len(weights) ** 0.5 * ROUNDOFF[dtype]
    return 0.69 * (CONV_BN_ACT_SPEC.bound(accumulate, terms) + stored)
