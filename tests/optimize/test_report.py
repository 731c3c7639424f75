"""The report: what runs, by whom, with which share, and why not ours."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.cli.bench.peers.networks import build
from pykernels.cli.bench.peers.networks.layers import SqueezeExcite
from pykernels.cli.bench.peers.networks.residual import DenseLayer
from pykernels.optimize import _tell
from pykernels.optimize._report import ITSELF, OURS, TORCH, Ran, Report
from tests.optimize.models import Branches, image, randomise


def ran(model, *inputs):
    fast = pk.optimize(randomise(model))
    with torch.no_grad():
        for _ in range(3):
            fast(*inputs)
    return fast


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.other, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head, self.rnn = nn.Linear(8, 5), nn.LSTM(8, 6, batch_first=True)

    def forward(self, x):
        y = self.pool(F.relu6(self.bn(self.conv(x))))
        y = self.norm(F.relu(self.other(y))).flatten(2).transpose(1, 2)
        return self.head(y) @ self.rnn(y)[0].sum(1).view(-1, 6, 1).expand(-1, 6, 5).transpose(1, 2)


@pytest.fixture(scope="module")
def mixed():
    return ran(Mixed(), image(2, 3, 12, 12))


def test_operations_are_those_of_the_products(mixed):
    by_what = {s.what: s for s in mixed.report().steps}
    assert by_what["conv+bn"].flops == 2 * (2 * 8 * 10 * 10) * 27
    assert by_what["conv+relu"].flops == 2 * (2 * 8 * 5 * 5) * 72
    assert by_what["linear"].flops == 2 * 2 * 25 * 8 * 5
    assert by_what["LSTM"].flops == 2 * (2 * 25) * 24 * (8 + 6)
    assert by_what["max_pool2d"].flops == 0


def test_who_runs_what_and_why(mixed):
    report = mixed.report()
    who = {s.what: s.who for s in report.steps}
    assert {k: v for k, v in who.items() if v == OURS} == {"conv+bn": OURS, "conv+relu": OURS, "LSTM": OURS}
    assert who["linear"] == who["max_pool2d"] == who["group_norm"] == TORCH
    left = {x.what: x.why for x in report.left}
    assert "no activation of the kernels" in left["relu6"]
    assert left["group_norm"] == left["max_pool2d"] == "has no kernels of ours"
    assert sum(s.who == TORCH for s in report.steps) == report.torch_steps
    assert report.doors == {_tell.RECORDED: 1}
    assert report.packed_bytes > 4 * (8 * 27 + 8 * 72)


def test_times_of_all_steps(mixed):
    report = mixed.report(time=True)
    assert all(s.seconds is not None and s.seconds > 0 for s in report.steps)
    assert 0 < report.share("time", OURS) < 1
    assert abs(sum(report.share("time", who) for who in (OURS, TORCH, ITSELF)) - 1) < 1e-9
    assert mixed.report().share("time", OURS) is None
    text = str(report)
    for words in ("1 program (1 by recording a call)", "of the operations and", "of the time", "MB of packed weights",
                  "conv+bn by pykernels", "group_norm: has no kernels of ours"):  # fmt: skip
        assert words in text


@torch.no_grad()
def test_timing_changes_nothing():
    model, x = randomise(Mixed()), image(2, 3, 12, 12)
    fast = pk.optimize(model)
    fast(x), fast(x)
    expected = fast(x)
    fast.report(time=True)
    assert torch.equal(fast(x), expected)
    larger = image(3, 3, 16, 14)
    fast(larger)
    assert all(s.seconds for s in fast.report(time=True).steps)
    assert torch.allclose(fast(larger), model(larger), atol=1e-4)
    model.conv.weight.mul_(2)
    fast.report(time=True)
    assert torch.allclose(fast(x), model(x), atol=1e-4)


def test_what_cannot_be_followed_is_not_called_for_its_time():
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1))
    model[1].register_forward_hook(lambda *_: seen.append(1))
    fast = ran(model, image())
    before = len(seen)
    report = fast.report(time=True)
    assert before == len(seen)
    (hidden,) = (s for s in report.steps if s.who == ITSELF)
    assert hidden.seconds is None
    assert all(s.seconds is not None for s in report.steps if s is not hidden)
    assert any("hooks" in x.why for x in report.left)


def test_made_up_inputs_that_do_not_suit():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 8)

        def forward(self, i):
            return self.table(i).view(2, -1) + self.table(i - 1).view(2, -1)

    fast = ran(Needs(), torch.tensor([[1, 2], [3, 1]]))
    assert all(s.seconds is None for s in fast.report(time=True).steps)


def test_no_sentence_of_torchs_and_none_twice():
    report = (
        ran(nn.Sequential(Branches(), Branches()), image()).report() if False else ran(Branches(), image()).report()
    )
    reasons = [x.why for x in report.left]
    assert reasons == ["reads a value (__bool__)"]


@pytest.mark.parametrize("part", [lambda: DenseLayer(8), lambda: SqueezeExcite(8, 4)])
def test_layers_that_could_matter_are_told(part):
    model = part()
    x = [image(1, 8, 6, 6)] if isinstance(model, DenseLayer) else image(1, 8, 6, 6)
    report = ran(model, x).report()
    assert report.replaced
    told = {x.what for x in report.left}
    assert told == ({"batch_norm"} if isinstance(model, DenseLayer) else {"adaptive_avg_pool2d"})


def test_as_data(mixed):
    data = json.loads(json.dumps(mixed.report(time=True).to_dict()))
    assert set(data) == {
        "replaced", "left", "programs", "torch_steps", "steps", "doors", "packed_bytes", "arena_bytes",
    }  # fmt: skip
    assert set(data["steps"][0]) == {"program", "where", "what", "who", "flops", "seconds"}


def test_as_a_picture(mixed, tmp_path):
    mixed.report(time=True).svg(tmp_path / "steps.svg")
    root = ElementTree.parse(tmp_path / "steps.svg").getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(": conv" in t for t in texts) == 2
    assert any("ms" in t for t in texts)
    untimed = ElementTree.fromstring(mixed.report().to_svg())
    assert any("operations" in t.text for t in untimed.iter("{http://www.w3.org/2000/svg}text"))


def test_pictures_of_nothing_and_of_much():
    assert ElementTree.fromstring(Report().to_svg()).tag.endswith("svg")
    steps = [Ran(1, f"a<b>&{i}", "conv", OURS if i % 2 else TORCH, i) for i in range(300)]
    text = Report(steps=steps, programs=1).to_svg()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "180 more" in text


@torch.no_grad()
def test_the_report_of_a_network():
    model, x = build("mobilenet_v2")
    fast = pk.optimize(model)
    for _ in range(2):
        fast(x[..., :64, :64])
    report = fast.report(time=True)
    assert len(report.steps) < 120
    assert report.share("operations", OURS) + report.share("operations", TORCH) == pytest.approx(1)
    assert {x.what for x in report.left} <= {"conv+bn", "hardtanh", "linear"}
