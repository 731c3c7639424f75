"""On a GPU: streams, devices, graphs, threads, determinism, gradients. The samples of the specs run in test_specs.py.

Without a GPU every test here is skipped with the reason, and the end of the run says so in words.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import pykernels as pk
from pykernels.models import reference_twin
from pykernels.ops._check import on_device
from pykernels.ops._spec import all_specs
from tests.harness import cuda_reason, eight_threads, inputs_of, map_tensors, relative_l2, tensors_of, to_double

REASON = cuda_reason()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(REASON is not None, reason=f"needs a GPU: {REASON}"),
    pytest.mark.usefixtures("exact_float32"),
]

SPECS = {spec.name: spec for spec in all_specs()}
OPS = [
    pytest.param(spec, marks=[pytest.mark.skip(reason)] if (reason := spec.op.backends["cuda"]) else [], id=spec.name)
    for spec in SPECS.values()
]
HALF = {torch.float16: 3e-3, torch.bfloat16: 3e-2}


def sample_of(spec):
    """A sample with tails, and no bench."""
    return next((s for s in spec.samples if "tail" in s.name), next(s for s in spec.samples if not s.bench))


def call_of(spec, dtype=None, device="cuda"):
    """A function of no arguments that runs the op once on ``device``; and its inputs."""
    dtype = spec.op.takes("cuda")[-1] if dtype is None else dtype
    args, kwargs = on_device(inputs_of(sample_of(spec), dtype), device)

    def call():
        with pk.backend("cuda"):
            return tensors_of(spec.function(*args, **kwargs))

    return call, tensors_of((args, kwargs))


def equal(got, expected):
    return all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


# ---- streams, devices, synchronisation ----


@pytest.mark.parametrize("spec", OPS)
def test_runs_on_the_current_stream_and_waits_for_nothing(spec):
    call, inputs = call_of(spec)
    with torch.no_grad():
        expected = call()
        right = [t.clone() for t in inputs]
        for t in inputs:
            t.zero_()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)  # about 0.1 s: what comes on another stream overtakes it
            for t, value in zip(inputs, right, strict=True):
                t.copy_(value)
            got = call()
            assert not stream.query(), "the op waited for the device"
        torch.cuda.synchronize()
    assert equal(got, expected)


@pytest.mark.parametrize("spec", OPS)
def test_torch_is_asked_for_no_synchronisation(spec):
    call, _ = call_of(spec)
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("spec", OPS)
def test_two_streams_at_once(spec):
    call, _ = call_of(spec)
    expected = call()
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(call())
    torch.cuda.synchronize()
    assert all(equal(got, expected) for got in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("spec", OPS)
def test_runs_on_the_device_of_its_tensors(spec):
    expected = [t.cpu() for t in call_of(spec)[0]()]
    call, _ = call_of(spec, device="cuda:1")
    with torch.cuda.device(0):
        got = call()
        assert torch.cuda.current_device() == 0
    assert all(t.device == torch.device("cuda:1") for t in got)
    assert equal([t.cpu() for t in got], expected)


@pytest.mark.parametrize("spec", OPS)
def test_eight_threads(spec):
    call, _ = call_of(spec)
    expected = call()

    def work(_):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(20):
                got = call()
                torch.cuda.current_stream().synchronize()
                assert equal(got, expected)

    torch.cuda.synchronize()
    eight_threads(work)


@pytest.mark.parametrize("spec", OPS)
def test_the_same_bits_again_in_other_memory(spec):
    call, _ = call_of(spec)
    expected = [t.clone() for t in call()]
    for i in range(5):
        noise = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(1 + i)]
        del noise  # what the next outputs and workspaces are made of
        assert equal(call(), expected)


# ---- CUDA graphs ----


def captured(function):
    """The function's outputs, and the graph that writes them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(), function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()
    return out, graph


@pytest.mark.parametrize("spec", OPS)
def test_capture_and_replay(spec):
    call, inputs = call_of(spec)
    with torch.no_grad():
        out, graph = captured(call)
        for scale in (1.0, 0.5, 2.0):
            for t in inputs:
                if t.is_floating_point():
                    t.mul_(scale)
            expected = call()
            for t in out:
                t.fill_(77)
            graph.replay()
            torch.cuda.synchronize()
            assert equal(out, expected)


def models():
    """Name, model, input maker."""

    def tokens(n):
        return torch.randint(100, (n, 12), device="cuda")

    yield "resnet18", lambda: pk.models.resnet18(10, stem="cifar"), lambda n: torch.randn(n, 3, 32, 32, device="cuda")
    yield "resnet50", lambda: pk.models.resnet50(20), lambda n: torch.randn(n, 3, 64, 64, device="cuda")
    yield "lstm_lm", lambda: pk.models.LSTMLanguageModel(100, 40, 72, 2), tokens
    yield "cnn_lstm", lambda: pk.models.CNNLSTM(10, 64 * 5, 48, 2), lambda n: torch.randn(n, 1, 24, 20, device="cuda")


MODELS = [pytest.param(make, inputs, id=name) for name, make, inputs in models()]


def first(y):
    return y[0] if isinstance(y, tuple) else y


def cast(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("make", "inputs"), MODELS)
def test_models_agree_with_their_twins_plain_packed_and_replayed(make, inputs, dtype):
    torch.manual_seed(0)
    model = make().cuda().eval()
    x = inputs(3)
    oracle = reference_twin(model).double()
    model = model.to(dtype)
    with torch.no_grad():
        expected = first(oracle(cast(x, torch.float64)))
        narrow = cast(x, dtype)
        packed = first(model(narrow))
        fast = first(pk.optimize(model)(narrow))
        out, graph = captured(lambda: first(model(narrow)))
        graph.replay()
        torch.cuda.synchronize()
    bound = HALF.get(dtype, 1e-5)
    assert relative_l2(packed, expected) <= bound
    assert relative_l2(fast, expected) <= bound
    assert torch.equal(out, packed)
    plain = first(model(narrow)).detach()  # with gradients to record: no packed weights
    assert relative_l2(plain, expected) <= bound


@pytest.mark.parametrize(("make", "inputs"), MODELS)
def test_a_model_captured_before_it_was_ever_called_elsewhere(make, inputs):
    """Weights that are packed during a capture are the graph's own: eager calls after it must not see them."""
    model, x = make().cuda().eval(), inputs(2)
    with torch.no_grad():
        first(make().cuda().eval()(x))  # loads the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = first(model(x))
        eager = first(model(x))  # before the first replay
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, eager)


@pytest.mark.parametrize(("make", "inputs"), MODELS)
def test_packed_weights_follow_the_model_to_the_device_and_back(make, inputs):
    model, x = make().eval(), inputs(2)
    with torch.no_grad():
        here = first(model(x.cpu()))
        there = first(model.cuda()(x))
        back = first(model.cpu()(x.cpu()))
    assert torch.equal(here, back)
    assert relative_l2(there.cpu(), here) <= 1e-5


def test_packed_weights_are_seen_whole_by_every_stream():
    lstm, x = pk.nn.LSTM(64, 256, 2).cuda().half().eval(), torch.randn(5, 4, 64, device="cuda").half()
    with torch.no_grad():
        expected = lstm(x)[0]
        for _ in range(5):
            lstm.repack()
            found = []
            for _ in range(4):
                with torch.cuda.stream(torch.cuda.Stream()):
                    found.append(lstm(x)[0])
            torch.cuda.synchronize()
            assert all(torch.equal(got, expected) for got in found)


# ---- torch: gradients, compile, autocast, layouts, messages ----

GRADIENTS = ["conv_bn_act", "lstm", "lstm_cell"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name, dtype):
    spec = SPECS[name]
    if spec.op.backends["cuda"] is not None:
        pytest.skip(spec.op.backends["cuda"])
    for sample in [s for s in spec.samples if not s.bench and s.name != "no-batch"]:
        host = inputs_of(sample, dtype)

        def gradients(value, function):
            args, kwargs = map_tensors(value, lambda t: t.detach().requires_grad_(t.is_floating_point()))
            outputs = [t for t in tensors_of(function(*args, **kwargs)) if t.is_floating_point()]
            generator = torch.Generator().manual_seed(1)
            ups = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in outputs]
            wanted = [t for t in tensors_of((args, kwargs)) if t.requires_grad]
            return torch.autograd.grad(outputs, wanted, ups, allow_unused=True)

        expected = gradients(to_double(host), spec.reference)
        with pk.backend("cuda"):
            got = gradients(on_device(host, "cuda"), spec.function)
        bound = HALF.get(dtype, 1e-5) * 3
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            assert (g is None) == (e is None)
            if g is not None:
                assert g.dtype == dtype or dtype != torch.float32
                assert relative_l2(g.cpu(), e) <= bound, f"{sample.name}: gradient {i}"


@pytest.mark.parametrize("spec", OPS)
def test_compiles_into_one_graph(spec):
    call, _ = call_of(spec)
    dtype = spec.op.takes("cuda")[-1]
    args, kwargs = on_device(inputs_of(sample_of(spec), dtype), "cuda")
    expected = call()
    torch._dynamo.reset()
    with torch.no_grad(), pk.backend("cuda"):
        got = tensors_of(torch.compile(spec.function, fullgraph=True)(*args, **kwargs))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == e.dtype
        assert relative_l2(g, e) <= (spec.tolerance(dtype, sample_of(spec)) if e.is_floating_point() else 0)


def test_channels_last_and_contiguous_keep_their_format():
    w = torch.randn(24, 16, 3, 3, device="cuda", dtype=torch.float16)
    x = torch.randn(2, 16, 9, 11, device="cuda", dtype=torch.float16)
    with pk.backend("cuda"):
        plain = pk.ops.conv_bn_act(x, w, padding=1)
        last = pk.ops.conv_bn_act(x.contiguous(memory_format=torch.channels_last), w, padding=1)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert relative_l2(plain, last) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    conv, lstm = pk.nn.ConvBNAct2d(8, 16, 3).cuda().eval(), pk.nn.LSTM(8, 16).cuda().eval()
    with torch.autocast("cuda", dtype):
        for guard in (torch.no_grad(), torch.enable_grad()):
            with guard:
                assert conv(torch.randn(2, 8, 6, 6, device="cuda")).dtype == dtype
                assert lstm(torch.randn(3, 2, 8, device="cuda"))[0].dtype == dtype


def test_packed_sequences():
    lstm = pk.nn.LSTM(10, 24, 2, bidirectional=True).cuda().eval()
    twin = torch.nn.LSTM(10, 24, 2, bidirectional=True).double()
    twin.load_state_dict({k: v.cpu().double() for k, v in lstm.state_dict().items()})
    x = pack_padded_sequence(torch.randn(7, 3, 10), torch.tensor([4, 7, 1]), enforce_sorted=False)
    with torch.no_grad():
        got = lstm(x.to("cuda"))
        expected = twin(x.to(torch.float64))
    bound = SPECS["lstm"].bound(torch.float32, 2 * (48 + 24 + 2))
    assert relative_l2(got[0].data.cpu(), expected[0].data) <= bound
    assert relative_l2(got[1][0].cpu(), expected[1][0]) <= bound


@pytest.mark.parametrize("spec", OPS)
def test_a_tensor_on_another_device_is_named(spec):
    args, kwargs = inputs_of(sample_of(spec), spec.op.takes("cuda")[-1])
    there = on_device((args, kwargs), "cuda")
    if len(tensors_of(args)) == 1:
        pytest.skip("it has one tensor")
    mixed = (there[0][0], *args[1:])
    with pytest.raises(ValueError, match=r"device"):
        spec.function(*mixed, **kwargs)


@pytest.mark.parametrize("spec", OPS)
def test_explicit_cuda_refuses_cpu_tensors_and_float64(spec):
    args, kwargs = inputs_of(sample_of(spec), spec.op.takes("cuda")[-1])
    with pytest.raises(RuntimeError, match="its tensors are on 'cpu'"), pk.backend("cuda"):
        spec.function(*args, **kwargs)
    wide = on_device(to_double((args, kwargs)), "cuda")
    if any(t.dtype == torch.float64 for t in tensors_of(wide)):
        with pytest.raises(RuntimeError, match="its kernels take"), pk.backend("cuda"):
            spec.function(*wide[0], **wide[1])


def test_the_binding_names_the_wrong_device():
    x, w = torch.randn(1, 8, 5, 5, device="cuda"), torch.randn(8, 8, 3, 3)
    with pytest.raises(
        RuntimeError, match=r"conv_bn_act: weight: expected a tensor on cuda:0, as x is, got one on the CPU"
    ):
        torch.ops.pykernels.conv_bn_act(x, w, None, None, None, [1, 1], [0, 0, 0, 0], [1, 1], 1, 0, 0.0)
