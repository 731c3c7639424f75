"""`pk.nn.Int8LSTM` and `pk.nn.Int8LSTMCell`."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_SPEC
from tests.harness import eight_threads, forced_isa, host_isas, native, relative_l2, tensors_of

#: Rounding to steps of max / 127, of weights and of x and h, as in test_int8.py; and half as much again for the layers.
TOLERANCE = 1.5 * 2 * 2**0.5 * 3.5 / 127 / 12**0.5

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}, id="deep"),
]


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


def pair(dtype=torch.float32, **options):
    torch.manual_seed(5)
    theirs = nn.LSTM(24, 40, **options).to(dtype).eval()
    return theirs, pk.nn.Int8LSTM.from_torch(theirs)


def cells(**options):
    torch.manual_seed(5)
    theirs = nn.LSTMCell(24, 40, **options)
    return theirs, pk.nn.Int8LSTMCell.from_torch(theirs)


def assert_near(got, expected, tolerance=TOLERANCE):
    for g, e in zip(tensors_of(got), tensors_of(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        assert relative_l2(g, e) <= tolerance


def assert_equal(got, expected):
    for g, e in zip(tensors_of(got), tensors_of(expected), strict=True):
        assert torch.equal(g, e)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [None, 0, 1, 4])
@pytest.mark.parametrize("given", [True, False])
def test_is_close_to_torchs(options, dtype, batch, given):
    theirs, ours = pair(dtype, **options)
    shape = (7, 24) if batch is None else (batch, 7, 24) if theirs.batch_first else (7, batch, 24)
    x, hx = torch.randn(shape, dtype=dtype), None
    if given:
        rows = theirs.num_layers * (2 if theirs.bidirectional else 1)
        middle = () if batch is None else (batch,)
        hx = tuple(torch.randn(rows, *middle, 40, dtype=dtype) for _ in range(2))
    assert_near(ours(x, hx), theirs(x, hx), TOLERANCE + (0.02 if dtype == torch.bfloat16 else 0))


@pytest.mark.parametrize("given", [True, False])
def test_packed_sequences(given):
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x = pack_sequence([torch.randn(n, 24) for n in (3, 6, 1, 6)], enforce_sorted=False)
    hx = (torch.randn(4, 4, 40), torch.randn(4, 4, 40)) if given else None
    got, expected = ours(x, hx), theirs(x, hx)
    assert isinstance(got[0], PackedSequence)
    assert_near((got[0].data, got[1]), (expected[0].data, expected[1]))
    assert torch.equal(got[0].unsorted_indices, expected[0].unsorted_indices)


def test_padded_and_packed_agree():
    _, ours = pair(batch_first=True, bidirectional=True)
    padded, lengths = torch.randn(3, 5, 24), torch.tensor([3, 5, 1])
    _, (h, _) = ours(pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False))
    for i, n in enumerate(lengths.tolist()):
        assert torch.equal(h[:, i], ours(padded[i, :n])[1][0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (0, 24)])
@pytest.mark.parametrize("given", [True, False])
def test_cell(shape, bias, given):
    theirs, ours = cells(bias=bias)
    x = torch.randn(shape)
    hx = tuple(torch.randn(*shape[:-1], 40) for _ in range(2)) if given else None
    assert_near(ours(x, hx), theirs(x, hx))


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_backends_agree(dtype):
    for (_, ours), x in (
        (pair(num_layers=2, bidirectional=True), torch.randn(5, 3, 24)),
        (cells(), torch.randn(3, 24)),
    ):
        with pk.backend("reference"):
            expected = ours(x.to(dtype))
        for isa in host_isas():
            with forced_isa(isa):
                assert_equal(ours(x.to(dtype)), expected)


def test_arguments_and_state_are_torchs():
    theirs, _ = pair(num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)
    ours = pk.nn.Int8LSTM(24, 40, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)
    assert repr(ours) == repr(theirs).replace("LSTM", "Int8LSTM")
    assert repr(cells(bias=False)[1]) == "Int8LSTMCell(24, 40, bias=False)"
    names = set(theirs.state_dict())
    assert set(ours.state_dict()) == names | {f"{name}_scale" for name in names if name.startswith("weight")}
    assert list(ours.parameters()) == []
    ours.load_state_dict(theirs.state_dict())
    for other in (pk.nn.Int8LSTM.from_torch(theirs), pk.nn.Int8LSTM.from_torch(pk.nn.LSTM.from_torch(theirs))):
        for name, t in other.state_dict().items():
            assert torch.equal(ours.state_dict()[name], t)
    assert torch.equal(ours.weight_hh_l1_reverse_scale, theirs.weight_hh_l1_reverse.abs().amax(1) / 127)
    ours.flatten_parameters()
    theirs_cell, cell = cells()
    fresh = pk.nn.Int8LSTMCell(24, 40)
    fresh.load_state_dict(theirs_cell.state_dict())
    again = pk.nn.Int8LSTMCell.from_torch(pk.nn.LSTMCell.from_torch(theirs_cell))
    for name, t in cell.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], t)
        assert torch.equal(again.state_dict()[name], t)
    assert pk.nn.Int8LSTM(3, 4, device="meta").weight_ih_l0.is_meta
    assert pk.nn.Int8LSTM(3, 4, dtype=torch.bfloat16).bias_ih_l0.dtype == torch.bfloat16
    assert pk.nn.Int8LSTM.from_torch(nn.LSTM(3, 4)).training
    assert not ours.from_torch(theirs).training


def test_casting_the_module_keeps_the_scales():
    for ours, x in ((pair()[1], torch.randn(2, 3, 24)), (cells()[1], torch.randn(3, 24))):
        before = {name: t.clone() for name, t in ours.state_dict().items() if name.endswith("_scale")}
        ours.bfloat16()
        assert_equal([ours.state_dict()[name] for name in before], list(before.values()))
        assert ours(x.bfloat16())[0].dtype == torch.bfloat16


def test_copies_pickles_and_state_dicts():
    for ours, fresh, x in (
        (pair(num_layers=2)[1], pk.nn.Int8LSTM(24, 40, num_layers=2), torch.randn(2, 3, 24)),
        (cells()[1], pk.nn.Int8LSTMCell(24, 40), torch.randn(3, 24)),
    ):
        y = ours(x)
        module, state = io.BytesIO(), io.BytesIO()
        torch.save(ours, module)
        torch.save(ours.state_dict(), state)
        module.seek(0)
        state.seek(0)
        fresh.load_state_dict(torch.load(state, weights_only=True))
        loaded = torch.load(module, weights_only=False)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded, fresh):
            assert_equal(other(x), y)


@native
def test_a_changed_weight_is_packed_again():
    for ours, other, x in (
        (pair()[1], pk.nn.Int8LSTM(24, 40), torch.randn(2, 3, 24)),
        (cells()[1], pk.nn.Int8LSTMCell(24, 40), torch.randn(3, 24)),
    ):
        ours(x)
        assert ours._pack is not None
        ours.load_state_dict(other.state_dict())
        assert_equal(ours(x), other(x))
        name = next(name for name in ours.state_dict() if name.endswith("_scale"))
        getattr(ours, name).mul_(2)
        with pk.backend("reference"):
            expected = ours(x)
        assert_equal(ours(x), expected)


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    torch._dynamo.reset()
    _, ours = pair(num_layers=2, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend=compiler, dynamic=True)
    for n in (3, 5, 9):
        x = torch.randn(4, n, 24)
        with torch._dynamo.config.patch(error_on_recompile=n > 3):
            assert_equal(compiled(x), ours(x))


@native
def test_exports():
    for ours, x in ((pair(num_layers=2)[1], torch.randn(5, 2, 24)), (cells()[1], torch.randn(5, 24))):
        assert_equal(torch.export.export(ours, (x,)).module()(x), ours(x))


def test_autocast_casts_as_torchs_do():
    for ours, x in ((pair()[1], torch.randn(2, 3, 24)), (cells()[1], torch.randn(3, 24))):
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)
        assert_equal(y, ours(x.bfloat16()))
        assert tensors_of(y)[0].dtype == torch.bfloat16


@native
def test_eight_python_threads_at_once():
    _, ours = pair()
    x = torch.randn(9, 2, 24)
    expected = copy.deepcopy(ours)(x)

    def work(_):
        with torch.no_grad():
            for _ in range(20):
                assert_equal(ours(x), expected)

    eight_threads(work)


def test_refusals():
    theirs, ours = pair()
    with pytest.raises(ValueError, match=r"Int8LSTM: proj_size: expected 0, got 3"):
        pk.nn.Int8LSTM.from_torch(nn.LSTM(6, 8, proj_size=3))
    with pytest.raises(ValueError, match=r"Int8LSTM: proj_size: expected 0, got 3"):
        pk.nn.Int8LSTM(6, 8, proj_size=3)
    for kind, wrong, right in ((pk.nn.Int8LSTM, nn.GRU(6, 8), "LSTM"), (pk.nn.Int8LSTMCell, nn.LSTM(6, 8), "LSTMCell")):
        with pytest.raises(TypeError, match=rf"from_torch: module: expected a torch.nn.{right} with its own forward"):
            kind.from_torch(wrong)
    theirs.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"module: expected a module without hooks"):
        pk.nn.Int8LSTM.from_torch(theirs)
    parametrized = nn.LSTM(6, 8)
    nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    with pytest.raises(ValueError, match=r"module: expected plain parameters"):
        pk.nn.Int8LSTM.from_torch(parametrized)
    with pytest.raises(ValueError, match=r"int8_lstm: weights\[0\]: expected shape \(160, 7\)"):
        ours(torch.randn(2, 3, 7))
    with pytest.raises(TypeError, match=r"int8_lstm: x: expected a floating dtype, got torch.int64"):
        ours(torch.ones(2, 3, 24).long())
    with pytest.raises(TypeError, match=r"int8_lstm: states: expected a pair \(h, c\) of tensors, got Tensor"):
        ours(torch.randn(2, 3, 24), torch.zeros(1, 3, 40))
    with pytest.raises(TypeError, match=r"int8_lstm: x: expected a tensor, got str"):
        ours("x")
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"x: expected a tensor that requires no gradient"):
        ours(torch.ones(2, 3, 24, requires_grad=True))


# weight_only


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_weight_only_rounds_the_weights_alone(options, batch):
    theirs, _ = pair(**options)
    ours = pk.nn.Int8LSTM.from_torch(theirs, weight_only=True)
    with torch.no_grad():
        for name in ours._matrices():
            q, scale = getattr(ours, name), getattr(ours, f"{name}_scale")
            getattr(theirs, name).copy_(q * scale[:, None])
    x = torch.randn(7, 24) if batch is None else torch.randn(7, batch, 24)
    expected = theirs.double()(x.double())
    limit = LSTM_SPEC.bound(torch.float32, options.get("num_layers", 1) * (80 + 40 + 2))
    for g, e in zip(tensors_of(ours(x)), tensors_of(expected), strict=True):
        assert g.shape == e.shape
        assert relative_l2(g, e) <= limit
    with pk.backend("reference"):
        for g, e in zip(tensors_of(ours(x)), tensors_of(expected), strict=True):
            assert relative_l2(g, e) <= limit


@native
def test_weight_only_packed_sequences_and_cells():
    ours = pk.nn.Int8LSTM.from_torch(pair()[0], weight_only=True)
    cell, x = pk.nn.Int8LSTMCell.from_torch(cells()[0], weight_only=True), torch.randn(5, 24)
    packed = pack_sequence([torch.randn(n, 24) for n in (6, 3)])
    limit = LSTM_SPEC.bound(torch.float32, 24 + 40 + 2)
    with pk.backend("reference"):
        expected = ours(packed)[0].data, *cell(x)
    got = ours(packed)[0].data, *cell(x)
    for g, e in zip(got, expected, strict=True):
        assert 0 < relative_l2(g, e) <= 2 * limit
    h, _ = cell(x[0], (torch.zeros(40), torch.zeros(40)))
    assert relative_l2(h, got[1][0]) <= 2 * limit
    assert repr(cell) == "Int8LSTMCell(24, 40, weight_only=True)"
    assert repr(ours) == "Int8LSTM(24, 40, weight_only=True)"


@native
def test_weight_only_copies_states_and_exports():
    for ours, other, x in (
        (pk.nn.Int8LSTM(24, 40, weight_only=True), pk.nn.Int8LSTM(24, 40), torch.randn(2, 3, 24)),
        (pk.nn.Int8LSTMCell(24, 40, weight_only=True), pk.nn.Int8LSTMCell(24, 40), torch.randn(3, 24)),
    ):
        y = ours(x)
        other.load_state_dict(ours.state_dict())
        assert not torch.equal(tensors_of(other(x))[0], tensors_of(y)[0])
        fresh = type(ours)(24, 40, weight_only=True)
        fresh.load_state_dict(ours.state_dict())
        for copied in (fresh, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert_equal(copied(x), y)
        other.weight_only = True  # packs again
        assert_equal(other(x), y)
        assert_equal(torch.export.export(ours, (x,)).module()(x), y)
        assert ours.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16
