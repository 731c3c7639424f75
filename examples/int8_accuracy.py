"""What int8 costs in accuracy: three small models, trained here in minutes, in float, bfloat16 and int8.

``python examples/int8_accuracy.py [--only NAME] [--fold N] [--json bench/results/int8-accuracy.json]``

- digits: ResNet-18 in the form for CIFAR, on scikit-learn's handwritten digits
- strokes: the CNN-LSTM, which reads the same digits line by line
- text: the LSTM language model, on the characters of Python's own manual (`pydoc_data.topics`)

Nothing is downloaded; scikit-learn has to be installed for the first two. Each model is trained three times from
scratch, each time without another third of the data, which is its test: so all 1,797 digits are tested. Of the text it
is 512 passages. The rows of each are float32, bfloat16, int8 with dynamic and with static quantisation, and after one
more epoch: in float32, and with the rounding of int8. That epoch is the same for both: seed, order, rate and the batch
norms' statistics, which stay.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pykernels as pk
from pykernels.cli.bench.machine import describe

SEED = 7
FOLDS = 3


@dataclass
class Task:
    """A trained model with what it is judged by: ``score`` is better the larger it is."""

    unit: str
    model: nn.Module
    calibration: list[Any]
    score: Callable[[nn.Module], float]
    tune: Callable[[nn.Module], None]


def train(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batches: list[Any], epochs: int, rate: float
) -> None:
    """AdamW with a rate that falls to nothing."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for batch in random.sample(batches, len(batches)):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            schedule.step()


def digits(fold: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) about 0, and labels, to train on and to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (torch.tensor(data.images, dtype=torch.float32)[:, None] - 4.9) / 6
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    is_test = torch.arange(len(order)) % FOLDS == fold
    test, rest = order[is_test], order[~is_test]
    return images[rest], labels[rest], images[test], labels[test]


def classifier(fold: int, model: nn.Module, prepare: Callable[[Tensor], Tensor], epochs: int) -> Task:
    """A model that tells digits apart."""
    images, labels, test, expected = digits(fold)
    batches = list(zip(prepare(images).split(64), labels.split(64), strict=True))

    def loss(candidate: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(candidate(batch[0]), batch[1])

    def score(candidate: nn.Module) -> float:
        with torch.inference_mode():
            found = torch.cat([candidate(x).argmax(1) for x in prepare(test).split(100)])
        return 100 * float((found == expected).double().mean())

    train(model, loss, batches, epochs, 2e-3)
    tune = lambda trained: train(trained, loss, batches, 1, 1e-4)  # noqa: E731
    return Task("top-1, points", model.eval(), batches[:4], score, tune)


def digits_task(fold: int) -> Task:
    """ResNet-18 on images of 32x32."""
    model = pk.models.resnet18(num_classes=10, stem="cifar")

    def prepare(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1).contiguous()

    return classifier(fold, model, prepare, 3)


def strokes_task(fold: int) -> Task:
    """The CNN-LSTM on images of 16x16, as spectrograms of 16 frames."""
    model = pk.models.CNNLSTM(10, 256, 64, 1)
    return classifier(fold, model, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 12)


def text_task(fold: int) -> Task:
    """The language model, by characters."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    letters = sorted(set(text))
    tokens = torch.tensor([letters.index(c) for c in text])
    size = 48
    rows = tokens[: len(tokens) // (size + 1) * (size + 1)].view(-1, size + 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
    test, rest = rows[order[fold * 512 : (fold + 1) * 512]], order[FOLDS * 512 :]
    batches = list(rows[rest[:6400]].split(64))
    model = pk.models.LSTMLanguageModel(len(letters), 64, 256, 2)

    def loss(candidate: nn.Module, batch: Tensor) -> Tensor:
        length = random.randint(size // 2, size)
        return F.cross_entropy(candidate(batch[:, :length])[0], batch[:, length])

    def score(candidate: nn.Module) -> float:
        with torch.inference_mode():
            lost = [F.cross_entropy(candidate(test[:, :n])[0], test[:, n]) for n in range(size // 2, size)]
        return -float(torch.stack(lost).mean()) / math.log(2)

    train(model, loss, batches, 3, 4e-3)
    tune = lambda trained: train(trained, loss, batches, 1, 1e-4)  # noqa: E731
    return Task("-bits a character", model.eval(), [b[:, :-1] for b in batches[:4]], score, tune)


def rows_of(task: Task) -> dict[str, float]:
    """What each form of the model scores."""
    model = task.model
    found = {"float32": task.score(pk.optimize(model)), "bfloat16": task.score(pk.optimize(model, torch.bfloat16))}
    found["int8, dynamic"] = task.score(pk.quantize(model, dynamic=True))
    found["int8, static"] = task.score(pk.quantize(model, task.calibration))
    trained: Any = {
        "float32, trained on": copy.deepcopy(model),
        "int8, trained with the rounding": pk.quantize(model, task.calibration, qat=True),
    }
    for form, candidate in trained.items():
        seed(SEED)
        task.tune(candidate)
        found[form] = task.score(pk.optimize(candidate) if form.startswith("float32") else candidate.convert())
    return found


def seed(number: int) -> None:
    """Begins all random numbers anew."""
    torch.manual_seed(number)
    random.seed(number)


TASKS = {"digits": digits_task, "strokes": strokes_task, "text": text_task}


def main() -> None:
    """Trains, quantises and tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(TASKS))
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="one of them alone")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    told: list[dict[str, Any]] = []
    for name, make in TASKS.items():
        if given.only not in (None, name):
            continue
        for fold in range(FOLDS) if given.fold is None else [given.fold]:
            seed(SEED + fold)
            task = make(fold)
            found = rows_of(task)
            about = {"task": name, "unit": task.unit, "fold": fold}
            told += [{**about, "form": form, "score": score} for form, score in found.items()]
            print(f"{name}, fold {fold} ({task.unit})")
            for row, score in found.items():
                print(f"  {row:32s} {score:8.3f}  {score - found['float32']:+.3f}", flush=True)
    if given.json:
        about = {"schema": 1, "machine": describe(), "method": {"seed": SEED, "folds": FOLDS}}
        given.json.write_text(json.dumps({**about, "results": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
