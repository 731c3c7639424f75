"""The LSTM's Triton kernels beyond the spec's samples: every path of a sequence, bits, traces, tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pykernels as pk
from pykernels.ops._op import FLOATS
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import LSTM_SPEC, bound
from tests.harness import DEVICE, assert_one_graph, relative_l2, triton_reason
from tests.ops.lstm.checks import assert_close, assert_equal, cell_problem, check_forward, leaves, problem
from tests.ops.lstm.checks import run as run_op

if triton_reason() is not None:
    pytest.skip(f"needs Triton: {triton_reason()}", allow_module_level=True)

from pykernels.ops._triton import AMPERE, CDNA3, HOPPER, INTERPRETER
from pykernels.ops.lstm import triton
from pykernels.ops.lstm.triton import gemm as triton_product
from pykernels.ops.lstm.triton.config import Config, config
from pykernels.ops.lstm.triton.gemm import product
from pykernels.ops.lstm.triton.layout import first_rows, gates_offset, output_offset, reserve_size
from tests.triton_programs import SCHEDULES, side_by_side

pytestmark = pytest.mark.triton


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


# ---- The products ----


@pytest.mark.parametrize("dtype", FLOATS["triton"], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 70, 33), (130, 65, 100), (64, 20, 700), (0, 3, 4), (3, 4, 0)])
def test_product(m, n, k, dtype):
    a, b = _random(m, k, dtype=dtype), _random(n, k, dtype=dtype, seed=1)
    bias = _random(n, dtype=dtype, seed=2), _random(n, dtype=dtype, seed=3)
    expected = a.double() @ b.double().t() + (bias[0].double() + bias[1].double())
    allowed = LSTM_SPEC.bound(torch.float32, k)
    found = product(a, b.t(), bias=bias, dtype=torch.float32)
    assert relative_l2(found, expected) <= allowed
    # Transposes are strides, and a result may be added to.
    found = product(a.t().contiguous().t(), b.t().contiguous(), torch.ones(m, n, device=DEVICE), add=True)
    assert relative_l2(found, a.double() @ b.double().t() + 1) <= allowed


def test_product_is_the_same_each_time():
    assert triton_product.config(64, 20, 700, 4, INTERPRETER).splits > 1
    a, b = _random(64, 700), _random(700, 20)
    assert torch.equal(product(a, b), product(a, b))


# ---- Every path: tiles of their own, more than one each way ----

PATHS = {
    "resident": Config(True, True, 16, 8, 2, 16, 0, 4, 1),
    "resident, K in two": Config(True, True, 16, 16, 1, 16, 16, 4, 1),
    "streamed": Config(True, False, 16, 8, 2, 16, 0, 4, 1),
    "a launch a step": Config(False, False, 16, 8, 2, 16, 0, 4, 1),
    "a launch a step, resident": Config(False, True, 16, 8, 2, 16, 0, 4, 1),
}
MANY = [
    pytest.param({}, id="plain"),
    pytest.param({"bidirectional": True, "num_layers": 2, "batch_first": True}, id="both"),
    pytest.param({"bidirectional": True, "batch_sizes": [18, 17, 3]}, id="packed"),
]


def run(args: tuple[Any, ...], named: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    return run_op(leaves(args, device=DEVICE, grad=False), named, "triton", **options)


def check(args: tuple[Any, ...], named: dict[str, Any], found: list[torch.Tensor]) -> None:
    assert all(t.is_contiguous() for t in found)
    check_forward(args, named, found)


def choose(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "config", lambda *_: PATHS[path])


@pytest.mark.parametrize("options", MANY)
@pytest.mark.parametrize("path", ["a launch a step", "a launch a step, resident"])
def test_a_launch_a_step(path, options, monkeypatch):
    choose(path, monkeypatch)
    args, named = problem(3, 18, 5, 20, **options)
    check(args, named, run(args, named))


@pytest.mark.skipif(DEVICE == "cuda", reason="schedules are the interpreter's")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("resident", *MANY[0].values), ("resident", *MANY[2].values), ("resident, K in two", *MANY[1].values),
        ("streamed", *MANY[0].values), ("streamed", *MANY[2].values),
    ],
)  # fmt: skip
def test_programs_wait_for_each_other(path, options, schedule, monkeypatch):
    """Right in any order, and with the bits of a launch a step."""
    monkeypatch.setattr(triton, "device_of", lambda _: replace(INTERPRETER, multiprocessors=8))
    args, named = problem(3, 18, 5, 20, **options)
    choose(path, monkeypatch)
    with side_by_side(schedule, 1) as sizes:
        found = run(args, named)
    check(args, named, found)
    groups = 2 * (2 if named["bidirectional"] else 1)  # of 16 sequences, and of 2
    tiles = 2 if path == "resident, K in two" else 3
    assert groups * (min(tiles, 8 // groups) if path == "streamed" else tiles) in sizes
    if path != "resident, K in two":
        choose("a launch a step" if path == "streamed" else "a launch a step, resident", monkeypatch)
        assert_equal(run(args, named), found)


@pytest.mark.parametrize("dtype", FLOATS["triton"], ids=str)
def test_the_same_bits_every_time(dtype):
    args, named = problem(3, 5, 13, 21, num_layers=2, dtype=dtype)
    assert_equal(run(args, named), run(args, named))


def test_nan_and_infinity_stay_in_their_sequence():
    args, named = problem(4, 5, 6, 9)
    args[0][1, 2, 3], args[0][2, 4, 0] = float("nan"), float("inf")
    found = run(args, named)
    check(args, named, found)
    assert found[0][1:, 2].isnan().all()
    assert not found[0][:, :2].isnan().any()


@pytest.mark.parametrize("how", ["transposed", "expanded", "sliced"])
def test_strided_tensors(how):
    (x, (h0, c0), weights), named = problem(3, 4, 6, 10)
    if how == "transposed":
        x, weights = x.transpose(0, 1).contiguous().transpose(0, 1), [w.t().contiguous().t() for w in weights]
    elif how == "expanded":
        x, h0 = x[:, :1].expand_as(x), h0[:, :1].expand_as(h0)
    else:
        x, c0 = torch.stack((x, x + 9), -1)[..., 0], torch.stack((c0, c0 + 9), -1)[..., 0]
    args = x, (h0, c0), weights
    check(args, named, run(args, named))


def test_dropout_takes_torchs_masks():
    args, named = problem(4, 5, 6, 8, num_layers=3)
    found = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        torch.manual_seed(5)
        inputs = leaves(args, dtype, DEVICE, grad=False)
        found.append(run_op(inputs, named, backend, dropout=0.5, training=True))
    assert_close(*found, bound(args, named), torch.float32)


# ---- What is kept for the backward ----


def test_the_reserve():
    """Two layers, both directions, packed: gates and c of each row, and the first layer's output."""
    args, named = problem(3, 4, 5, 6, num_layers=2, bidirectional=True, batch_sizes=[4, 2, 1])
    moved = leaves(args, device=DEVICE, grad=False)
    call = *moved[:3], moved[3:], named["batch_sizes"], 2, True, False, True, True
    output, _, _, reserve = torch.ops.pykernels.lstm_triton(*call)
    assert reserve.numel() == reserve_size(7, 6, 2, 2)
    begin = output_offset(0, 7, 6, 2, 2)
    between = reserve[begin : begin + 7 * 12].view(7, 12)
    x, h, c, *weights = leaves(args, torch.float64, grad=False)
    sizes = named["batch_sizes"]
    first, _ = reference.lstm(x, (h[:2], c[:2]), weights[:8], bidirectional=True, batch_sizes=sizes)
    assert relative_l2(between.cpu(), first) <= LSTM_SPEC.bound(torch.float32, 5 + 6 + 2)
    cell_bound = LSTM_SPEC.bound(torch.float32, 2)  # from the gates on
    for cell, h in enumerate([*between.chunk(2, 1), *output.chunk(2, 1)]):
        i, f, g, o = reserve[gates_offset(cell, 7, 6) :][: 7 * 24].view(7, 4, 6).unbind(1)
        c = reserve[gates_offset(cell, 7, 6) + 7 * 24 :][: 7 * 6].view(7, 6)
        assert relative_l2(o * torch.tanh(c), h) <= cell_bound
        # c of the step before in the direction's time, rows 0-3, 4-5 and 6; of sequences that begin there, c0.
        begins = moved[2][cell]
        forward = torch.cat([begins, c[:2], c[4:5]])
        backward = torch.cat([c[4:6], begins[2:], c[6:], begins[1:2], begins[:1]])
        before = backward if cell % 2 else forward
        assert relative_l2(f * before + i * g, c) <= cell_bound


def test_first_rows():
    found = first_rows(torch.tensor([4, 2, 1]), 7, torch.device(DEVICE))
    assert (found.tolist(), found.dtype) == ([0, 4, 6, 7], torch.int32)
    assert first_rows(torch.tensor([9, -3, 9]), 7, torch.device(DEVICE)).max() <= 7  # no row beyond x


# ---- PyTorch's contract ----


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True, "batch_sizes": [3, 2]}])
def test_contract(options):
    args, named = problem(2, 3, 5, 6, **options)
    inputs = leaves(args, device=DEVICE)
    flags = named["num_layers"], named["bidirectional"], False, True, True
    call = *inputs[:3], inputs[3:], named.get("batch_sizes"), *flags
    torch.library.opcheck(torch.ops.pykernels.lstm_triton.default, call)


def test_contract_of_the_cell():
    call = leaves(cell_problem(3, 5, 6), device=DEVICE)
    torch.library.opcheck(torch.ops.pykernels.lstm_cell_triton.default, (*call, True))


@pytest.mark.parametrize("time", [3, triton.UNROLLED + 1])
def test_what_a_trace_runs(time, monkeypatch):
    """Steps one by one, or one opaque op: the way of a trace, taken with data."""
    args, named = problem(time, 2, 5, 9, bidirectional=True)
    launched: list[bool] = []
    launch = triton.launch
    monkeypatch.setattr(triton, "launch", lambda *a, **c: launched.append(c["PERSISTENT"]) or launch(*a, **c))
    monkeypatch.setattr(triton, "is_fake", lambda _: True)
    check(args, named, run(args, named))
    assert launched == ([False] * 3 if time == 3 else [True])


@pytest.mark.parametrize("time", [2, 20])
def test_compiles(time):
    args, named = problem(time, 3, 5, 6)
    compiled = torch.compile(lambda: run(args, named), backend="aot_eager", fullgraph=True)
    check(args, named, compiled())


def test_one_graph_for_every_batch():
    def function(x: torch.Tensor, state: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        return pk.ops.lstm(x, (state, state), weights, backend="triton")[0]

    problems = [leaves(problem(2, batch, 5, 6)[0], device=DEVICE, grad=False) for batch in (3, 20, 70)]
    assert_one_graph(function, [(x, h0, weights) for x, h0, _, *weights in problems], "eager")


def test_contract_of_the_opaque_steps():
    time, batch, hidden = 3, 2, 5
    state, rows = _random(1, batch, hidden), time * batch
    call = (
        [_random(rows, 4 * hidden)], [_random(4 * hidden, hidden, seed=1)], state, state, _random(time, batch, hidden),
        torch.empty_like(state), torch.empty_like(state), _random(0), None, time, 0, False, False,
    )  # fmt: skip
    utils = "test_schema", "test_faketensor", "test_aot_dispatch_static"
    torch.library.opcheck(torch.ops.pykernels.lstm_steps_triton.default, call, test_utils=utils)


# ---- The choice of tiles ----


@pytest.mark.parametrize("device", [AMPERE, HOPPER, CDNA3], ids=["sm80", "sm90", "gfx942"])
def test_tiles(device):
    for steps in (1, 50):
        for batch in (1, 7, 16, 32, 64, 300, 5000):
            for hidden in (1, 20, 128, 512, 768, 1024, 1536, 4096):
                for directions in (1, 2):
                    for size in (2, 4):
                        shape = steps, batch, hidden, directions, size
                        c = config(*shape, device)
                        assert c == config(*shape, device)
                        groups, tiles = directions * -(-batch // c.block_b), -(-hidden // c.units)
                        assert not c.persistent or groups * tiles <= device.multiprocessors
                        assert steps > 1 or not c.persistent
                        for n in (c.block_b, c.units, c.splits, c.block_k, c.tail_k or 1):
                            assert n & (n - 1) == 0
                        assert min(c.block_b, 4 * c.units, c.block_k, c.tail_k or 16) >= 16
                        if c.resident:
                            assert c.splits * (c.block_k + c.tail_k) >= hidden
                            assert c.splits * (c.block_k + c.tail_k) * 4 * c.units * size <= 98304
                        else:
                            assert c.tail_k == 0
                        if size == 4 and not c.persistent and device != CDNA3:
                            assert c.units == 8  # Triton 3.7 spills kilobytes with more
    c = config(1024, 16, 768, 1, 2, device)
    assert c.persistent
    assert c.resident


@pytest.mark.parametrize("device", [AMPERE, HOPPER, CDNA3, INTERPRETER], ids=["sm80", "sm90", "gfx942", "interpreter"])
def test_tiles_of_products(device):
    for m, n, k in ((1, 1, 1), (16, 2048, 512), (4096, 2048, 512), (2048, 512, 100000), (50, 12, 30000)):
        for size in (2, 4):
            c = triton_product.config(m, n, k, size, device)
            assert c == triton_product.config(m, n, k, size, device)
            assert c.stages * (c.block_m + c.block_n) * c.block_k * size <= device.shared
            assert c.splits == 1 or c.splits * c.block_k <= k
