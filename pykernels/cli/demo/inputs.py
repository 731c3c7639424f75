"""Real input from what installed packages ship: photographs, text and a recorded signal. Nothing is downloaded.

The photographs are scikit-learn's china.jpg and flower.jpg. The text is the descriptions of scikit-learn's data sets.
The signal is matplotlib's membrane.dat, the membrane potential of a firing nerve cell, 12000 samples.
"""

from __future__ import annotations

import importlib.resources
import re
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The statistics of ImageNet's colours, by which every torchvision model expects its input to be normalised.
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def photographs() -> list[Tensor]:
    """China and flower, each (3, 427, 640), normalised."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]
    return [(p - MEAN) / DEVIATION for p in pictures]


def whole(picture: Tensor, size: int) -> Tensor:
    """The largest centred square, resized: (1, 3, size, size)."""
    side = min(picture.shape[1:])
    top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
    return _resized(picture[:, top : top + side, left : left + side], size)


def crops(pictures: list[Tensor], count: int, side: int, size: int, seed: int) -> Tensor:
    """Squares of ``side`` pixels from random places of each picture in turn, resized: (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in picture.shape[1:])
        found.append(_resized(picture[:, top : top + side, left : left + side], size))
    return torch.cat(found)


def _resized(picture: Tensor, size: int) -> Tensor:
    return F.interpolate(picture[None], (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Text:
    """Words as token ids, the commonest word first in the vocabulary."""

    tokens: Tensor
    vocabulary: list[str]


def text() -> Text:
    """All descriptions, one after the other."""
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    prose = " ".join(f.read_text("utf-8") for f in sorted(folder.iterdir(), key=str) if f.name.endswith(".rst"))
    words = re.findall(r"[a-z]+(?:'[a-z]+)?|[.,;:?!]", prose.lower())
    vocabulary = [word for word, _ in Counter(words).most_common()]
    number = {word: i for i, word in enumerate(vocabulary)}
    return Text(torch.tensor([number[word] for word in words]), vocabulary)


def spectrogram() -> Tensor:
    """The recording as log power, 200 frames of 80 frequencies, standardised: (1, 1, 200, 80)."""
    from matplotlib import cbook

    path = str(cbook.get_sample_data("membrane.dat", asfileobj=False))
    samples = torch.from_file(path, size=12000, dtype=torch.float32).double()
    # 160 samples a frame give 81 frequencies; the lowest is the resting potential and is left out.
    spectrum = torch.stft(samples, 160, 59, window=torch.hann_window(160).double(), center=False, return_complex=True)
    power = spectrum.abs()[1:, :200].T.square().add(1e-10).log()
    return ((power - power.mean()) / power.std()).float()[None, None]
