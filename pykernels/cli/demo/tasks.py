"""The four models on their input, with the work they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.cli.bench.peers.rows import by_name
from pykernels.cli.bench.peers.subjects import fresh
from pykernels.cli.demo import inputs
from pykernels.cli.demo.work import Work, count
from pykernels.models.reference import BasicBlock

#: The language model's sizes.
LANGUAGE = by_name("lstmlm_b1").sizes


@dataclass(frozen=True)
class Task:
    """A plain PyTorch model in eval mode, and what it is run on; the first input is the one that is timed."""

    name: str
    input: str
    model: nn.Module
    batches: list[Tensor]
    #: Of the first input, with direct convolutions.
    flops: int
    #: What a call on the first input does, in plain PyTorch and here.
    plain: Work
    ours: Work


def photograph() -> Task:
    """ResNet-18 on two photographs."""
    pictures = inputs.photographs()
    calibration = [inputs.crops(pictures, 8, 400, 224, seed) for seed in range(2)]
    batches = [inputs.whole(p, 224) for p in pictures]
    return _task("resnet18_b1", "ResNet-18", "china.jpg and flower.jpg, 224x224", batches, calibration)


def tiles() -> Task:
    """ResNet-18, cifar form, on pieces of the photographs: colour images of 32x32, as CIFAR's are."""
    pictures = inputs.photographs()
    calibration = [inputs.crops(pictures, 48, 96, 32, seed) for seed in range(2)]
    batches = list(inputs.crops(pictures, 8, 96, 32, seed=99).split(1))
    return _task("resnet18c_b1", "ResNet-18 (cifar)", "tiles of both photographs, 32x32", batches, calibration)


def language() -> Task:
    """The language model on 64 words, from three places of the text."""
    tokens, steps = inputs.text().tokens, int(LANGUAGE["tokens"])
    batches = [tokens[at : at + steps][None] for at in (376, 2000, 4000)]
    return _task("lstmlm_b1", "LSTM language model", "64 words of scikit-learn's data set descriptions", batches)


def signal() -> Task:
    """The CNN-LSTM on a spectrogram."""
    return _task("cnnlstm_b1", "CNN-LSTM", "a nerve cell's recording (membrane.dat), 200x80", [inputs.spectrogram()])


TASKS: tuple[Callable[[], Task], ...] = (photograph, tiles, language, signal)


def _task(row: str, name: str, what: str, batches: list[Tensor], calibration: Sequence[Tensor] = ()) -> Task:
    """The model of a row of ``bench peers``."""
    with torch.random.fork_rng(devices=[]):
        model = fresh(by_name(row))[0].eval()
    if calibration:
        _calibrate(model, calibration)
    flops = by_name(row).flops
    return Task(name, what, model, batches, flops, *count(model, batches[0], flops))


@torch.no_grad()
def _calibrate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Sets batch norms to the mean and deviation of real images, and residual branches to a quarter of their strength.

    A random ResNet at full strength is chaotic: unlike a trained one, it multiplies the rounding of every earlier
    layer, and would make bfloat16 look worse than it is.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for block in model.modules():
        if isinstance(block, BasicBlock):
            nn.init.constant_(block.bn2.weight, 0.25)
    model.train()
    for batch in batches:
        model(batch)
    model.eval()
    for norm in norms:
        norm.momentum = 0.1


def logits(result: Any) -> Tensor:
    """A model's output without its state."""
    return result[0] if isinstance(result, tuple) else result
