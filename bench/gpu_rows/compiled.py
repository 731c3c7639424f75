"""Against torch.compile's max-autotune, which takes minutes to compile: last, and as far as the time goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from gpu_rows import conv, int8, models
from gpu_rows.measure import Bench, Rows

#: Without CUDA graphs of its own: everyone is captured by us.
MODE = "max-autotune-no-cudagraphs"
NAME = "torch.compile max-autotune"


def rows(bench: Bench) -> Rows:
    """ResNet-50 first, then an int8 product and a convolution."""

    def compiled(model: Any) -> Any:
        return bench.compile(model, MODE)

    for title, make, inputs in models.subjects(bench):
        if title.lower().startswith("resnet"):
            yield (
                f"{title} {str(bench.half)[6:]} vs compile",
                partial(models.row, bench, make, inputs, {NAME: compiled}),
            )
    for m, n, k in int8.shapes(bench)[3:4] or int8.shapes(bench):
        peer = bench.compile(int8._with_epilogue, MODE)
        yield f"int8 matmul M={m} N={n} K={k} vs compile", partial(int8.row, bench, m, n, k, {NAME: peer})
    for layer in conv.layers(bench)[:2]:
        yield f"conv {layer.title} vs compile", partial(conv.row, bench, layer, {NAME: _conv(bench)})


def _conv(bench: Bench) -> Callable[..., torch.Tensor]:
    def plain(folded: Any, bias: Any, layer: conv.Layer, x: torch.Tensor, residual: Any) -> torch.Tensor:
        y = F.conv2d(x, folded, bias, layer.stride, layer.pad, 1, layer.groups)
        return torch.relu(y if residual is None else y + residual)

    return bench.compile(plain, MODE)
