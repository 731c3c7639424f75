"""The report: what runs, by whom, with which share, and why not ours."""

from __future__ import annotations

import json
import re
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
        y = self.pool(F.selu(self.bn(self.conv(x))))
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
    assert {k for k, v in who.items() if v == OURS} == {"conv+bn", "conv+relu", "LSTM", "max_pool2d", "group_norm"}
    assert who["linear"] == who["matmul"] == TORCH
    left = {x.what: x.why for x in report.left}
    assert "do not have this activation" in left["selu"]
    assert left["matmul"] == "pykernels has no kernel for it"
    assert "max_pool2d" not in left
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
                  "conv+bn by pykernels", "matmul: pykernels has no kernel for it"):  # fmt: skip
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
    (left,) = ran(Branches(), image()).report().left
    assert re.fullmatch(r"reads a value \(__bool__\), models.py:\d+", left.why)


@pytest.mark.parametrize("part", [lambda: DenseLayer(8), lambda: SqueezeExcite(8, 4)])
def test_layers_that_could_matter_are_told(part):
    model = part()
    x = [image(1, 8, 6, 6)] if isinstance(model, DenseLayer) else image(1, 8, 6, 6)
    report = ran(model, x).report()
    assert report.replaced
    assert not report.left
    assert ("bn+relu" in {x.what for x in report.replaced}) == isinstance(model, DenseLayer)


def test_as_data(mixed):
    data = json.loads(json.dumps(mixed.report(time=True).to_dict()))
    assert set(data) == {
        "replaced", "left", "programs", "torch_steps", "steps", "entries", "plain", "conversions", "doors",
        "packed_bytes", "arena_bytes", "released_bytes",
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


class Parts(nn.Module):
    """Its own code can't be followed; or, with ``sums``, can."""

    def __init__(self, sums=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head, self.sums = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Softmax(1)), sums

    def forward(self, x):
        y = self.backbone(x)
        return self.head(y) if self.sums or y.sum() > 0 else self.head(-y)


CONV, HEAD = 2 * 2 * 8 * 144 * 27, 2 * 2 * 4 * 144 * 8


def operations(report):
    return sum(s.flops for s in report.counted())


def test_a_child_called_by_itself_counts_once():
    fast = ran(Parts(sums=True), image())
    once = fast.report()
    with torch.no_grad():
        for _ in range(3):
            fast.backbone(image())
    report = fast.report(time=True)
    assert report.programs == 2
    assert operations(report) == operations(once) == CONV + HEAD
    assert (len(report.replaced), report.torch_steps, report.packed_bytes) == (
        len(once.replaced), once.torch_steps, once.packed_bytes,
    )  # fmt: skip
    assert [(e.where, e.counts) for e in report.entries] == [("the model", True), ("backbone", False)]
    assert {s.seconds is None for s in report.steps if s.program == 2} == {True}
    assert "2: backbone on float32 2x3x12x12, or other sizes (not in the shares)" in str(report)


def test_parts_of_what_cannot_be_followed_are_added_up():
    report = ran(Parts(), image()).report()
    assert operations(report) == CONV + HEAD
    assert [(e.where, e.counts) for e in report.entries] == [("backbone", True), ("head", True)]
    assert {x.why for x in report.left if x.where == "the model"}.pop().startswith("reads a value (__bool__), test_rep")


@torch.no_grad()
def test_operations_are_of_the_last_size():
    fast = ran(Parts(sums=True), image())
    for _ in range(2):
        fast(image(4, 3, 12, 12))
    report = fast.report()
    assert operations(report) == 2 * (CONV + HEAD)
    assert [e.inputs for e in report.entries] == [("float32 4x3x12x12",)]


def test_the_reason_why_a_step_is_torchs_is_the_one_that_holds():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(2, 8)

        def forward(self, rows, image, turn=False):
            turned = image.permute(0, 1, 3, 2) if turn else image
            return self.norm(rows), self.norm(turned), F.interpolate(image, size=5, mode="bicubic")

    fast = pk.optimize(Norms())
    with torch.no_grad():
        for _ in range(2):
            fast(torch.randn(2, 8, 6), torch.randn(2, 8, 6, 6), turn=True)
        report = fast.report()
    assert {(x.what, x.why) for x in report.left} == {
        ("group_norm", "has an input of 3 dimensions; the kernels take four, (N, C, H, W)"),
        ("group_norm", "has an input that is neither contiguous nor channels_last, such as a permuted one"),
        ("interpolate", "has a mode, an option or a size that the kernels do not take"),
    }
    assert report.entries[0].inputs == ("float32 2x8x6", "float32 2x8x6x6", "turn=True")


class Sized(Parts):
    def forward(self, x):
        return super().forward(x).view(x.shape[0], -1)


@torch.no_grad()
def test_one_program_for_each_size_is_not_added_up():
    fast = ran(Sized(sums=True), image())
    for _ in range(2):
        fast(image(4, 3, 12, 12))
    report = fast.report()
    assert [(e.inputs, e.exact, e.counts) for e in report.entries] == [
        (("float32 2x3x12x12",), True, False), (("float32 4x3x12x12",), True, True),
    ]  # fmt: skip
    assert operations(report) == 2 * (CONV + HEAD)
    assert len(report.replaced) == 2
    fast(image())
    assert [e.counts for e in fast.report().entries] == [True, False]


def test_steps_are_named_after_the_layer_that_runs_them():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    report = ran(nn.Sequential(model, nn.Linear(200, 4)), image()).report()
    assert [s.where for s in report.steps] == ["0.0", "0.3", "0.4", "1", "the result"]
    assert report.replaced[0].where == ("0.0", "0.1", "0.2")
    assert "first: )" not in str(ran(nn.Conv2d(3, 8, 3), image()).report())


def test_operations_of_int8_layers_are_known():
    model = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid(), pk.nn.Int8Linear(4, 6))
    report = ran(model, torch.randn(3, 8)).report()
    assert sum(s["flops"] for s in report.to_dict()["steps"]) == 2 * 3 * (8 * 4 + 4 * 6)


def test_opaque_operations_are_unknown():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1)))
    model[1].register_forward_hook(lambda *_: None)
    report = ran(model, image()).report()
    assert [s.flops for s in report.steps if s.who == ITSELF] == [None]
    text = str(report)
    assert "unknown operations" in text
    assert "those of 1 step are unknown" in text
    assert "unknown" in report.to_svg()


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), 3, 2 * 10 * 8 * 8 * 4 + 2 * 2 * 2 * 5 * 5 * 8),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, 2 * 10 * 8 * (8 * 4 + 32) + 2 * 2 * 2 * 5 * 5 * 8),
        (nn.GRU(8, 6, batch_first=True), 1, 2 * 10 * 18 * (8 + 6)),
    ],
)
def test_operations_of_whole_modules(model, inputs, expected):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            y = self.inner(*[x] * inputs)
            return (y[0] if isinstance(y, tuple) else y) * 2

    assert operations(ran(Around(), torch.randn(2, 5, 8)).report()) == expected


def test_calls_that_pass_programs_by_are_told():
    fast = pk.optimize(randomise(Parts(sums=True)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast(image()), fast(image())
    fast(image().requires_grad_())
    report = fast.report()
    assert [(p.where, p.why, p.calls) for p in report.plain] == [
        ("the model", "autocast is on", 2), ("the model", "an input requires gradients", 1),
    ]  # fmt: skip
    text = str(report)
    assert "nothing has run yet" not in text
    assert "2 calls of the model did not run a program: autocast is on" in text
    assert "no program has been made" in text
    assert "replaced" not in text
    fast.requires_grad_(), fast(image()), fast(image())
    assert "its weights require gradients" in str(fast.report())


def test_conversions_are_told():
    wide = nn.Sequential(*(nn.Conv2d(c, 32, 3, padding=1) for c in (3, 32, 32)), nn.ReLU())
    report = ran(wide, image(2, 3, 32, 32)).report()
    assert report.conversions == {"to channels last": 1, "to contiguous": 1}
    assert "conversions: to channels last, to contiguous" in str(report)
    fast = pk.optimize(wide, dtype=torch.bfloat16)
    assert "inputs from float32 to bfloat16, results back" in fast.report().conversions


def test_kernels_of_ours_in_a_model_are_not_torchs():
    report = ran(nn.Sequential(pk.nn.LSTM(8, 6), nn.Identity())[:1], torch.randn(5, 2, 8)).report()
    assert not report.left
    fast = ran(nn.Sequential(nn.Identity(), nn.LSTM(8, 6)), torch.randn(5, 2, 8))
    assert fast.report().packed_bytes > 4 * 24 * 14


@pytest.mark.parametrize("batch_first", [False, True])
def test_conversions_without_convolutions_are_told(batch_first):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(8, 6, batch_first=batch_first)

        def forward(self, x):
            return self.rnn(x * 2)[0]

    assert ran(Turned(), torch.randn(3, 5, 8)).report().conversions == ({"to time major": 1} if batch_first else {})


def test_what_lies_in_a_whole_module_is_not_told():
    report = ran(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2), torch.randn(3, 2, 8)).report()
    assert [x.what for x in report.left] == ["TransformerEncoder"]


def test_only_svg_is_written(mixed, tmp_path):
    with pytest.raises(ValueError, match=r"Report.svg: path: expected a name that ends in .svg.*got .png"):
        mixed.report().svg(tmp_path / "r.png")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet", "lstm", "inside another"])
def test_what_our_own_models_pack_counts(name):
    model = pk.models.resnet18(stem="cifar") if name != "lstm" else pk.models.LSTMLanguageModel(50, 8, 16, 1)
    x = torch.randn(1, 3, 32, 32) if name != "lstm" else torch.randint(50, (1, 4))
    fast = pk.optimize(model if name != "inside another" else nn.Sequential(model, nn.ReLU()))
    assert fast.report().packed_bytes == 0
    for _ in range(2):
        fast(x)
    weights = sum(p.nbytes for p in model.parameters() if p.dim() > 1 and p.shape[0] != 50)
    assert weights <= fast.report().packed_bytes <= 6 * weights


class OfPacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 8)

    def forward(self, x):
        return self.rnn(x)[1][0]


@torch.no_grad()
def test_a_packed_sequence_is_named():
    fast = pk.optimize(OfPacked().eval())
    for _ in range(2):  # the second call looks at the part
        fast(nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3])))
    why = {left.what: left.why for left in fast.report().left}
    assert why["LSTM"] == "rnn (LSTM) takes a PackedSequence, whose sizes depend on values"
    assert why["OfPacked"].startswith(why["LSTM"])


class MostlyMoves(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        y = self.conv(x).relu()
        for _ in range(3):
            y = y.transpose(2, 3).sin()
        return self.head(y.mean((2, 3)))


@torch.no_grad()
def test_the_first_lines_weigh_steps():
    fast = pk.optimize(MostlyMoves().eval())
    for _ in range(2):
        fast(image())
    report = fast.report()
    first, second = str(report).splitlines()[:2]
    heavy = sum(s.who == TORCH and bool(s.flops) for s in report.counted())
    assert heavy == 1  # too little work
    assert first.endswith(f"torch runs {report.torch_steps} of {len(report.counted())} steps, 1 of them with products")
    assert second == "pykernels runs more than 99% of the operations"
