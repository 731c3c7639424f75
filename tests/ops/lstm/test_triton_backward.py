"""`lstm_backward` and `lstm_cell_backward` in Triton, from a reserve made by hand: gradients, bits, every path."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

import pykernels as pk
from pykernels.ops.lstm import reference
from tests.harness import relative_l2, triton_reason
from tests.ops.lstm.test_call import flat, problem
from tests.ops.lstm.test_kernels import tolerance

if triton_reason() is not None:
    pytest.skip(f"needs Triton: {triton_reason()}", allow_module_level=True)

from pykernels.ops._triton import AMPERE, CDNA3, HOPPER
from pykernels.ops.lstm.triton import backward as triton_backward
from pykernels.ops.lstm.triton.backward import Config, config
from tests.triton_programs import side_by_side

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def layer(rows: Any, sizes: list[int], h: Any, c: Any, weights: list[Any], reverse: bool) -> tuple[Any, Any, Any]:
    """gates (rows, 4, H), c and h (rows, H) of one direction, in float64."""
    starts, steps = [0, *accumulate(sizes)], range(len(sizes))
    gates = torch.empty(rows.shape[0], 4, h.shape[-1], dtype=torch.float64)
    states, outputs = (torch.empty(rows.shape[0], h.shape[-1], dtype=torch.float64) for _ in range(2))
    for t in reversed(steps) if reverse else steps:
        own, b = slice(starts[t], starts[t + 1]), sizes[t]
        sums = rows[own] @ weights[0].t() + h[:b] @ weights[1].t() + sum(weights[2:])
        i, f, g, o = sums.chunk(4, dim=-1)
        gates[own] = torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], dim=1)
        states[own] = gates[own, 1] * c[:b] + gates[own, 0] * gates[own, 2]
        outputs[own] = gates[own, 3] * states[own].tanh()
        h, c = torch.cat([outputs[own], h[b:]]), torch.cat([states[own], c[b:]])
    return gates, states, outputs


def reserve_of(args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    """What the forward keeps (pykernels/ops/lstm/triton/layout.py), from the equations."""
    x, (h0, c0), weights = args
    directions, each = 2 if named["bidirectional"] else 1, len(weights) // h0.shape[0]
    packed = named.get("batch_sizes")
    rows = (x.transpose(0, 1) if named["batch_first"] and packed is None else x).reshape(-1, x.shape[-1]).double()
    batch = h0.shape[1]
    sizes = [batch] * (rows.shape[0] // batch) if packed is None else packed.tolist()
    cells, between = [], []
    for at in range(0, h0.shape[0], directions):
        outputs = []
        for d in range(directions):
            own = [w.double() for w in weights[(at + d) * each : (at + d + 1) * each]]
            gates, states, output = layer(rows, sizes, h0[at + d].double(), c0[at + d].double(), own, d == 1)
            cells += [gates.flatten(), states.flatten()]
            outputs.append(output)
        rows = torch.cat(outputs, dim=-1)
        between.append(rows.flatten())
    return torch.cat(cells + between[:-1]).to(x.dtype)


def case(
    args: tuple[Any, ...], named: dict[str, Any], used: tuple[int, ...] = (0, 1, 2)
) -> tuple[list[Any], list[torch.Tensor]]:
    """The arguments of the op, and the float64 reference's gradients of x, h0, c0 and the weights."""
    x, (h0, c0), weights = args
    leaves = [t.double().requires_grad_() for t in (x, h0, c0, *weights)]
    outputs = flat(reference.lstm(leaves[0], (leaves[1], leaves[2]), leaves[3:], **named))
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=generator).to(x.dtype) for o in outputs]
    expected = torch.autograd.grad([outputs[i] for i in used], leaves, [grads[i].double() for i in used])
    given = [g.to(DEVICE) if i in used else None for i, g in enumerate(grads)]
    saved = [outputs[0].detach().to(x.dtype), reserve_of(args, named)]
    flags = [named["num_layers"], named["bidirectional"], named["batch_first"], len(weights) // h0.shape[0] == 4]
    tensors = [t.to(DEVICE) for t in (x, h0, c0)]
    on_device = [[w.to(DEVICE) for w in weights], named.get("batch_sizes"), *(t.to(DEVICE) for t in saved)]
    return [*given, *tensors, *on_device, *flags], list(expected)


def run(call: list[Any]) -> list[torch.Tensor]:
    grad_x, grad_h0, grad_c0, grad_weights = torch.ops.pykernels.lstm_backward_triton(*call)
    return [grad_x, grad_h0, grad_c0, *grad_weights]


def check(args: tuple[Any, ...], named: dict[str, Any], used: tuple[int, ...] = (0, 1, 2)) -> None:
    call, expected = case(args, named, used)
    for g, e in zip(run(call), expected, strict=True):
        assert (g.shape, g.dtype, g.is_contiguous()) == (e.shape, args[0].dtype, True)
        assert relative_l2(g.cpu(), e) <= tolerance(args, named, backward=True)


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
    (x, (h0, c0), weights), _ = problem(4, 0, 5, 6, num_layers=2)
    tensors = [t.to(DEVICE) for t in (x, h0, c0)]
    output, reserve = torch.zeros(4, 0, 6, device=DEVICE), torch.zeros(0, device=DEVICE)
    got = run(
        [None, *tensors[1:], *tensors, [w.to(DEVICE) for w in weights], None, output, reserve, 2, False, False, True]
    )
    for g, t in zip(got, (x, h0, c0, *weights), strict=True):
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
    assert all(torch.equal(g, e) for g, e in zip(got, run(call), strict=True))


# ---- Every path: tiles of their own, more than one each way ----

PATHS = {
    "a launch a step": Config(False, 16, 16, 16, 2, 4, 1),
    "one slice of K": Config(True, 16, 16, 64, 1, 4, 1),
    "slices of K": Config(True, 16, 16, 16, 2, 4, 1),
    "W_hh held": Config(True, 16, 16, 16, 2, 4, 1, 3),
}
MANY = [
    pytest.param({"bidirectional": True}, id="both"),
    pytest.param({"bidirectional": True, "batch_sizes": [18, 17, 3]}, id="packed"),
]


def run_on(path: str, call: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(triton_backward, "config", lambda *_: PATHS[path])
    return run(call)


@pytest.mark.parametrize("options", MANY)
def test_a_launch_a_step(options, monkeypatch):
    args, named = problem(3, 18, 5, 20, **options)
    call, expected = case(args, named)
    for g, e in zip(run_on("a launch a step", call, monkeypatch), expected, strict=True):
        assert relative_l2(g.cpu(), e) <= tolerance(args, named, backward=True)


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
    for g, e in zip(got, expected, strict=True):
        assert relative_l2(g, e) <= tolerance(args, named, backward=True)
    if schedule == "random":
        steps = run_on("a launch a step", call, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(got, steps, strict=True))


@pytest.mark.parametrize("device", [AMPERE, HOPPER, CDNA3], ids=["sm80", "sm90", "gfx942"])
def test_programs_that_wait_are_all_resident(device):
    for batch in (1, 7, 16, 64, 300, 5000):
        for hidden in (1, 20, 512, 768, 1024, 4096):
            for size in (2, 4):
                for directions in (1, 2):
                    c = config(50, batch, hidden, directions, size, device)
                    programs = directions * -(-batch // c.block_b) * -(-hidden // c.block_u)
                    assert not c.persistent or programs <= device.multiprocessors
    assert config(50, 16, 768, 1, 2, device).persistent


def test_the_same_bits_every_time():
    call, _ = case(*problem(3, 5, 13, 21, num_layers=2, dtype=torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(run(call), run(call), strict=True))


# ---- The cell ----


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("used", "batch"), [((0,), 7), ((1,), 7), ((0, 1), 1)])
def test_gradients_of_the_cell(bias, used, batch):
    args, named = problem(1, batch, 13, 21, bias=bias)
    (x, (h, c), weights), reserve = args, reserve_of(args, named)
    leaves = [t.double().requires_grad_() for t in (x[0], h[0], c[0], *weights)]
    outputs = reference.lstm_cell(leaves[0], (leaves[1], leaves[2]), *leaves[3:])
    grads = [torch.randn(batch, 21, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    expected = torch.autograd.grad([outputs[i] for i in used], leaves, [grads[i].double() for i in used])
    given = [g.to(DEVICE) if i in used else None for i, g in enumerate(grads)]
    tensors = [t.to(DEVICE) for t in (x[0], h[0], c[0], *weights[:2], reserve)]
    got = torch.ops.pykernels.lstm_cell_backward_triton(*given, *tensors, bias)
    assert len(got) == 7
    assert bias or got[5].numel() == got[6].numel() == 0
    for g, e in zip(got, expected, strict=False):
        assert relative_l2(g.cpu(), e) <= tolerance(args, named, backward=True)


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
    args, named = problem(1, 3, 5, 6)
    (x, (h, c), weights), reserve = args, reserve_of(args, named)
    tensors = [t.to(DEVICE) for t in (h[0], c[0], x[0], h[0], c[0], *weights[:2], reserve)]
    torch.library.opcheck(torch.ops.pykernels.lstm_cell_backward_triton.default, (*tensors, True))


# ---- Behind the public functions ----


def test_gradients_through_the_public_function():
    """Forward and backward in Triton; the reserve that the one leaves is what the other reads."""
    args, named = problem(3, 4, 7, 20, num_layers=2, bidirectional=True, batch_first=True)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        inputs = [t.to(DEVICE, dtype).requires_grad_() for t in (args[0], *args[1], *args[2])]
        outputs = flat(pk.ops.lstm(inputs[0], (inputs[1], inputs[2]), inputs[3:], **named, backend=backend))
        results.append(torch.autograd.grad([o.sin().sum() for o in outputs], inputs))
    for g, e in zip(*results, strict=True):
        assert relative_l2(g, e) <= tolerance(args, named, backward=True)


def test_second_gradients_are_the_references():
    (x, states, weights), _ = problem(2, 3, 4, 5)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        own = x.to(DEVICE, dtype).requires_grad_()
        rest = [t.to(DEVICE, dtype) for t in (*states, *weights)]
        output, _ = pk.ops.lstm(own, (rest[0], rest[1]), rest[2:], backend=backend)
        (first,) = torch.autograd.grad(output.sum(), own, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), own)[0])
    assert relative_l2(*results) <= 1e-5


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
    for (name, got), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert relative_l2(got.grad.cpu(), expected.grad) <= 1e-5, name
        assert relative_l2(got.detach().cpu(), expected.detach()) <= 1e-6, name


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_features(batch_first):
    torch.manual_seed(0)
    states = (torch.randn(1, 2, 3), torch.randn(1, 2, 3))
    found = {}
    for backend in ("triton", "reference"):
        torch.manual_seed(1)
        weights = [t.requires_grad_() for t in (torch.randn(12, 0), torch.randn(12, 3))]
        x = torch.randn(4, 2, 0, requires_grad=True)
        y, _ = pk.ops.lstm(
            x.transpose(0, 1) if batch_first else x, states, weights, batch_first=batch_first, backend=backend
        )
        found[backend] = (y, *torch.autograd.grad(y.sum(), (x, *weights)))
    torch.testing.assert_close(found["triton"], found["reference"])
