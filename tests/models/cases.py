"""The models that are tested with an input each, their twins' answers, and how near they have to come to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pykernels.models import CNNLSTM, BasicBlock, Bottleneck, LSTMLanguageModel, ResNet, resnet18, resnet50
from tests.harness import normal, relative_l2, to_double
from tests.models.bounds import model_bound


def seeded(make, *args, **kwargs) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return make(*args, **kwargs)


def images(n: int, size: int) -> torch.Tensor:
    return normal(n, 3, size, size, seed=1)


def signal(*shape: int) -> torch.Tensor:
    return normal(*shape, seed=2)


def tokens(batch: int, steps: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, steps), generator=torch.Generator().manual_seed(3))


def settle(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Statistics of a batch, and damped residual branches: random ones at full strength amplify every rounding."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.constant_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight, 0.15)
    with torch.no_grad():
        model.train()(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


def first(result):
    return result[0] if isinstance(result, tuple) else result


def small(block=BasicBlock, stem: str = "cifar") -> ResNet:
    """One block a stage: everything that a ResNet has, quickly."""
    return seeded(ResNet, block, (1, 1, 1, 1), 10, stem)


CASES = {
    "resnet18": lambda: (settle(seeded(resnet18), images(4, 96)), images(2, 96)),
    "resnet18-odd": lambda: (settle(seeded(resnet18), images(4, 96)), images(1, 107)[..., :75]),
    "resnet50": lambda: (settle(seeded(resnet50), images(8, 96)), images(1, 96)),
    "cifar": lambda: (settle(small(), images(8, 32)), images(2, 32)),
    "cifar-bottleneck": lambda: (settle(small(Bottleneck), images(8, 32)), images(2, 32)),
    "language-model": lambda: (seeded(LSTMLanguageModel, 300, 24, 40, 2).eval(), tokens(3, 17, 300)),
    "language-model-int32": lambda: (seeded(LSTMLanguageModel, 300, 24, 40, 1).eval(), tokens(1, 5, 300).int()),
    "cnn-lstm": lambda: (seeded(CNNLSTM, 10, 320, 48, 2).eval(), signal(2, 1, 40, 20)),
    "cnn-lstm-odd": lambda: (seeded(CNNLSTM, 10, 320, 48, 2).eval(), signal(3, 1, 43, 23)),
    "cnn-lstm-frames": lambda: (seeded(CNNLSTM, 10, 320, 48, 1, per_frame=True).eval(), signal(2, 1, 41, 22)),
    "cnn-lstm-one-frame": lambda: (seeded(CNNLSTM, 10, 64, 16, 1).eval(), signal(1, 1, 4, 4)),
}


#: One of each kind.
each_kind = pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])


@torch.no_grad()
def agree(mine, theirs, x, dtype=torch.float32) -> torch.Tensor:
    """``mine`` gives what ``theirs`` gives in float64, to what rounding may do; returns that."""
    got, expected = first(mine(x.to(dtype) if x.is_floating_point() else x)), first(theirs.double()(to_double(x)))
    assert (got.shape, got.dtype) == (expected.shape, dtype)
    assert relative_l2(got, expected) <= model_bound(theirs, dtype)
    return expected
