"""pk.optimize: same numbers, fused where it may, left alone where it must."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import relative_l2

TOLERANCE = 1e-5


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that a wrong fold would show."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(m.bias, generator=generator)
    return model.eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 12, 12)), generator=torch.Generator().manual_seed(1))


def same(model: nn.Module, *inputs: torch.Tensor) -> pk.optimize:
    """The optimised model, after checking it against the original on ``inputs``: recorded, bound and run."""
    fast = pk.optimize(randomise(model))
    with torch.no_grad():
        expected = model(*inputs)
        for _ in range(3):
            got = fast(*inputs)
            assert got.dtype == expected.dtype
            assert got.is_contiguous() == expected.is_contiguous()
            assert relative_l2(got, expected) < TOLERANCE
    return fast


def kinds(fast) -> list[str]:
    return [r.what for r in fast.report().replaced]


class Functional(nn.Module):
    def __init__(self, order: str):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.bn = nn.BatchNorm2d(8)
        self.order = order

    def forward(self, x):
        y = F.conv2d(x, self.weight, stride=2, padding=1)
        y = F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, False, 0.1, 1e-3)
        if self.order == "inplace":
            return F.relu(y, inplace=True)
        if self.order == "method":
            return y.relu_()
        if self.order == "leaky":
            return F.leaky_relu(y, 0.2)
        return torch.sigmoid(y)


@pytest.mark.parametrize("order", ["inplace", "method", "leaky", "torch"])
def test_functional_forms_are_folded(order):
    fast = same(Functional(order), image())
    assert len(kinds(fast)) == 1
    assert kinds(fast)[0].startswith("conv+bn+")


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.3),
        nn.ELU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.SiLU(),
        nn.GELU(),
        nn.Hardswish(),
    ],
    ids=lambda m: repr(m),
)
def test_sequential_is_folded(activation):
    fast = same(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), activation, nn.Dropout(0.5)), image())
    assert len(fast.report().replaced) == 1


@pytest.mark.parametrize("activation", [nn.ELU(0.5), nn.GELU("tanh"), nn.ReLU6(), nn.Softplus()], ids=lambda m: repr(m))
def test_activations_that_are_not_ours_stay(activation):
    fast = same(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), activation), image())
    assert kinds(fast) == ["conv+bn"]


class ComputedStatistics(nn.Module):
    """Statistics that are no constants: nothing to fold."""

    def __init__(self, what: str):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.what = what

    def forward(self, x):
        y, bn = self.conv(x), self.bn
        mean = y.mean((0, 2, 3)) if self.what == "mean" else bn.running_mean
        var = y.var((0, 2, 3)) if self.what == "var" else bn.running_var
        bias = x.mean() * bn.bias if self.what == "bias" else bn.bias
        weight = None if self.what == "no weight" else bn.weight
        return F.batch_norm(y, mean, var, weight, bias, eps=2e-5)


@pytest.mark.parametrize("what", ["mean", "var", "bias", "no weight"])
def test_computed_statistics_are_not_folded(what):
    assert kinds(same(ComputedStatistics(what), image())) == ["conv"]


class Block(nn.Module):
    def __init__(self, form: str):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.form = form

    def forward(self, x):
        identity = x
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.form == "iadd":
            out += identity
        elif self.form == "add":
            out = identity + out
        elif self.form == "torch.add":
            out = torch.add(out, identity)
        elif self.form == "method":
            out = out.add_(identity)
        elif self.form == "broadcast":
            out = out + identity.mean((2, 3), keepdim=True)
        elif self.form == "alpha":
            out = torch.add(out, identity, alpha=2)
        elif self.form == "scalar":
            out = out + 1
        elif self.form == "overwritten":
            out = out + identity.mul_(2)
        elif self.form == "into identity":
            identity += out
            out = identity
        return F.relu(out)


@pytest.mark.parametrize("form", ["iadd", "add", "torch.add", "method"])
def test_residual_is_folded(form):
    assert kinds(same(Block(form), image(2, 6, 9, 9))) == ["conv+bn+relu", "conv+bn+add+relu"]


def test_residual_that_broadcasts_gives_the_same():
    same(Block("broadcast"), image(2, 6, 9, 9))


@pytest.mark.parametrize("form", ["alpha", "scalar"])
def test_other_additions_stay(form):
    assert kinds(same(Block(form), image(2, 6, 9, 9))) == ["conv+bn+relu", "conv+bn"]


@pytest.mark.parametrize("form", ["overwritten", "into identity"])
def test_writes_in_place_keep_their_order(form):
    model = randomise(Block(form))
    x, y = image(2, 6, 9, 9), image(2, 6, 9, 9)
    fast = pk.optimize(model)
    with torch.no_grad():
        assert relative_l2(fast(x), model(y)) < TOLERANCE
    assert relative_l2(x, y) < TOLERANCE


class ReadsTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        F.relu(y, inplace=True)
        return self.bn(y) + y


def test_an_intermediate_with_two_readers_ends_a_chain():
    assert kinds(same(ReadsTwice(), image())) == ["conv+relu"]


class View(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5 * 100, 4)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).view(x.size(0), -1))


def test_a_view_of_a_convolution_keeps_its_order():
    same(View(), image())


def test_channels_last_input_gives_channels_last_output():
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    x = image().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert pk.optimize(model)(x).is_contiguous(memory_format=torch.channels_last)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x, mask=None):
        y = self.body(x)
        return y if mask is None else y * mask

    def describe(self):
        return f"{len(self.body)} layers"


class Branches(Optional):
    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)


class AsksType(Optional):
    def forward(self, x):
        return self.body(x) if isinstance(x, torch.Tensor) else x


class Counts(Optional):
    calls = 0

    def forward(self, x):
        self.calls = self.calls + 1
        return self.body(x)


class MakesTensors(Optional):
    def forward(self, x):
        return self.body(x + torch.randn(3, 1, 1))


@pytest.mark.parametrize("kind", [Optional, Branches, AsksType, Counts])
def test_what_cannot_be_followed_is_left_and_its_children_run_as_programs(kind):
    fast = same(kind(), image())
    assert kinds(fast) == ["conv+bn+relu"]
    reasons = " ".join(x.why for x in fast.report().left)
    assert {Branches: "reads a value", Counts: "keeps state (calls)"}.get(kind, "") in reasons
    assert fast.describe() == "3 layers"


class Surprise(nn.Module):
    """Forwards that plain tracing would get wrong without a word."""

    def __init__(self, what: str):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("n", torch.ones(()))
        self.calls, self.stored = [], {}
        self.what = what

    def forward(self, x):
        y = self.c(x)
        if self.what == "buffer written":
            self.n += 1
            return y * self.n
        if self.what == "buffer read as a number":
            return y * float(self.n)
        if self.what == "list":
            self.calls.append(1)
            return y * len(self.calls)
        if self.what == "dict":
            self.stored["y"] = y
            return y
        if self.what == "hasattr":
            return -y if hasattr(x, "tensors") else y
        if self.what == "except":
            try:
                return y.no_such_method()
            except AttributeError:
                return y * 2
        if self.what == "grad mode":
            return y if torch.is_grad_enabled() else y * 3
        if self.what == "alias by contiguous":
            z = F.relu(y)
            z.contiguous().mul_(3)
            return z
        if self.what == "alias by reshape":
            v = y.reshape(2, -1)
            v += 1
            return y
        if self.what == "strides":
            return y * y.stride(1)
        if self.what == "children by type":
            for child in self.children():
                if isinstance(child, nn.Conv2d):
                    y = child(y)
            return y if x.shape[0] else -y
        if self.what == "weight by name":
            return F.conv2d(y, self.c.weight) if x.shape[0] > 1 else y
        return y.view(size=(x.shape[0], -1))


SURPRISES = [
    "buffer written", "buffer read as a number", "list", "dict", "hasattr", "except", "grad mode",
    "alias by contiguous", "alias by reshape", "strides", "children by type", "weight by name", "view by keyword",
]  # fmt: skip


@pytest.mark.parametrize("what", SURPRISES)
def test_what_tracing_would_get_wrong_stays_right(what):
    model = randomise(Surprise(what))
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    fast = pk.optimize(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.calls, model.stored) == ([], {})
    with torch.no_grad():
        for _ in range(3):
            x = image(2, 4, 8, 8)
            assert relative_l2(fast(x), twin(x)) < TOLERANCE
    pickle.dumps(fast)


def test_buffers_are_read_at_each_call():
    model = randomise(Surprise("buffer read as a number"))
    fast = pk.optimize(model)
    model.load_state_dict({**model.state_dict(), "n": torch.tensor(2.0)})
    with torch.no_grad():
        assert relative_l2(fast(image(2, 4, 8, 8)), model(image(2, 4, 8, 8))) < TOLERANCE


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x, mask):
        return self.c(x) * 2 if mask is None else self.c(x) * mask


def test_none_for_a_required_argument():
    model = randomise(Masked())
    fast = pk.optimize(model)
    with torch.no_grad():
        for mask in (None, torch.full((), 3.0), 0.5):
            assert relative_l2(fast(image(), mask), model(image(), mask)) < TOLERANCE


class AutocastInside(Masked):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.c(x)


def test_autocast_inside_is_kept():
    model = randomise(AutocastInside())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert pk.optimize(model)(image()).dtype == model(image()).dtype == torch.float32


class Output(dict):
    __getattr__ = dict.__getitem__


class Mapping(Masked):
    def forward(self, x):
        return Output(logits=self.c(x)) if x.shape[0] else None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_dict_subclasses_come_back_as_they_are(dtype):
    with torch.no_grad():
        assert pk.optimize(randomise(Mapping()), dtype=dtype)(image()).logits.dtype == torch.float32


def test_optional_arguments_go_on_working():
    model = randomise(Optional())
    fast = pk.optimize(model)
    with torch.no_grad():
        assert relative_l2(fast(image(), mask=torch.full((), 2.0)), 2 * model(image())) < TOLERANCE


def test_a_model_that_counts_goes_on_counting():
    fast = pk.optimize(randomise(Counts()))
    fast(image()), fast(image())
    assert fast.calls == 2


def test_fresh_random_tensors_stay_random():
    fast = pk.optimize(randomise(MakesTensors()))
    with torch.no_grad():
        assert not torch.equal(fast(image()), fast(image()))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 3, 3, padding=1), Branches()

    def forward(self, x):
        return self.inner(F.relu(self.conv(x)))


def test_only_the_untraceable_part_is_kept_whole():
    fast = same(Inner(), image())
    assert sorted(kinds(fast)) == ["conv+bn+relu", "conv+relu"]


def test_hooks_are_kept():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    fast = pk.optimize(model)
    with torch.no_grad():
        assert relative_l2(fast(image()), model(image())) < TOLERANCE
        fast(image())
    assert len(seen) == 3
    assert any("hooks" in x.why for x in fast.report().left)


def test_subclasses_do_what_their_forward_says():
    class MyConv(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    assert kinds(same(nn.Sequential(MyConv(3, 4, 3), nn.ReLU()), image())) == ["conv"]


def test_weights_that_are_computed_are_computed_once_for_each_version():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(conv, nn.ReLU())
    fast = same(model, image())
    assert kinds(fast) == ["conv+relu"]
    with torch.no_grad():
        conv.parametrizations.weight.original1.mul_(2)
        assert relative_l2(fast(image()), model(image())) < TOLERANCE


def test_one_convolution_used_twice():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    fast = same(nn.Sequential(conv, nn.ReLU(), conv, nn.Tanh()), image())
    assert kinds(fast) == ["conv+relu", "conv+tanh"]


def test_batch_norm_alone_and_without_statistics_stays():
    fast = same(
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), image()
    )
    assert kinds(fast) == ["conv"]
    assert {x.what for x in fast.report().left} >= {"batch_norm"}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(10, 4)
        self.gru = nn.GRU(4, 4)

    def forward(self, x):
        y, _ = self.lstm(x)
        h, _ = self.cell(y[:, -1])
        return self.gru(h[None])[0]


def test_lstm_and_cell_are_replaced():
    fast = same(Recurrent(), image(2, 7, 6))
    assert sorted(kinds(fast)) == ["LSTM", "LSTMCell"]
    assert [x.what for x in fast.report().left] == ["GRU"]


@pytest.mark.parametrize("shape", [(1, 6), (2, 6), (3, 5, 6), (6,), (0, 6)], ids=str)
@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(inplace=True), nn.Softmax(-1)], ids=lambda m: repr(m))
def test_linear_is_torchs(shape, activation):
    model = nn.Sequential(nn.Linear(6, 9), activation, nn.Linear(9, 4, bias=False))
    fast = same(model, image(*shape) if shape[0] else torch.empty(shape))
    assert kinds(fast) == []
    assert [x.what for x in fast.report().left] == ["linear", "linear"]


def test_linear_sees_updates_of_its_weight():
    model = nn.Sequential(nn.Linear(6, 9)).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(image(3, 6))
        model[0].weight.mul_(3)
        assert relative_l2(fast(image(3, 6)), model(image(3, 6))) < TOLERANCE


def test_linear_of_the_wrong_width_says_what_torch_says():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        pk.optimize(nn.Sequential(nn.Linear(6, 9)))(image(4, 3))


def test_projections_are_left_alone():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 5, proj_size=3)

        def forward(self, x):
            return self.lstm(x)[0]

    fast = same(Projected(), image(2, 7, 6))
    assert "proj_size" in fast.report().left[0].why


def test_the_original_is_untouched_and_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    fast = pk.optimize(model)
    fast(image())
    assert model.training
    assert [type(m) for m in model] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_are_shared_and_updates_seen():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(image())
        model[0].weight.mul_(2)
        model[1].running_mean.add_(1)
        assert relative_l2(fast(image()), model(image())) < TOLERANCE


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [Block, Optional])
def test_copies_compute_the_same(kind, clone):
    model = randomise(kind("iadd") if kind is Block else kind())
    fast = pk.optimize(model)
    x = image(2, 6, 9, 9) if kind is Block else image()
    with torch.no_grad():
        expected = fast(x)
        assert torch.equal(clone(fast)(x), expected)


def test_bfloat16_inside_float32_outside():
    model = randomise(Block("iadd"))
    fast = pk.optimize(model, dtype=torch.bfloat16)
    with torch.no_grad():
        got = fast(image(2, 6, 9, 9))
        assert got.dtype == torch.float32
        assert 1e-5 < relative_l2(got, model(image(2, 6, 9, 9))) < 2e-2


def test_float64_models_are_left_alone():
    fast = same(nn.Sequential(nn.Conv2d(3, 4, 3).double()), image().double())
    assert "float64" in fast.report().left[0].why


def test_report_reads_well():
    fast = pk.optimize(randomise(Block("iadd")))
    assert "nothing has run yet" in str(fast.report())
    text = str(same(Block("iadd"), image(2, 6, 9, 9)).report())
    assert "conv+bn+add+relu -> pk.ops.conv_bn_act" in text
    assert "first: conv2" in text


def test_a_model_that_is_no_module():
    with pytest.raises(TypeError, match=r"optimize: model: expected a torch.nn.Module, got function"):
        pk.optimize(lambda x: x)


def test_a_dtype_that_is_none():
    with pytest.raises(ValueError, match=r"dtype: expected None, .* or torch.float16, got torch.int8"):
        pk.optimize(nn.Identity(), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"got torch.float16, which only the GPU kernels take"):
        pk.optimize(nn.Conv2d(3, 4, 3), dtype=torch.float16)


def test_optimising_twice():
    with pytest.raises(TypeError, match="optimised already"):
        pk.optimize(pk.optimize(nn.Conv2d(3, 4, 3)))


def test_it_stays_in_evaluation_mode_inside_a_model_that_trains():
    outer = nn.Sequential(
        pk.optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), nn.Flatten(), nn.Linear(400, 2)
    )
    outer.train()
    assert outer.training
    assert not any(m.training for m in outer[0].modules())
    outer(image()).sum().backward()
    assert outer[2].weight.grad is not None


def test_without_the_native_library_nothing_is_replaced(monkeypatch):
    from pykernels import _native

    monkeypatch.setattr(_native, "error", "the native library is not built")
    fast = same(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), image())
    assert kinds(fast) == []
    assert "not built" in str(fast.report())


class WritesThroughAReshape(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        y = self.b(self.a(x))
        y.reshape(x.shape[0], -1).mul_(2)
        y.add_(1)
        return y


def test_what_is_written_through_a_reshape_is_seen_by_its_source():
    same(WritesThroughAReshape(), image())


def test_an_empty_batch_says_nothing_of_the_formats_of_others():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).transpose(2, 3)

    model = randomise(Turned())
    fast = pk.optimize(model)
    with torch.no_grad():
        for n in (0, 0, 2, 2, 1, 1, 3):
            x = torch.randn(n, 3, 7, 7)
            assert fast(x).stride() == model(x).stride()
