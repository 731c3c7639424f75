"""The demo's picture: the work that it counts, and what it says of a busy machine."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from pykernels import _native
from pykernels.cli.bench.machine import Peaks
from pykernels.cli.bench.report import noise
from pykernels.cli.bench.result import Result
from pykernels.cli.demo.tasks import Task
from pykernels.cli.demo.work import Work, count

pytestmark = pytest.mark.skipif(_native.error is not None, reason=f"no native library: {_native.error}")


def test_work_counts_the_products_of_winograd():
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    x = torch.randn(1, 64, 56, 56)
    assert _native.introspect().conv_algorithm((1, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1) == 1
    direct = 2 * 9 * 64 * 64 * 56 * 56
    plain, ours = count(conv, x, direct)
    images = 2 * x.numel()
    assert plain == Work(direct, 4 * (images + 9 * 64 * 64))
    assert ours == Work(direct // 4, 4 * (images + 36 * 64 * 64))


def test_work_counts_what_every_time_step_reads():
    lstm = nn.LSTM(8, 16, batch_first=True)
    plain, ours = count(lstm, torch.randn(1, 10, 8), 1000)
    once = 10 * 8 + 10 * 16 + sum(p.numel() for p in lstm.parameters())
    assert plain == ours == Work(1000, 4 * (once + 9 * 4 * 16 * 16))


def test_work_counts_the_rows_of_an_embedding():
    table = nn.Embedding(1000, 4)
    plain, _ = count(table, torch.tensor([[1, 2, 3]]), 0)
    assert plain.bytes == 4 * (3 + 3 * 4 + 3 * 4)


@pytest.mark.parametrize(("others", "told"), [(0.0, False), (float(os.cpu_count() or 1), True)])
def test_noise_is_told(others, told):
    results = [Result("a", "plain PyTorch", 1, 1, 1, others=others)]
    assert ("NOT QUIET" in (noise(results) or "")) is told


def test_the_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture is drawn with matplotlib, of the extra [demo]")
    from pykernels.cli.demo.measure import CONTENDERS
    from pykernels.cli.demo.picture import draw

    task = Task("net", "noise", nn.Identity(), [], 4000, Work(4000, 100), Work(1000, 400))
    results = [Result("net", name, 1, 1, 4000, median_ms=1.0 + i, ratio=1.0) for i, name in enumerate(CONTENDERS)]
    path = draw([(task, results)], Peaks(100.0, 10.0, 1, 50.0), "title", tmp_path, "NOT QUIET")
    assert path.read_bytes().startswith(b"\x89PNG")
