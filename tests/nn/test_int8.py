"""Int8Linear."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels import _native
from pykernels.ops.weight_only_linear.spec import ROUNDINGS, SPEC
from tests.harness import eight_threads, forced_isa, host_isas, native, relative_l2
from tests.ops.int8_matmul.checks import BOUND


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7, 96), (96,), (2, 3, 5, 96), (0, 96), (3, 0, 96), (1, 96)])
def test_is_close_to_linear(shape, dtype, bias):
    linear = nn.Linear(96, 50, bias=bias, dtype=dtype)
    ours, x = pk.nn.Int8Linear.from_torch(linear, "relu"), torch.randn(shape, dtype=dtype)
    y, expected = ours(x), torch.relu(linear(x))
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    # Rounding to steps of max / 127: uniform errors of 1 / sqrt(12) steps, max about 3.5 deviations, from both sides.
    assert relative_l2(y, expected) < 2 * 2**0.5 * 3.5 / 127 / 12**0.5


def test_the_backends_agree():
    ours, x = pk.nn.Int8Linear(64, 40, activation="gelu"), torch.randn(9, 64)
    with pk.backend("reference"):
        expected = ours(x)
    assert relative_l2(ours(x), expected) <= 2 * BOUND


def test_arguments_and_state_are_those_of_linear():
    ours, linear = pk.nn.Int8Linear(6, 4, bias=False, dtype=torch.bfloat16), nn.Linear(6, 4)
    assert list(ours.state_dict()) == ["weight", "weight_scale"]
    assert repr(pk.nn.Int8Linear(6, 4)) == "Int8Linear(in_features=6, out_features=4, bias=True, activation='none')"
    assert list(pk.nn.Int8Linear(6, 4).parameters()) == []
    assert pk.nn.Int8Linear(6, 4, device="meta").weight.is_meta
    assert ours.weight_scale.dtype == torch.float32
    ours = pk.nn.Int8Linear(6, 4)
    ours.load_state_dict(linear.state_dict())
    again = pk.nn.Int8Linear.from_torch(linear)
    for name, t in again.state_dict().items():
        assert torch.equal(ours.state_dict()[name], t)
    assert torch.equal(ours.weight_scale, linear.weight.abs().amax(1) / 127)


def test_casting_the_module_keeps_the_scales():
    ours, x = pk.nn.Int8Linear(32, 16), torch.randn(3, 32)
    before = ours.weight_scale.clone()
    ours.bfloat16()
    assert ours.bias.dtype == torch.bfloat16
    assert torch.equal(ours.weight_scale, before)
    assert ours(x.bfloat16()).dtype == torch.bfloat16


def test_copies_and_pickles():
    ours, x = pk.nn.Int8Linear(32, 16, activation="silu"), torch.randn(3, 32)
    y = ours(x)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    fresh = pk.nn.Int8Linear(32, 16, activation="silu")
    fresh.load_state_dict(ours.state_dict())
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded, fresh):
        assert torch.equal(other(x), y)
    assert set(ours.state_dict()) == {"weight", "weight_scale", "bias"}


@native
@pytest.mark.parametrize("make", [lambda: pk.nn.Int8Linear(6, 4), lambda: pk.nn.LSTMCell(6, 4).eval()])
def test_kernels_are_asked_for_at_each_call(make, monkeypatch):
    module, x = make(), torch.randn(3, 6)
    monkeypatch.setattr(_native, "error", "gone")
    module(x)
    assert module._pack is None
    monkeypatch.undo()
    module(x)
    assert module._pack is not None


@native
def test_a_changed_weight_is_packed_again():
    ours, x = pk.nn.Int8Linear(32, 16), torch.randn(3, 32)
    ours(x)
    other = pk.nn.Int8Linear(32, 16)
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours(x), other(x))
    ours.weight.zero_()
    assert torch.equal(ours(x), ours.bias.expand(3, 16))
    ours.weight = other.weight
    assert torch.equal(ours(x), other(x))


@native
def test_another_instruction_set_packs_again():
    ours, x, results = pk.nn.Int8Linear(32, 16), torch.randn(3, 32), []
    for isa in host_isas():
        with forced_isa(isa):
            results.append(ours(x))
    for y in results[1:]:
        assert relative_l2(y, results[0]) <= 2 * BOUND


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    torch._dynamo.reset()
    ours = pk.nn.Int8Linear(32, 16, activation="relu")
    compiled = torch.compile(ours, fullgraph=True, backend=compiler, dynamic=True)
    for n in (3, 5, 9):
        x = torch.randn(2, n, 32)
        with torch._dynamo.config.patch(error_on_recompile=n > 3):
            assert torch.equal(compiled(x), ours(x))


@native
def test_exports():
    ours, x = pk.nn.Int8Linear(32, 16), torch.randn(5, 32)
    expected = ours(x)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=99)},))
    assert torch.equal(program.module()(x), expected)
    assert program.module()(torch.randn(7, 32)).shape == (7, 16)


def test_autocast_casts_as_linear_does():
    ours, x = pk.nn.Int8Linear(32, 16), torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, ours(x.bfloat16()))


@native
def test_eight_python_threads_at_once():
    ours, x = pk.nn.Int8Linear(64, 48), torch.randn(20, 64)
    expected = copy.deepcopy(ours)(x)

    def work(_):
        with torch.no_grad():
            assert all(torch.equal(ours(x), expected) for _ in range(20))

    eight_threads(work)


def test_refusals():
    ours = pk.nn.Int8Linear(6, 4)
    with pytest.raises(ValueError, match=r"pykernels.Int8Linear: x: expected \(\*, 6\), got shape \(3, 5\)"):
        ours(torch.ones(3, 5))
    with pytest.raises(TypeError, match=r"pykernels.int8_linear: x: expected a floating dtype, got torch.int64"):
        ours(torch.ones(3, 6).long())
    with pytest.raises(ValueError, match=r"pykernels.Int8Linear: activation: expected one of none"):
        pk.nn.Int8Linear(6, 4, activation="swish")
    with pytest.raises(TypeError, match=r"linear: expected a torch.nn.Linear with its own forward, got Conv2d"):
        pk.nn.Int8Linear.from_torch(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"with its own forward, got Other"):
        pk.nn.Int8Linear.from_torch(type("Other", (nn.Linear,), {"forward": lambda self, x: x})(6, 4))
    hooked = nn.Linear(6, 4)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"linear: expected a module without hooks"):
        pk.nn.Int8Linear.from_torch(hooked)
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"x: expected a tensor that requires no gradient"):
        ours(torch.ones(3, 6, requires_grad=True))


# weight_only


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 96), (96,), (2, 3, 5, 96), (0, 96), (3, 0, 96), (1, 96)])
def test_weight_only_rounds_the_weight_alone(shape, dtype):
    linear = nn.Linear(96, 50, dtype=dtype)
    ours, x = pk.nn.Int8Linear.from_torch(linear, "relu", weight_only=True), torch.randn(shape, dtype=dtype)
    y, expected = ours(x), torch.relu(linear(x))
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    rounded = torch.relu(
        nn.functional.linear(x.double(), ours.weight * ours.weight_scale.double()[:, None], linear.bias.double())
    )
    assert relative_l2(y, rounded) <= SPEC.bound(dtype, 96 + ROUNDINGS)
    with pk.backend("reference"):
        assert relative_l2(ours(x), rounded) <= SPEC.bound(dtype, 96 + ROUNDINGS)


def test_weight_only_has_the_state_of_the_other_form():
    ours, other, x = pk.nn.Int8Linear(32, 16, weight_only=True), pk.nn.Int8Linear(32, 16), torch.randn(3, 32)
    assert repr(ours).endswith("activation='none', weight_only=True)")
    assert list(ours.state_dict()) == list(other.state_dict())
    y = ours(x)
    other.load_state_dict(ours.state_dict())
    assert not torch.equal(other(x), y)
    fresh = pk.nn.Int8Linear(32, 16, weight_only=True)
    fresh.load_state_dict(ours.state_dict())
    for copied in (fresh, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), y)
    other.weight_only = True  # packs again
    assert torch.equal(other(x), y)
    ours.weight.zero_()
    assert torch.equal(ours(x), ours.bias.expand(3, 16))


@native
def test_weight_only_compiles_exports_and_autocasts():
    ours, x = pk.nn.Int8Linear(32, 16, activation="relu", weight_only=True), torch.randn(6, 32)
    expected = ours(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(ours, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=99)},))
    assert torch.equal(program.module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, ours(x.bfloat16()))
    with pytest.raises(TypeError, match=r"pykernels.weight_only_linear: x: expected a floating dtype"):
        ours(x.long())
    with pytest.raises(ValueError, match=r"pykernels.Int8Linear: x: expected \(\*, 32\)"):
        ours(x[:, 1:])


@native
def test_weight_only_packs_again_for_another_instruction_set():
    ours, x, results = pk.nn.Int8Linear(32, 16, weight_only=True), torch.randn(3, 32), []
    for isa in host_isas():
        with forced_isa(isa):
            results.append(ours(x))
    for y in results[1:]:
        assert relative_l2(y, results[0]) <= 2 * SPEC.bound(torch.float32, 32 + ROUNDINGS)
