"""The four models on their input, with the work they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.cli.demo import inputs
from pykernels.models import CNNLSTM, LSTMLanguageModel, reference_twin, resnet18
from pykernels.models.reference import BasicBlock

VOCABULARY, STEPS = 10000, 64


@dataclass(frozen=True)
class Task:
    """A plain PyTorch model in eval mode, and what it is run on; the first input is the one that is timed."""

    name: str
    input: str
    model: nn.Module
    batches: list[Tensor]
    flops: int
    #: Weights, input and output once, in float32: the least that has to move.
    bytes: int


def photograph() -> Task:
    """ResNet-18 on two photographs."""
    pictures = inputs.photographs()
    model = _plain(resnet18)
    _calibrate(model, [inputs.crops(pictures, 8, 400, 224, seed) for seed in range(2)])
    return _task("ResNet-18", "china.jpg and flower.jpg, 224x224", model, [inputs.whole(p, 224) for p in pictures])


def tiles() -> Task:
    """ResNet-18, cifar form, on pieces of the photographs: colour images of 32x32, as CIFAR's are."""
    pictures = inputs.photographs()
    model = _plain(lambda: resnet18(stem="cifar"))
    _calibrate(model, [inputs.crops(pictures, 48, 96, 32, seed) for seed in range(2)])
    batches = list(inputs.crops(pictures, 8, 96, 32, seed=99).split(1))
    return _task("ResNet-18 (cifar)", "tiles of both photographs, 32x32", model, batches)


def language() -> Task:
    """The language model on 64 words, from three places of the text."""
    tokens = inputs.text().tokens
    model = _plain(lambda: LSTMLanguageModel(VOCABULARY, 256, 512, 2))
    batches = [tokens[at : at + STEPS][None] for at in (376, 2000, 4000)]
    return _task("LSTM language model", "64 words of scikit-learn's data set descriptions", model, batches)


def signal() -> Task:
    """The CNN-LSTM on a spectrogram."""
    model = _plain(lambda: CNNLSTM(10, 64 * 80 // 4, 256, 2))
    return _task("CNN-LSTM", "a nerve cell's recording (membrane.dat), 200x80", model, [inputs.spectrogram()])


TASKS: tuple[Callable[[], Task], ...] = (photograph, tiles, language, signal)


def _plain(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261122)
        return reference_twin(make()).eval()


@torch.no_grad()
def _calibrate(model: nn.Module, batches: list[Tensor]) -> None:
    """Batch norms that know the mean and the deviation of real images, and residual branches at a quarter's strength.

    A random ResNet at full strength is chaotic: it multiplies the rounding of every layer before it, as a trained one
    does not, and bfloat16 would be judged by that.
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


def _task(name: str, what: str, model: nn.Module, batches: list[Tensor]) -> Task:
    flops, words = _work(model, batches[0])
    return Task(name, what, model, batches, flops, 4 * words)


def _work(model: nn.Module, batch: Tensor) -> tuple[int, int]:
    """Floating-point operations of the products, and the words of weights, input and output."""
    flops = 0

    def count(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        nonlocal flops
        if isinstance(module, nn.Conv2d):
            flops += 2 * result.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            flops += 2 * result.numel() * module.in_features
        elif isinstance(module, nn.LSTM):
            steps = args[0].shape[0] * args[0].shape[1]
            flops += 2 * steps * sum(w.numel() for n, w in module.named_parameters() if n.startswith("weight"))

    handles = [m.register_forward_hook(count) for m in model.modules()]
    with torch.no_grad():
        result = logits(model(batch))
    for handle in handles:
        handle.remove()
    words = batch.numel() + result.numel() + sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # only the rows that are looked up
            words -= module.weight.numel() - batch.numel() * module.embedding_dim
    return flops, words


def logits(result: Any) -> Tensor:
    """A model's output without its state."""
    return result[0] if isinstance(result, tuple) else result
