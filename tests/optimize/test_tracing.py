"""pk.optimize of models that are hard to trace, or that tracing would get wrong."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import sys
import time
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import pykernels as pk
from pykernels.optimize import _purity
from pykernels.optimize._record import Recorder
from tests.harness import normal, relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import Branches, Optional, agree, image, kinds, randomise, same


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


class Caches(nn.Module):
    """As attention does in timm's LeViT: a dict has the biases from the first call on."""

    def __init__(self, forget=False):
        super().__init__()
        self.conv, self.bias, self.cache, self.forget = nn.Conv2d(3, 4, 1), nn.Parameter(normal(4)), {}, forget

    def forward(self, x):
        if self.forget:
            self.cache = {}
        if x.device not in self.cache:
            self.cache[x.device] = self.bias[None, :, None, None] * 2
        return self.conv(x) + self.cache[x.device]


@torch.no_grad()
def test_a_cache_that_the_first_call_fills_is_followed_from_then_on():
    model = Caches().eval()
    fast = same(model, image())
    assert [e.where for e in fast.report().entries] == ["the model"]
    model.bias.add_(1.0)
    for m in (model, fast):
        m.cache.clear()
    agree(fast, model, image())


@torch.no_grad()
def test_a_cache_that_every_call_fills_is_not():
    fast = same(Caches(forget=True), image())
    assert [x.why for x in fast.report().left if "state" in x.why] == ["keeps state (cache) from call to call"]


@torch.no_grad()
def test_models_with_a_cache_are_quantised():
    model = Caches().eval()
    quantised = pk.quantize(model, [image()])
    assert [layer.why for layer in quantised.report().layers] == [""]
    assert relative_l2(quantised(image()), model(image())) < 0.05


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
        for _ in range(3):  # not agree(): the twin's calls count
            x = image(2, 4, 8, 8)
            assert relative_l2(fast(x), twin(x)) <= 2 * model_bound(model)
    pickle.dumps(fast)


def test_buffers_are_read_at_each_call():
    model = randomise(Surprise("buffer read as a number"))
    fast = pk.optimize(model)
    model.load_state_dict({**model.state_dict(), "n": torch.tensor(2.0)})
    agree(fast, model, image(2, 4, 8, 8))


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
            agree(fast, model, image(), mask)


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
    for _ in range(3):
        agree(lambda x: fast(x, mask=torch.full((), 2.0)) / 2, model, image())


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


@dataclasses.dataclass
class Boxes:
    boxes: torch.Tensor
    scores: torch.Tensor | None = None

    def __post_init__(self):
        self.made = Boxes.made = getattr(Boxes, "made", 0) + 1


@dataclasses.dataclass
class ModelOutput(OrderedDict):
    """As a well-known library's: items and attributes are the same."""

    logits: torch.Tensor | None = None
    hidden: tuple | None = None

    def __post_init__(self):
        for f in dataclasses.fields(self):
            super().__setitem__(f.name, getattr(self, f.name))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Slotted(dict):
    __slots__ = ("extra",)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.conv, self.make, self.mine = nn.Conv2d(3, 4, 3), make, {}

    def forward(self, x):
        y = F.relu(self.conv(x))
        return self.make(self, y)


def _slotted(_, y):
    made = Slotted(y=y)
    made.extra = y + 1
    return made


def _twice(_, y):
    both = [y]
    return {"a": both, "b": {"c": both}}


RESULTS = {
    "OrderedDict": (lambda _, y: OrderedDict(out=y, aux=[y + 1]), ["out", "aux"]),
    "dict": (lambda _, y: Output(logits=y), ["logits"]),
    "dict and dataclass": (lambda _, y: ModelOutput(logits=y, hidden=(y + 1, y)), ["logits", "hidden"]),
    "slots": (_slotted, None),
    "one list twice": (_twice, None),
    "its own": (lambda self, y: self.mine, None),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_of_the_models_own_classes(name):
    make, keys = RESULTS[name]
    model = randomise(Returns(make))
    fast = pk.optimize(model)
    with torch.no_grad():
        results = [fast(image()) for _ in range(3)]
        expected = model(image())
    for result in results:
        assert type(result) is type(expected)
        assert list(result) == list(expected)
        for key, value in expected.items():
            for a, b in zip(pytree.tree_leaves(result[key]), pytree.tree_leaves(value), strict=True):
                assert relative_l2(a, b) <= 2 * model_bound(model)
        if name == "dict and dataclass":
            assert result.logits is result["logits"]
            assert result.hidden[1] is result.logits
    if name == "slots":
        assert relative_l2(results[2].extra, expected.extra) <= 2 * model_bound(model)
    if name == "one list twice":
        assert results[2]["a"] is results[2]["b"]["c"]
    if name == "its own":
        assert results[2] is fast.mine
    assert kinds(fast) == (["conv"] if keys is None else ["conv+relu"])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_dataclasses_come_back_as_they_are(dtype):
    class Detects(Returns):
        def forward(self, x):
            return Boxes(self.conv(x))

    model = randomise(Detects(None))
    fast = pk.optimize(model, dtype=dtype)
    with torch.no_grad():
        results = [fast(image()) for _ in range(3)]
        assert len({id(r) for r in results}) == 3
        for r in results:
            assert r.scores is None
            assert r.boxes.dtype == torch.float32
            assert relative_l2(r.boxes, model(image()).boxes) <= 2 * model_bound(model, dtype or torch.float32)


def test_recording_keeps_no_intermediates_alive():
    model = nn.Sequential(
        *[m for _ in range(9) for m in (nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)))]
    )
    with torch.no_grad():
        recorder = Recorder(model.eval(), "")
        x = image()
        result = recorder.run((x,), {}, [x])
        parameters = {id(p) for p in model.parameters()}
        alive = [t for t in (r() for r in recorder.tensors) if t is not None and id(t) not in parameters]
        assert {t.untyped_storage().data_ptr() for t in alive} == {t.untyped_storage().data_ptr() for t in (x, result)}
        graph = recorder.graph(result)
    storages = [v.storage for step in graph.steps for v in step.results()]
    assert len(set(storages)) == 18, "each convolution and each ReLU has its own, shared by its views alone"


class Litter:
    def __init__(self):
        self.itself = self

    def __del__(self):
        time.time()
        torch.ones(1) + 1


@pytest.mark.parametrize("at", [len, lambda callbacks: 0], ids=["last", "first"])
def test_collections_of_garbage_go_on_and_are_not_the_models_doing(at):
    model = randomise(Optional())
    fast, seen, before = pk.optimize(model), [], gc.get_threshold()

    def told(phase, info):
        seen.append(time.time())

    gc.callbacks.insert(at(gc.callbacks), told)
    gc.set_threshold(1)
    try:
        with torch.no_grad():
            for _ in range(3):
                Litter()
                fast(image())
                assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(told)
    assert seen
    agree(fast, model, image())
    report = fast.report()
    assert not report.left
    assert report.programs == 1


class Asserts(nn.Module):
    """A step that nothing reads says what sizes are right."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        y.reshape(-1, 8 * 144)
        return F.relu(self.bn(y))


@torch.no_grad()
def test_what_a_dead_step_would_raise_is_raised():
    model = randomise(Asserts())
    fast = same(model, image())
    assert kinds(fast) == ["conv+bn+relu"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            fast(image(2, 3, 11, 12))
        agree(fast, model, image(3, 3, 12, 12))
    assert fast.report().programs == 1


class Packs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.gru, self.linear = nn.GRU(12, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.linear(self.gru(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])[0])


def test_packed_sequences():
    same(Packs(), torch.randn(3, 7, 8), torch.tensor([7, 3, 5]))


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Sums(Pair):
    """Its fields are not what it is called with."""

    def __new__(cls, x):
        return super().__new__(cls, x + 1, x * 2)


class GivesSums(Optional):
    def forward(self, x):
        return Sums(self.body(x))


@torch.no_grad()
def test_named_tuples_with_a_new_of_their_own():
    model = randomise(GivesSums())
    fast = pk.optimize(model)
    for _ in range(3):
        got = fast(image())
        assert type(got) is Sums
        for a, b in zip(got, model(image()), strict=True):
            assert relative_l2(a, b) < 1e-5
    assert fast.report().programs == 1


class Outputs(NamedTuple):
    y: torch.Tensor
    aux: torch.Tensor | None


class MayGiveAux(Optional):
    """As torchvision's Inception3: a field of what it gives in training has the name of an attribute."""

    aux: bool

    def __init__(self):
        super().__init__()
        self.aux = True

    def forward(self, x):
        y = self.body(x)
        return Outputs(y, x) if self.training and self.aux else y


def test_a_named_tuple_with_a_field_called_as_an_attribute():
    fast = same(MayGiveAux(), image())
    assert not fast.report().left
    assert fast.report().programs == 1


def test_imports_are_not_looked_into(tmp_path, monkeypatch):
    """There may be thousands of functions behind one, and each would be resolved against all that was met."""
    lines = [f"def f{i}(x):\n    return x + {i}\n\ny{i} = f{i}({i})\n" for i in range(50)]
    (tmp_path / "imported_while_recording.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            import imported_while_recording

            return self.conv(x) + imported_while_recording.y1

    looked, resolve = [], _purity.Onlooker._resolve
    monkeypatch.setattr(_purity.Onlooker, "_resolve", lambda self, names: looked.append(names) or resolve(self, names))
    model = Late().eval()
    fast, x = pk.optimize(model), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x))
    assert len(looked) < 50
    monkeypatch.delitem(sys.modules, "imported_while_recording")
