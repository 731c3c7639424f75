"""Int8Conv2d."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.nn.int8_conv import Grid
from tests.harness import eight_threads, forced_isa, host_isas, native, relative_l2


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


#: conv's arguments, x's shape
CONVS = {
    "3x3": ((16, 24, 3, 1, 1), (2, 16, 9, 8)),
    "1x1/2": ((40, 33, 1, 2), (1, 40, 7, 7)),
    "stem": ((3, 20, 7, 2, 3), (1, 3, 21, 19)),
    "depthwise": ((20, 20, 3, 1, 1, 1, 20), (2, 20, 8, 8)),
    "groups": ((12, 18, 3, 1, 2, 2, 3), (1, 12, 9, 9)),
    "same": ((8, 8, 4, 1, "same"), (1, 8, 6, 6)),
}


def block_of(name, bias=True):
    arguments, shape = CONVS[name]
    conv, bn = nn.Conv2d(*arguments, bias=bias), nn.BatchNorm2d(arguments[1])
    bn.running_mean.normal_(), bn.running_var.uniform_(0.5, 2), bn.weight.uniform_(0.5, 2), bn.bias.normal_()
    return conv.eval(), bn.eval(), torch.randn(shape)


def scale_of(t):
    return float(t.abs().max()) / 127


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu", "leaky_relu"])
@pytest.mark.parametrize("name", CONVS)
def test_is_close_to_torch(name, activation):
    conv, bn, x = block_of(name)
    act = {"none": lambda t: t}.get(activation) or getattr(F, activation)
    y = bn(conv(x))
    residual = torch.randn_like(y)
    expected = act(y + residual)
    grids = {"x_scale": scale_of(x), "residual_scale": scale_of(residual), "out_scale": scale_of(expected)}
    ours = pk.nn.Int8Conv2d.from_torch(conv, bn, **grids, activation=activation)
    got = ours(x, ours.residual_grid.quantize(residual))
    assert got.dtype == torch.int8
    # Four roundings to steps of max / 127, uniform errors of 1 / sqrt(12) steps; max is 5 deviations at most here.
    assert relative_l2(ours.out_grid.dequantize(got), expected) < 2 * 5 / 127 / 12**0.5
    plain = pk.nn.Int8Conv2d.from_torch(conv, bn, x_scale=scale_of(x), activation=activation)
    assert relative_l2(plain(x, residual), expected) < 2 * 5 / 127 / 12**0.5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu"])
@pytest.mark.parametrize("name", CONVS)
def test_packed_has_the_bits_of_the_reference_on_every_isa(name, activation, layout):
    conv, bn, x = block_of(name, bias=False)
    ours = pk.nn.Int8Conv2d.from_torch(
        conv, bn, x_scale=0.02, x_zero_point=-7, out_scale=0.031, out_zero_point=-20, residual_scale=0.01,
        residual_zero_point=5, activation=activation, negative_slope=0.3,
    )  # fmt: skip
    q = ours.x_grid.quantize(x).contiguous(memory_format=layout)
    with pk.backend("reference"):
        residual = ours(q).flip(1).contiguous(memory_format=layout)
        expected = ours(q, residual)
    for isa in host_isas():
        if isa == "none":
            continue
        with forced_isa(isa):
            y = ours(q, residual)
            assert ours._pack is not None
            assert torch.equal(y, expected), isa
            assert y.is_contiguous(memory_format=layout)
            assert torch.equal(ours(q[0], residual[0]), expected[0])


def test_a_chain_in_int8():
    """A residual block whose activations stay int8: what pk.quantize is to build."""
    a, b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    x = torch.relu(torch.randn(1, 16, 12, 12))
    middle = torch.relu(a(x))
    expected = torch.relu(b(middle) + x)
    first = pk.nn.Int8Conv2d.from_torch(a, x_scale=scale_of(x), out_scale=scale_of(middle), activation="relu")
    second = pk.nn.Int8Conv2d.from_torch(
        b, x_scale=scale_of(middle), residual_scale=scale_of(x), out_scale=scale_of(expected), activation="relu"
    )
    q = first.x_grid.quantize(x)
    y = second(first(q), q)
    assert relative_l2(second.out_grid.dequantize(y), expected) < 0.02


def test_state_and_repr():
    ours = pk.nn.Int8Conv2d(8, 12, 3, padding=1, x_scale=0.5, x_zero_point=-3, out_scale=0.25, activation="relu")
    assert repr(ours) == (
        "Int8Conv2d(8, 12, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), activation='relu', x_scale=0.5, "
        "x_zero_point=-3, out_scale=0.25)"
    )
    assert list(ours.state_dict()) == ["weight", "weight_scale", "bias", "_extra_state"]
    assert list(ours.parameters()) == []
    other = pk.nn.Int8Conv2d(8, 12, 3, padding=1, x_scale=1.0, residual_scale=2.0, activation="relu")
    x = torch.randint(-128, 128, (1, 8, 5, 5), dtype=torch.int8)
    other(x)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.x_grid, other.residual_grid, other.out_grid) == (Grid(0.5, -3), None, Grid(0.25))
    for same in (other, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours).bfloat16()):
        assert torch.equal(same(x), ours(x))


@native
def test_a_change_is_packed_again():
    ours, other = (pk.nn.Int8Conv2d(8, 12, 3, x_scale=0.1, out_scale=0.1) for _ in range(2))
    x = torch.randint(-128, 128, (1, 8, 5, 5), dtype=torch.int8)
    ours(x)
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours(x), other(x))
    ours.x_grid = Grid(0.1, 9)
    with pk.backend("reference"):
        expected = ours(x)
    assert not torch.equal(expected, other(x))
    assert torch.equal(ours(x), expected)


@native
def test_compiles_whole_and_exports():
    torch._dynamo.reset()
    ours = pk.nn.Int8Conv2d(8, 12, 3, padding=1, x_scale=0.1, x_zero_point=4, out_scale=0.1, activation="relu")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randint(-128, 128, (3, 8, 5, 5), dtype=torch.int8)
    for t in (x, x[:2], x[:2].float()):
        assert torch.equal(compiled(t), ours(t))
    assert torch.equal(torch.export.export(ours, (x,)).module()(x), ours(x))


@native
def test_eight_python_threads_at_once():
    ours = pk.nn.Int8Conv2d(32, 48, 3, x_scale=0.1, out_scale=0.1)
    x = torch.randint(-128, 128, (1, 32, 20, 20), dtype=torch.int8)
    expected = copy.deepcopy(ours)(x)

    def work(_):
        with torch.no_grad():
            assert all(torch.equal(ours(x), expected) for _ in range(20))

    eight_threads(work)


def test_rounding_of_float_input():
    grid = Grid(0.5, 2)
    x = torch.tensor([0.25, 0.75, -0.25, 1e9, -1e9, torch.nan])
    assert grid.quantize(x).tolist() == [2, 4, 2, 127, -128, 2]
    ours = pk.nn.Int8Conv2d(4, 4, 1, x_scale=0.5, x_zero_point=2)
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(ours(x), ours(ours.x_grid.quantize(x)))


def test_refusals():
    def make(**given):
        return pk.nn.Int8Conv2d(4, 4, 1, **{"x_scale": 0.5, **given})

    x, y = torch.zeros(1, 4, 3, 3, dtype=torch.int8), torch.zeros(1, 4, 3, 3)
    for given, error, words in [
        ({"x_scale": 0.0}, ValueError, "x_scale: expected a normal float32 number above 0, got 0.0"),
        ({"x_scale": 1e300}, ValueError, "x_scale: expected a normal float32 number above 0"),
        ({"x_scale": float("nan")}, ValueError, "x_scale: expected a normal float32 number above 0"),
        ({"x_scale": None}, ValueError, "x_scale: expected a number"),
        ({"x_scale": "a"}, TypeError, "x_scale: expected"),
        ({"x_zero_point": 128}, ValueError, r"x_zero_point: expected an int in \[-128, 127\], got 128"),
        ({"out_zero_point": 3}, ValueError, "out_scale: expected a number, because out_zero_point is given"),
        ({"activation": "swish"}, ValueError, "activation: expected one of none"),
    ]:
        with pytest.raises(error, match=rf"pykernels.Int8Conv2d: {words}"):
            make(**given)
    with pytest.raises(TypeError, match=r"Int8Conv2d: residual: expected torch.int8, because there is a residual_sca"):
        make(residual_scale=0.1)(x, y)
    with pytest.raises(TypeError, match=r"Int8Conv2d: residual: expected a floating dtype, because there is no"):
        make()(x, x)
    with pytest.raises(ValueError, match=r"pykernels.int8_conv2d: x: expected 4 channels"):
        make()(x[:, :3])
    with pytest.raises(TypeError, match=r"pykernels.int8_conv2d: x: expected torch.int8, got torch.int64"):
        make()(x.long())
    with pytest.raises(TypeError, match=r"conv: expected a torch.nn.Conv2d with its own forward, got Linear"):
        pk.nn.Int8Conv2d.from_torch(nn.Linear(1, 1), x_scale=1.0)
    with pytest.raises(ValueError, match=r"conv: expected padding_mode 'zeros', got 'reflect'"):
        pk.nn.Int8Conv2d.from_torch(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), x_scale=1.0)
    with pytest.raises(ValueError, match=r"bn: expected 4 features \(conv's output channels\), got 9"):
        pk.nn.Int8Conv2d.from_torch(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(9), x_scale=1.0)
    with pytest.raises(ValueError, match=r"bn: expected running statistics"):
        pk.nn.Int8Conv2d.from_torch(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1, track_running_stats=False), x_scale=1.0)
    with pytest.raises(RuntimeError, match=r"Int8Conv2d: 0.weight: expected torch.int8, got torch.float32; make the"):
        nn.Sequential(make()).load_state_dict(nn.Sequential(nn.Conv2d(4, 4, 1)).state_dict(), strict=False)
    with torch.enable_grad():
        for given in [(y.requires_grad_(),), (x, y)]:
            with pytest.raises(
                RuntimeError, match=r"expected a tensor that requires no gradient, because quantisation"
            ):
                make()(*given)
