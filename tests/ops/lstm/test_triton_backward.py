"""`lstm_backward` and `lstm_cell_backward` in Triton, from a reserve made by hand: gradients, bits, every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_SPEC, bound
from tests.harness import DEVICE, relative_l2, triton_reason
from tests.ops.lstm.checks import (
    DTYPES,
    assert_close,
    assert_equal,
    cell_problem,
    check_gradients,
    check_second_gradients,
    gradients,
    leaves,
    output_gradients,
    problem,
    reserve_of,
    run_cell,
)
from tests.ops.lstm.checks import run as run_op

if triton_reason() is not None:
    pytest.skip(f"needs Triton: {triton_reason()}", allow_module_level=True)

from pykernels.ops._triton import AMPERE, CDNA3, HOPPER
from pykernels.ops.lstm.triton import backward as triton_backward
from pykernels.ops.lstm.triton.config import BackwardConfig, backward_config
from tests.triton_programs import side_by_side

pytestmark = pytest.mark.triton


def case(
    args: tuple[Any, ...], named: dict[str, Any], used: tuple[int, ...] = (0, 1, 2)
) -> tuple[list[Any], list[torch.Tensor]]:
    """The arguments of the op, and the float64 reference's gradients of x, h0, c0 and the weights."""
    x, (h0, _), weights = args
    inputs = leaves(args, torch.float64)
    outputs = run_op(inputs, named, "reference")
    narrow = [o.detach().to(x.dtype) for o in outputs]
    given = [g.to(DEVICE) if i in used else None for i, g in enumerate(output_gradients(narrow))]
    expected = torch.autograd.grad([outputs[i] for i in used], inputs, [given[i].cpu().double() for i in used])
    moved = leaves(args, device=DEVICE, grad=False)
    kept = [t.to(DEVICE) for t in (narrow[0], reserve_of(args, named))]
    flags = [named["num_layers"], named["bidirectional"], named["batch_first"], len(weights) // h0.shape[0] == 4]
    return [*given, *moved[:3], moved[3:], named.get("batch_sizes"), *kept, *flags], list(expected)


def run(call: list[Any]) -> list[torch.Tensor]:
    grad_x, grad_h0, grad_c0, grad_weights = torch.ops.pykernels.lstm_backward_triton(*call)
    return [grad_x, grad_h0, grad_c0, *grad_weights]


def check(args: tuple[Any, ...], named: dict[str, Any], used: tuple[int, ...] = (0, 1, 2)) -> None:
    call, expected = case(args, named, used)
    got = run(call)
    assert all(g.is_contiguous() for g in got)
    assert_close(got, expected, bound(args, named, gradients=True), args[0].dtype)


PACKED = {"num_layers": 2, "bidirectional": True, "batch_sizes": [5, 4, 2, 1]}
GRADIENTS = [
    *(pytest.param({}, dtype, id=f"plain-{str(dtype)[6:]}") for dtype in DTYPES),
    pytest.param({"bias": False}, torch.float32, id="no-bias"),
    pytest.param({"num_layers": 3}, torch.float32, id="layers"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True}, torch.bfloat16, id="deep"),
    pytest.param(PACKED, torch.float32, id="packed"),
    pytest.param(PACKED, torch.float16, id="packed-float16"),
    pytest.param({"batch_sizes": [5, 5, 3], "bias": False}, torch.float32, id="packed-no-bias"),
]


@pytest.mark.parametrize(("options", "dtype"), GRADIENTS)
def test_gradients(options, dtype):
    check(*problem(4, 5, 13, 21, **options, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 1, 8, 16), (1, 4, 10, 20), (2, 2, 1, 1), (2, 37, 20, 32)])
def test_gradients_of_shapes(shape):
    check(*problem(*shape))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_outputs(used):
    check(*problem(3, 5, 13, 21), used=used)


def test_gradients_from_zero_states():
    (x, (h0, c0), weights), named = problem(3, 5, 13, 21)
    check((x, (torch.zeros_like(h0), torch.zeros_like(c0)), weights), named)


def test_gradients_of_no_sequence():
    inputs = leaves(problem(4, 0, 5, 6, num_layers=2)[0], device=DEVICE, grad=False)
    kept = torch.zeros(4, 0, 6, device=DEVICE), torch.zeros(0, device=DEVICE)
    got = run([None, *inputs[1:3], *inputs[:3], inputs[3:], None, *kept, 2, False, False, True])
    for g, t in zip(got, inputs, strict=True):
        assert g.shape == t.shape
        assert not g.any()


@pytest.mark.parametrize("how", ["expanded", "transposed"])
def test_gradients_of_strange_output_gradients(how):
    args, named = problem(3, 5, 13, 21)
    call, _ = case(args, named)
    plain = torch.ones(3, 5, 21) if how == "expanded" else torch.randn(21, 5, 3).permute(2, 1, 0)
    call[0] = torch.ones(()).expand(3, 5, 21) if how == "expanded" else plain
    got = run(call)
    call[0] = plain.contiguous()
    assert_equal(got, run(call))


# ---- Every path: tiles of their own, more than one each way ----

PATHS = {
    "a launch a step": BackwardConfig(False, 16, 16, 16, 2, 4, 1),
    "one slice of K": BackwardConfig(True, 16, 16, 64, 1, 4, 1),
    "slices of K": BackwardConfig(True, 16, 16, 16, 2, 4, 1),
    "W_hh held": BackwardConfig(True, 16, 16, 16, 2, 4, 1, 3),
}
MANY = [
    pytest.param({"bidirectional": True}, id="both"),
    pytest.param({"bidirectional": True, "batch_sizes": [18, 17, 3]}, id="packed"),
]


def run_on(path: str, call: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(triton_backward, "backward_config", lambda *_: PATHS[path])
    return run(call)


@pytest.mark.parametrize("options", MANY)
def test_a_launch_a_step(options, monkeypatch):
    args, named = problem(3, 18, 5, 20, **options)
    call, expected = case(args, named)
    got = run_on("a launch a step", call, monkeypatch)
    assert_close(got, expected, bound(args, named, gradients=True), torch.float32)


@pytest.mark.skipif(DEVICE == "cuda", reason="schedules are the interpreter's")
@pytest.mark.parametrize(
    ("path", "schedule", "options"),
    [
        ("one slice of K", "behind", *MANY[0].values),
        ("slices of K", "ahead", *MANY[1].values),
        ("slices of K", "random", *MANY[1].values),
        ("W_hh held", "ahead", *MANY[1].values),
        ("W_hh held", "random", *MANY[0].values),
    ],
)
def test_programs_wait_for_each_other(path, schedule, options, monkeypatch):
    """Eight programs side by side: right in any order, and with the bits of a launch a step."""
    args, named = problem(3, 18, 5, 20, **options)
    call, expected = case(args, named)
    with side_by_side(schedule, 1) as sizes:
        got = run_on(path, call, monkeypatch)
    assert sizes[0] == 8
    assert_close(got, expected, bound(args, named, gradients=True), torch.float32)
    if schedule == "random":
        assert_equal(run_on("a launch a step", call, monkeypatch), got)


@pytest.mark.parametrize("device", [AMPERE, HOPPER, CDNA3], ids=["sm80", "sm90", "gfx942"])
def test_programs_that_wait_are_all_resident(device):
    for batch in (1, 7, 16, 64, 300, 5000):
        for hidden in (1, 20, 512, 768, 1024, 4096):
            for size in (2, 4):
                for directions in (1, 2):
                    c = backward_config(50, batch, hidden, directions, size, device)
                    programs = directions * -(-batch // c.block_b) * -(-hidden // c.block_u)
                    assert not c.persistent or programs <= device.multiprocessors
    assert backward_config(50, 16, 768, 1, 2, device).persistent


def test_the_same_bits_every_time():
    call, _ = case(*problem(3, 5, 13, 21, num_layers=2, dtype=torch.bfloat16))
    assert_equal(run(call), run(call))


# ---- The cell ----


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("used", "batch"), [((0,), 7), ((1,), 7), ((0, 1), 1)])
def test_gradients_of_the_cell(bias, used, batch):
    args = cell_problem(batch, 13, 21, bias=bias)
    inputs = leaves(args, torch.float64)
    outputs = run_cell(inputs, "reference")
    expected = gradients(outputs, inputs, used)
    given = [g.to(DEVICE, torch.float32) if i in used else None for i, g in enumerate(output_gradients(outputs))]
    reserve = reserve_of(*problem(1, batch, 13, 21, bias=bias)).to(DEVICE)
    got = torch.ops.pykernels.lstm_cell_backward_triton(
        *given, *leaves(args, device=DEVICE, grad=False)[:5], reserve, bias
    )
    assert len(got) == 7
    assert bias or got[5].numel() == got[6].numel() == 0
    assert_close(got[: len(expected)], expected, bound(args, {}, gradients=True), torch.float32)


def test_gradients_of_an_empty_cell():
    x, h, w_ih, w_hh = torch.zeros(0, 5), torch.zeros(0, 6), torch.ones(24, 5), torch.ones(24, 6)
    call = [t.to(DEVICE) for t in (h, h, x, h, h, w_ih, w_hh, torch.zeros(0))]
    got = torch.ops.pykernels.lstm_cell_backward_triton(*call, True)
    assert [g.shape for g in got] == [t.shape for t in (x, h, h, w_ih, w_hh, w_ih[:, 0], w_ih[:, 0])]
    assert not any(g.any() for g in got)


# ---- PyTorch's contract ----


def test_contract():
    call, _ = case(*problem(2, 3, 5, 6, num_layers=2, batch_sizes=[3, 2]))
    torch.library.opcheck(torch.ops.pykernels.lstm_backward_triton.default, tuple(call))


def test_contract_of_the_cell():
    x, h, c, *weights = leaves(cell_problem(3, 5, 6), device=DEVICE, grad=False)
    reserve = reserve_of(*problem(1, 3, 5, 6)).to(DEVICE)
    torch.library.opcheck(
        torch.ops.pykernels.lstm_cell_backward_triton.default, (h, c, x, h, c, *weights[:2], reserve, True)
    )


# ---- Behind the public functions ----


def test_gradients_through_the_public_function():
    """Forward and backward in Triton; the reserve that the one leaves is what the other reads."""
    check_gradients(*problem(3, 4, 7, 20, num_layers=2, bidirectional=True, batch_first=True), "triton", device=DEVICE)


def test_second_gradients_are_the_references():
    check_second_gradients(*problem(2, 3, 4, 5), "triton", DEVICE)


@pytest.mark.parametrize("module", ["LSTM", "LSTMCell"])
def test_a_training_step_is_torchs(module):
    torch.manual_seed(0)
    ours, theirs = getattr(pk.nn, module)(6, 20).to(DEVICE), getattr(torch.nn, module)(6, 20).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6) if module == "LSTMCell" else torch.randn(3, 4, 6)
    for net, there, backend in ((ours, x.to(DEVICE), "triton"), (theirs, x.double(), "auto")):
        with pk.backend(backend):
            result = net(there)
        h, c = result if module == "LSTMCell" else result[1]
        (result[0].square().mean() + h.sum() + c.sum()).backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
    allowed = bound(*problem(3, 4, 6, 20), gradients=True)
    for (name, got), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert relative_l2(got.grad.cpu(), expected.grad) <= allowed, name
        assert relative_l2(got.detach().cpu(), expected.detach()) <= LSTM_SPEC.bound(torch.float32, 2), name


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_features(batch_first):
    (_, states, weights), _ = problem(4, 2, 0, 3, bias=False)
    args = torch.zeros(2, 4, 0) if batch_first else torch.zeros(4, 2, 0), states, weights
    found = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        inputs = leaves(args, dtype)
        outputs = run_op(inputs, {"batch_first": batch_first}, backend)
        found.append([outputs[0], *gradients(outputs, inputs)])
    assert_close(*found, bound(args, {}, gradients=True), torch.float32)
