"""Convolutions of sequences: speech to letters, causal stacks, and what other networks hear and read with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Wav2Letter(nn.Module):
    """Letters of speech (Collobert et al. 2016), as in torchaudio: (N, 64, L) -> (N, 29, L / 2)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(64, 250, 48, 2, 23), *[(250, 250, 7, 1, 3)] * 7, (250, 2000, 32, 1, 16), (2000, 2000, 1, 1, 0)]
        self.body = nn.Sequential(*(m for layer in layers for m in (nn.Conv1d(*layer), nn.ReLU(inplace=True))))
        self.head = nn.Conv1d(2000, 29, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.log_softmax(F.relu(self.head(self.body(x))), 1)


class TemporalBlock(nn.Module):
    """Two causal convolutions, the zeros of which are cut off again behind them, and what comes in."""

    def __init__(self, c: int, k: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.a = nn.Conv1d(c, k, kernel, padding=self.reach, dilation=dilation)
        self.b = nn.Conv1d(k, k, kernel, padding=self.reach, dilation=dilation)
        self.down = nn.Conv1d(c, k, 1) if c != k else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) -> (N, K, L)."""
        y = x
        for conv in (self.a, self.b):
            y = F.dropout(F.relu(conv(y)[:, :, : -self.reach].contiguous()), 0.2, self.training)
        return F.relu(y + self.down(x))


class TCN(nn.Sequential):
    """A temporal convolutional network (Bai et al. 2018), weight norm folded: (N, 32, L) -> (N, 64, L)."""

    def __init__(self) -> None:
        super().__init__(*(TemporalBlock(64 if i else 32, 64, 3, 2**i) for i in range(8)))


class Wav2VecFeatures(nn.Sequential):
    """What wav2vec 2.0 hears with (Baevski et al. 2020), without its norm: (N, 1, L) -> (N, 512, L / 320)."""

    def __init__(self) -> None:
        layers = [(1, 512, 10, 5), *[(512, 512, 3, 2)] * 4, *[(512, 512, 2, 2)] * 2]
        super().__init__(*(m for layer in layers for m in (nn.Conv1d(*layer, bias=False), nn.GELU())))


class TacotronEncoder(nn.Module):
    """What Tacotron 2 reads with (Shen et al. 2018), behind the embedding: (N, 512, L) -> (N, L, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(512, 512, 5, padding=2) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(512) for _ in range(3))
        self.lstm = nn.LSTM(512, 256, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.dropout(F.relu(norm(conv(x))), 0.5, self.training)
        return self.lstm(x.transpose(1, 2))[0]
