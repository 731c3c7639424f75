"""`lstm` and `lstm_cell` on CUDA tensors: what tracing is told of them, here too; the rest where there is a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels as pk
from pykernels import _native
from pykernels.ops.lstm import autograd
from pykernels.ops.lstm.spec import bound
from tests.harness import map_tensors, native, needs_cuda, relative_l2
from tests.ops.lstm.checks import (
    DTYPES,
    assert_equal,
    check_gradients,
    check_second_gradients,
    gradients,
    leaves,
    problem,
    run,
)


def gpu(test: Any) -> Any:
    """A test that needs a GPU, with the reference in exact float32."""
    return pytest.mark.usefixtures("exact_float32")(needs_cuda(test))


#: Sizes of packed sequences, or None.
SIZES = [pytest.param(None, id="padded"), pytest.param([4, 3, 3, 1, 1], id="packed")]


def saved_by(setup: Any, call: tuple[Any, ...], outputs: Any) -> SimpleNamespace:
    """The context of autograd's functions: the engine asks for a device itself, so they are called by hand."""
    ctx = SimpleNamespace(mark_non_differentiable=lambda *_: None, set_materialize_grads=lambda _: None)
    ctx.save_for_backward = lambda *saved: setattr(ctx, "saved_tensors", saved)
    setup(ctx, call, outputs)
    return ctx


def fake_call(dtype: torch.dtype, sizes: list[int] | None, **options: Any) -> tuple[list[Any], int, int]:
    """The arguments of torch.ops.pykernels.lstm up to `save`, fake CUDA tensors but for the sizes; and rows and H."""
    (x, states, weights), named = map_tensors(
        problem(5, 4, 12, 24, dtype=dtype, batch_sizes=sizes, **options),
        lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda") if t.is_floating_point() else t,
    )
    flags = [named["num_layers"], named["bidirectional"], named["batch_first"], options.get("bias", True)]
    return [x, *states, weights, named.get("batch_sizes"), *flags], x.numel() // 12, 24


@native
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_sequences(dtype, sizes):
    with FakeTensorMode(allow_non_fake_inputs=True):
        args, rows, hidden = fake_call(dtype, sizes, num_layers=2, bidirectional=True)
        x, h0 = args[:2]
        output, h_n, c_n, reserve = torch.ops.pykernels.lstm(*args, True)
        for t, shape in ((output, (*x.shape[:-1], 2 * hidden)), (h_n, h0.shape), (c_n, h0.shape)):
            assert (t.shape, t.dtype, t.device.type, t.is_contiguous()) == (shape, dtype, "cuda", True)
        # LstmForwardPlan::reserve_elements in csrc/include/pykernels/cuda/lstm.h, in the tensors' own dtype.
        assert (reserve.shape, reserve.dtype) == ((2 * 2 * 5 * rows * hidden + rows * 2 * hidden,), dtype)
        assert reserve.device.type == "cuda"
        assert torch.ops.pykernels.lstm(*args, False)[3].shape == (0,)


@native
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_fake_gradients_through_autograds_own_functions(sizes, bias):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        args, *_ = fake_call(torch.float16, sizes, num_layers=2, bidirectional=True, batch_first=True, bias=bias)
        outputs = torch.ops.pykernels.lstm(*args, True)
        ctx = saved_by(autograd.lstm_setup, (*args, True), outputs)
        grad_x, grad_h0, grad_c0, grads, *rest = autograd.lstm_backward("lstm_backward")(
            ctx, outputs[0], None, outputs[2], None
        )
        wanted = [*args[:3], *args[3]]
        for g, t in zip([grad_x, grad_h0, grad_c0, *grads], wanted, strict=True):
            assert (g.shape, g.dtype, g.device.type) == (t.shape, t.dtype, "cuda")
        assert rest == [None] * 6


@native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_cells(dtype, bias):
    with FakeTensorMode(), torch.no_grad():
        x, h, w_ih, w_hh, b = (
            torch.empty(shape, dtype=dtype, device="cuda") for shape in ((3, 5), (3, 7), (28, 5), (28, 7), (28,))
        )
        biases = (b, b) if bias else (None, None)
        h_out, c_out, reserve = torch.ops.pykernels.lstm_cell(x, h, h, w_ih, w_hh, *biases, True)
        assert [t.shape for t in (h_out, c_out, reserve)] == [(3, 7), (3, 7), (5 * 3 * 7,)]
        assert {t.dtype for t in (h_out, c_out, reserve)} == {dtype}
        ctx = saved_by(autograd.cell_setup, (x, h, h, w_ih, w_hh, *biases, True), (h_out, c_out, reserve))
        grads = autograd.cell_backward("lstm_cell_backward")(ctx, h_out, None, None)
        for g, t in zip(grads, (x, h, h, w_ih, w_hh, *biases, None), strict=True):
            assert (g is None) == (t is None)
            assert g is None or (g.shape, g.dtype, g.device.type) == (t.shape, t.dtype, "cuda")


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fake_autocast(dtype):
    """Which stands before the fake kernels, as before the real ones."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", dtype)  # torch.autocast itself refuses where there is no GPU
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            args, *_ = fake_call(torch.float32, [4, 2, 2])
            assert [t.dtype for t in torch.ops.pykernels.lstm(*args, True)] == [dtype] * 4
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


@native
@pytest.mark.parametrize("sizes", SIZES)
def test_modules_reach_the_op_with_fake_tensors(sizes, monkeypatch):
    """Public functions and modules on fake CUDA tensors, as if there were a GPU."""
    monkeypatch.setattr(_native, "why_not", lambda backend, device: None)
    for module in (pk.nn.LSTM, pk.nn.LSTMCell):  # there is nothing to fill with numbers
        monkeypatch.setattr(module, "reset_parameters", lambda self: None)
    called = []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), pk.backend("cuda"):
        half = {"device": "cuda", "dtype": torch.float16}
        lstm = pk.nn.LSTM(12, 24, 2, bidirectional=True, **half)
        x, step = torch.empty(5, 4, 12, **half), torch.empty(4, 12, **half)
        value: Any = x if sizes is None else PackedSequence(torch.empty(12, 12, **half), torch.tensor(sizes))
        monkeypatch.setattr(autograd, "wanted", lambda *tensors: called.append(len(tensors)) or False)
        h0 = torch.empty(4, 4, 24, **half)  # by themselves they would be made from what the sizes hold
        output, (h_n, c_n) = lstm(value, (h0, h0))
        data = output if sizes is None else output.data
        assert (data.shape[-1], data.dtype, data.device.type) == (48, torch.float16, "cuda")
        assert h_n.shape == c_n.shape == (4, 4, 24)
        h, c = pk.nn.LSTMCell(12, 24, **half)(step)
        assert (h.shape, c.shape, h.dtype, h.device.type) == ((4, 24), (4, 24), torch.float16, "cuda")
    assert len(called) == 2  # both took the kernels' way


@native
@pytest.mark.parametrize(
    ("dtype", "pitches"), [(torch.float32, (8 + 12 + 1, 12 + 12 + 1)), (torch.float16, (8 + 16 + 2, 16 + 16 + 2))]
)
def test_traced_shapes_on_cuda(dtype, pitches):
    """What tracing is told of CUDA tensors; the kernels' own sizes are checked where they run."""
    with FakeTensorMode():

        def empty(*shape):
            return torch.empty(shape, dtype=dtype, device="cuda")

        h = empty(2, 3, 10)
        weights = [empty(*s) for wide in (6, 10) for s in ((40, wide), (40, 10), (40,), (40,))]
        output, h_n, _, reserve = torch.ops.pykernels.lstm(
            empty(5, 3, 6), h, h, weights, None, 2, False, False, True, True
        )
        packed = torch.ops.pykernels.lstm_pack(weights, 2, False, True)
        h_out, _, cell_reserve = torch.ops.pykernels.lstm_cell(
            empty(3, 6), empty(3, 10), empty(3, 10), *weights[:4], True
        )
    assert output.shape == (5, 3, 10)
    assert h_n.shape == (2, 3, 10)
    assert h_out.shape == (3, 10)
    assert all(t.dtype == dtype for t in (output, reserve, packed, cell_reserve))
    assert reserve.shape == (2 * 15 * 50 + 15 * 10,)
    assert cell_reserve.shape == (3 * 50,)
    # Rows of 6 and 10 elements padded to whole 16 bytes, and a float32 for each.
    assert packed.shape == (40 * sum(pitches),)


# ---- with a GPU ----


@gpu
@pytest.mark.parametrize("hidden", [24, 40, 128, 600, 2000])
@pytest.mark.parametrize("batch", [1, 5, 40, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_every_path(dtype, batch, hidden):
    """Weights that are pinned, partly pinned, and too many for that; more sequences than fit at once."""
    args, named = problem(4, batch, 16, hidden, bidirectional=True, dtype=dtype)
    got = check_gradients(args, named, "cuda", device="cuda")
    inputs = leaves(args, device="cuda")
    assert_equal(gradients(run(inputs, named, "cuda"), inputs), got)


@gpu
def test_gradients_of_packed_sequences():
    lstm = pk.nn.LSTM(10, 24, 2, bidirectional=True).cuda()
    twin = torch.nn.LSTM(10, 24, 2, bidirectional=True).double()
    twin.load_state_dict({k: v.cpu().double() for k, v in lstm.state_dict().items()})
    x = torch.randn(7, 3, 10)
    args, named = problem(7, 3, 10, 24, num_layers=2, bidirectional=True)
    for module, there in ((lstm, x.cuda()), (twin, x.double())):
        packed = pack_padded_sequence(there, torch.tensor([4, 7, 1]), enforce_sorted=False)
        output, (h_n, c_n) = module(packed)
        (output.data.square().sum() + h_n.sum() + (c_n * 2).sum()).backward()
    for (name, ours), theirs in zip(lstm.named_parameters(), twin.parameters(), strict=True):
        assert relative_l2(ours.grad.cpu(), theirs.grad) <= bound(args, named, gradients=True), name


@gpu
def test_second_gradients_are_the_references():
    check_second_gradients(*problem(3, 2, 5, 6), "cuda", "cuda")


@gpu
def test_training_under_autocast_in_a_graph():
    """Forward and backward captured: nothing waits, nothing is allocated outside of the graph's pool."""
    lstm, x = pk.nn.LSTM(16, 64, 2).cuda(), torch.randn(6, 4, 16, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16, cache_enabled=False):
            lstm(x)[0].float().square().mean().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            lstm.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    expected = [p.grad.clone() for p in lstm.parameters()]
    lstm.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(p.grad, e) for p, e in zip(lstm.parameters(), expected, strict=True))
