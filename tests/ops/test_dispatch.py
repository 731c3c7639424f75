"""Choosing a backend: explicit means explicit, auto falls back and says so once."""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import logging
import threading

import pytest
import torch

import pykernels as pk
from pykernels import _native
from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT

HINT = "`python -m pykernels info` shows what runs where"


@pytest.fixture
def call():
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    return lambda **kwargs: pk.ops.conv_bn_act(x, w, **kwargs)


def test_an_unknown_name():
    with (
        pytest.raises(ValueError, match=r"pykernels.backend: name: expected one of auto, cpu, cuda, .*; got 'gpu'"),
        pk.backend("gpu"),
    ):
        pass


def test_an_unknown_name_per_call(call):
    with pytest.raises(ValueError, match="got 'gpu'"):
        call(backend="gpu")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_is_not_built_raises_and_says_why(call, name, monkeypatch):
    monkeypatch.setitem(CONV_BN_ACT.backends, name, "it has no kernels")
    with pytest.raises(RuntimeError, match=rf"conv_bn_act: backend='{name}' cannot run: it has no kernels"):
        call(backend=name)


@pytest.fixture
def product():
    a, b = torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
    return lambda **kwargs: pk.ops.int8_matmul(a, b, **kwargs)


def test_without_triton_it_is_named(product, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )
    monkeypatch.setattr(_dispatch, "_import_triton", _dispatch._import_triton.__wrapped__)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    why = r"int8_matmul: backend='triton' cannot run: Triton is not installed; `pip install triton`"
    with pytest.raises(RuntimeError, match=why):
        product(backend="triton")
    assert product().tolist() == [[3] * 4] * 2


def test_a_broken_triton_is_told(product, monkeypatch):
    def fails(name):
        raise ImportError("libtriton.so is cut short")

    pytest.importorskip("triton")
    monkeypatch.setattr(importlib, "import_module", fails)
    monkeypatch.setattr(_dispatch, "_import_triton", _dispatch._import_triton.__wrapped__)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"Triton cannot be imported \(ImportError: libtriton.so is cut short\)"):
        product(backend="triton")


def test_on_a_cpu_triton_has_to_be_asked_to_interpret(product, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: on 'cpu' Triton's kernels run only under"):
        product(backend="triton")


@pytest.mark.parametrize(("triton", "expected"), [(None, "triton"), ("Triton is not installed", "reference")])
def test_on_a_gpu_triton_stands_in_where_cuda_is_not_built(triton, expected, monkeypatch, caplog):
    from pykernels.ops.int8_matmul.op import INT8_MATMUL

    monkeypatch.setattr(_native, "why_not", lambda backend, device: "the CUDA kernels are not built")
    monkeypatch.setattr(_dispatch, "_import_triton", lambda: triton)
    monkeypatch.setattr(_dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, logger="pykernels"):
        found = {_dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32) for _ in range(2)}
    assert found == {expected}
    instead = {"triton": "Triton", "reference": "the reference, plain PyTorch"}[expected]
    said = f"pykernels.int8_matmul: the CUDA kernels are not built; using {instead} (logged once; {HINT})"
    assert [r.getMessage() for r in caplog.records] == [said]
    with pytest.raises(RuntimeError, match="backend='cuda' cannot run: the CUDA kernels are not built"):
        _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32, "cuda")


def test_a_gpu_that_is_too_old_for_triton_gets_the_reference(monkeypatch, caplog):
    from pykernels.ops.int8_matmul.op import INT8_MATMUL

    monkeypatch.setattr(_native, "why_not", lambda backend, device: "they need sm_80 (Ampere) or later")
    monkeypatch.setattr(_dispatch, "_import_triton", lambda: None)
    monkeypatch.setattr(_dispatch, "_told", set())
    monkeypatch.setattr(_dispatch, "_capability", lambda index: (7, 5))
    with caplog.at_level(logging.WARNING, logger="pykernels"):
        assert _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32) == "reference"
    assert ["using the reference" in r.getMessage() for r in caplog.records] == [True]
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: Triton's kernels need sm_80 .* is sm_75"):
        _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32, "triton")
    monkeypatch.setattr(_dispatch, "_capability", lambda index: (8, 6))
    assert _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32) == "triton"


def test_cuda_is_the_default_where_it_is_built(monkeypatch):
    from pykernels.ops.int8_matmul.op import INT8_MATMUL

    monkeypatch.setattr(_native, "why_not", lambda backend, device: None)
    monkeypatch.setattr(_dispatch, "_import_triton", lambda: None)
    assert _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32) == "cuda"
    assert _dispatch.choose(INT8_MATMUL, torch.device("cuda"), torch.float32, "triton") == "triton"


def test_blocks_nest_and_end(call):
    with pk.backend("cuda"):
        with pk.backend("reference"):
            call()
        with pytest.raises(RuntimeError):
            call()
    call()


def test_a_call_overrides_its_block(call):
    with pk.backend("cuda"):
        assert call(backend="reference").shape == (1, 4, 4, 4)


def test_an_explicit_backend_refuses_a_dtype_it_has_not():
    x, w = torch.randn(1, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"its kernels take torch.float32, torch.bfloat16, not torch.float64"):
        pk.ops.conv_bn_act(x, w, backend="cpu")


def test_an_explicit_backend_refuses_another_device():
    x, w = torch.randn(1, 3, 6, 6, device="meta"), torch.randn(4, 3, 3, 3, device="meta")
    with pytest.raises(RuntimeError, match="its tensors are on 'meta'"):
        pk.ops.conv_bn_act(x, w, backend="cpu")


def test_auto_falls_back_and_tells_it_once(call, monkeypatch, caplog):
    monkeypatch.setattr(_native, "error", "the native library is not built")
    monkeypatch.setattr(_dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, logger="pykernels"):
        call(), call()
    assert [r.getMessage() for r in caplog.records] == [
        "pykernels.conv_bn_act: the native library is not built; using the reference, plain PyTorch "
        f"(logged once; {HINT})"
    ]


def _specs_calls():
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    yield "conv_bn_act", lambda x, **k: pk.ops.conv_bn_act(x, w, **k), x
    h, weights = torch.zeros(1, 2, 4), [torch.randn(16, 3), torch.randn(16, 4)]
    yield "lstm", lambda x, **k: pk.ops.lstm(x, (h, h), weights, **k)[0], torch.randn(5, 2, 3)
    yield "lstm_cell", lambda x, **k: pk.ops.lstm_cell(x, (h[0], h[0]), *weights, **k)[0], torch.randn(2, 3)
    a, b = torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
    scaled = {"b_scale": torch.ones(4), "out_dtype": torch.float32}
    yield "int8_matmul_scaled", lambda x, **k: pk.ops.int8_matmul(a, b, a_scale=x, **scaled, **k), torch.rand(2)


TRANSFORMED = pytest.mark.parametrize(("op", "f", "x"), [pytest.param(*c, id=c[0]) for c in _specs_calls()])


def _grad(f, x):
    return torch.func.grad(lambda x: f(x).sum())(x)


def _vmap(f, x):
    return torch.vmap(f)(x[None])


def _forward_mode(f, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, x))).tangent


@TRANSFORMED
@pytest.mark.parametrize("transform", [_grad, _vmap, _forward_mode])
def test_transforms_take_the_reference_in_auto_and_refuse_an_explicit_backend(transform, op, f, x):
    why = rf"pykernels.{op}: backend='cpu' cannot run: torch.func's transforms and forward-mode differentiation"
    with pytest.raises(RuntimeError, match=why):
        transform(functools.partial(f, backend="cpu"), x)
    with pk.backend("cpu"), pytest.raises(RuntimeError, match=why):
        transform(f, x)
    with pytest.raises(ValueError, match="got 'gpu'"):
        transform(functools.partial(f, backend="gpu"), x)
    assert torch.equal(transform(f, x), transform(functools.partial(f, backend="reference"), x))


def test_a_compiled_function_keeps_the_backend_it_was_traced_with(call):
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    with pk.backend("reference"):
        expected = compiled()
    with pk.backend("cuda"):
        assert torch.equal(compiled(), expected)
        with pytest.raises(RuntimeError, match="cannot run"):
            call()


def test_a_block_is_its_own_threads():
    found = []
    with pk.backend("reference"):
        plain = threading.Thread(target=lambda: found.append(_dispatch.asked_backend()))
        copied = threading.Thread(
            target=contextvars.copy_context().run, args=(lambda: found.append(_dispatch.asked_backend()),)
        )
        for thread in (plain, copied):
            thread.start()
            thread.join()
    assert found == ["auto", "reference"]
