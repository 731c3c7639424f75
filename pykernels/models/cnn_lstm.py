"""CNN-LSTM for signals: two convolutions over a spectrogram, a bidirectional LSTM over its frames, a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels.models._fused import Fused
from pykernels.nn import LSTM
from pykernels.ops._arguments import check_int, fail


class CNNLSTM(nn.Module):
    """Convolution 3x3 to 32 channels, max-pool, convolution 3x3 to 64, max-pool, bidirectional LSTM, linear.

    >>> model = pk.models.CNNLSTM(10, input_size=64 * 80 // 4, hidden_size=256, num_layers=2).eval()
    >>> logits = model(spectrograms)  # (B, 1, T, 80) to (B, 10)

    Each pooling halves time and features, rounding down. A frame is the 64 channels of one step one after the other,
    64 (F // 4) values.

    Args:
        num_classes: Width of the classifier.
        input_size: Values in a frame: 64 (F // 4) for spectrograms of F features.
        hidden_size: Width of the LSTM in each direction.
        num_layers: Depth of the LSTM.
        per_frame: Whether to classify every frame, as CTC wants, and not only the last step.

    Raises:
        TypeError: A count is not an int.
        ValueError: A count is not positive, or ``input_size`` is not a multiple of 64.
    """

    def __init__(
        self, num_classes: int, input_size: int, hidden_size: int, num_layers: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        counts = {
            "num_classes": num_classes, "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers,
        }  # fmt: skip
        for name, count in counts.items():
            check_int("CNNLSTM", name, count, 1)
        if input_size % 64:
            fail(ValueError, "CNNLSTM", "input_size", "64 * (F // 4), a multiple of 64", input_size)
        self.config: dict[str, Any] = {**counts, "per_frame": per_frame}
        self.per_frame = per_frame
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self._first = Fused(self.conv1, None, "relu")
        self._second = Fused(self.conv2, None, "relu")
        self.lstm = LSTM(input_size, hidden_size, num_layers, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies spectrograms.

        Args:
            x: (B, 1, T, F), with T at least 4 and 64 (F // 4) equal to ``input_size``.

        Returns:
            (B, num_classes) logits, or with ``per_frame`` (B, T // 4, num_classes).

        Raises:
            ValueError: ``x`` is of another shape.
        """
        if not isinstance(x, torch.fx.Proxy):
            self._check(x)
        x = F.max_pool2d(self._first(x, self.conv1), 2)
        x = F.max_pool2d(self._second(x, self.conv2), 2)
        frames = x.transpose(1, 2).flatten(2)  # (B, 64, T / 4, F / 4) to (B, T / 4, 64 F / 4)
        output, _ = self.lstm(frames)
        return self.fc(output if self.per_frame else output[:, -1])

    if TYPE_CHECKING:
        __call__ = forward

    def _check(self, x: Tensor) -> None:
        features = self.config["input_size"] // 64
        if x.dim() == 4 and x.shape[1] == 1 and x.shape[2] >= 4 and x.shape[3] // 4 == features:
            return
        size = f"; its frames would have 64 * {x.shape[3] // 4} values" if x.dim() == 4 else ""
        expected = (
            f"(B, 1, T, F) with T at least 4 and F from {4 * features} to {4 * features + 3} "
            f"(input_size {self.config['input_size']} = 64 * (F // 4))"
        )
        fail(ValueError, "CNNLSTM", "x", expected, f"{tuple(x.shape)}{size}")
