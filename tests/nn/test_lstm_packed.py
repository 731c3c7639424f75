"""The packed weights of `pk.nn.LSTM` and `LSTMCell`: made once, and again whenever they would be stale."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_SPEC
from tests.harness import eight_threads, forced_isa, host_isas, native, relative_l2, tensors_of
from tests.ops.lstm.checks import assert_close, assert_equal

pytestmark = native

Module = pk.nn.LSTM | pk.nn.LSTMCell

MAKERS = [
    pytest.param(lambda **k: pk.nn.LSTM(6, 9, num_layers=2, bidirectional=True, **k), id="lstm"),
    pytest.param(lambda **k: pk.nn.LSTMCell(6, 9, **k), id="cell"),
]
make_any = pytest.mark.parametrize("make", MAKERS)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def torchs(module: Module) -> torch.nn.Module:
    """torch's module with the same weights, in float64."""
    if isinstance(module, pk.nn.LSTM):
        other: torch.nn.Module = torch.nn.LSTM(6, 9, num_layers=2, bidirectional=True, bias=module.bias)
    else:
        other = torch.nn.LSTMCell(6, 9, bias=module.bias)
    other.load_state_dict(module.state_dict())
    return other.double()


def allowed(dtype: torch.dtype) -> float:
    """The spec's bound for two layers in both directions, 6 wide and then 18, of 9 units."""
    return LSTM_SPEC.bound(dtype, 2 * (18 + 9 + 2))


def assert_current(module: Module, x: torch.Tensor = X) -> None:
    """Without gradients the module computes from the weights as they are now, and on packed ones."""
    with torch.no_grad():
        got, expected = tensors_of(module(x)), tensors_of(torchs(module)(x.double()))
    assert module._pack is not None
    assert_close(got, expected, allowed(x.dtype), x.dtype)


def first_weight(module: Module) -> torch.nn.Parameter:
    return next(module.parameters())


def step(module: Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    sum(t.square().sum() for t in tensors_of(module(X))).backward()
    optimizer.step()


def write_in_place(module: Module) -> None:
    with torch.no_grad():
        list(module.parameters())[-1].mul_(3)


def replace(module: Module) -> None:
    name, old = next(iter(module.named_parameters()))
    setattr(module, name, torch.nn.Parameter(old.detach() * 3))


def swap_memory(module: Module) -> None:
    first_weight(module).data = first_weight(module).detach() * 3


def load(module: Module) -> None:
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()})


def load_assigning(module: Module) -> None:
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)


def there_and_back(module: Module) -> None:
    module.bfloat16()
    module.float()


def reset(module: Module) -> None:
    torch.manual_seed(99)
    module.reset_parameters()


CHANGES: list[Callable[[Any], None]] = [
    step, write_in_place, replace, swap_memory, load, load_assigning, there_and_back, reset
]  # fmt: skip


@make_any
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_remade_after_a_change(make, change, bias):
    module = make(bias=bias).eval()
    assert_current(module)
    before = module._pack
    change(module)
    assert_current(module)
    assert module._pack is not before


@make_any
@pytest.mark.parametrize("training", [True, False])
def test_made_once(make, training):
    module = make().train(training)
    assert_current(module)
    before = module._pack
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            module(X)
            module(torch.randn(3, 6))
    assert module._pack is before


@make_any
def test_bfloat16_packs_bfloat16(make):
    module = make().eval()
    assert_current(module)
    module.bfloat16()
    assert_current(module, X.bfloat16())


@make_any
def test_another_isa_packs_again(make):
    module = make().eval()
    for isa in (*host_isas(), host_isas()[0]):
        with forced_isa(isa):
            assert_current(module)
    assert_current(module)


@make_any
def test_with_gradients_wanted_nothing_is_packed(make):
    module = make().eval()
    assert all(t.requires_grad for t in tensors_of(module(X)))
    assert module._pack is None
    module.requires_grad_(False)
    assert not tensors_of(module(X))[0].requires_grad
    assert module._pack is not None
    assert tensors_of(module(X.clone().requires_grad_()))[0].requires_grad


def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Packed and plain weights are summed in another order: each may be off by the bound for the longest sum, 3 H."""
    return relative_l2(a, b) <= 2 * LSTM_SPEC.bound(torch.float32, 3 * 9)


@make_any
def test_packed_and_plain_agree(make):
    module = make().eval()
    for x in (X, X[0] if isinstance(module, pk.nn.LSTMCell) else X[:, None]):
        with torch.no_grad():
            packed = tensors_of(module(x))
        for a, b in zip(packed, tensors_of(module(x)), strict=True):
            assert agree(a, b)


@make_any
def test_training_and_moving_drop_it(make):
    module = make().eval()
    assert_current(module)
    assert module.train()._pack is None
    assert_current(module)
    assert module.to(torch.bfloat16)._pack is None


@make_any
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_without_it_and_correct(make, copied):
    module = make().eval()
    assert_current(module)
    other = copied(module)
    assert other._pack is None
    with torch.no_grad():
        assert_equal(tensors_of(other(X)), tensors_of(module(X)))
    assert_current(other)
    write_in_place(other)
    assert_current(other)
    assert_current(module)


@make_any
def test_nothing_of_it_is_saved(make):
    module = make().eval()
    assert_current(module)
    assert not list(module.buffers())
    assert set(module.state_dict()) == set(make().state_dict())
    file = io.BytesIO()
    torch.save(module, file)
    assert file.tell() < 60_000
    file.seek(0)
    assert_current(torch.load(file, weights_only=False))


@make_any
def test_repack_after_a_write_that_torch_does_not_count(make):
    module = make().eval()
    assert_current(module)
    first_weight(module).data.mul_(2)
    module.repack()
    assert_current(module)


@make_any
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(make, dtype):
    module = make().eval()
    narrow = copy.deepcopy(module).to(dtype)
    with torch.no_grad():
        expected = tensors_of(narrow(X.to(dtype)))
        with torch.autocast("cpu", dtype=dtype):
            got = tensors_of(module(X))
    assert all(g.dtype == dtype for g in got)
    assert_equal(got, expected)
    assert_current(module)


@make_any
def test_parameters_that_cannot_be_watched_are_not_packed(make):
    module = make().eval()
    name = next(iter(dict(module.named_parameters())))
    torch.nn.utils.parametrize.register_parametrization(module, name, torch.nn.Softmax(dim=1))
    with torch.no_grad():
        module(X)
    assert module._pack is None


@make_any
def test_parameters_made_in_inference_mode_are_packed_and_followed(make):
    with torch.inference_mode():
        born = make().eval()
        assert_current(born)
        pack = born._pack
        assert_current(born)
        assert born._pack is pack
        write_in_place(born)
        assert_current(born)
    assert_current(born)


@make_any
def test_functional_call_uses_its_own_parameters(make):
    module = make().eval()
    assert_current(module)
    doubled = {k: 2 * v.detach() for k, v in module.named_parameters()}
    other = copy.deepcopy(module)
    other.load_state_dict(doubled)
    with torch.no_grad():
        got = torch.func.functional_call(module, doubled, (X,))
        assert_equal(tensors_of(got), tensors_of(other(X)))
    assert_current(module)
    loss = lambda p: tensors_of(torch.func.functional_call(module, p, (X,)))[0].square().sum()  # noqa: E731
    gradients = torch.func.grad(loss)(doubled)
    assert all(g.isfinite().all() for g in gradients.values())


@make_any
def test_backend_blocks_are_obeyed(make):
    module = make().eval()
    with torch.no_grad(), pk.backend("reference"):
        module(X)
    assert module._pack is None
    with torch.no_grad(), pk.backend("cuda"), pytest.raises(RuntimeError, match="backend='cuda' cannot run"):
        module(X)


@make_any
def test_eight_threads_at_once_while_the_weights_change_between_rounds(make):
    module = make().eval()
    for _ in range(4):
        write_in_place(module)
        with torch.no_grad():
            expected = tensors_of(copy.deepcopy(module)(X))

        def work(_: int, expected: list[torch.Tensor] = expected) -> None:
            with torch.no_grad():
                for _ in range(5):
                    assert_equal(tensors_of(module(X)), expected)

        eight_threads(work)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@make_any
def test_compiles_in_one_graph(make, backend):
    torch._dynamo.reset()
    module = make().eval()
    x = X if isinstance(module, pk.nn.LSTMCell) else torch.randn(3, 4, 6)
    with torch.no_grad():
        expected = tensors_of(module(x))
        got = tensors_of(torch.compile(module, fullgraph=True, backend=backend)(x))
    assert all(agree(g, e) for g, e in zip(got, expected, strict=True))
    compiled = torch.compile(module.train(), fullgraph=True, backend=backend)
    sum(t.sum() for t in tensors_of(compiled(x))).backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("strict", [False, True])
@make_any
def test_exports_with_a_dynamic_batch(make, strict):
    module = make().eval()
    with torch.no_grad():
        module(X)
    x, more = (
        (X, torch.randn(9, 6)) if isinstance(module, pk.nn.LSTMCell) else (torch.randn(3, 4, 6), torch.randn(5, 7, 6))
    )
    dimensions = dict.fromkeys(range(x.dim() - 1), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(module, (x,), dynamic_shapes=(dimensions,), strict=strict)
    assert not exported.graph_signature.buffers
    with torch.no_grad():
        for g, e in zip(tensors_of(exported.module()(more)), tensors_of(module(more)), strict=True):
            assert agree(g, e)


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences_on_packed_weights(enforce_sorted):
    module = pk.nn.LSTM(6, 9, num_layers=2, bidirectional=True).eval()
    lengths = [5, 3, 1] if enforce_sorted else [3, 1, 5]
    sequence = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 6) for n in lengths], enforce_sorted=enforce_sorted)
    hx = (torch.randn(4, 3, 9), torch.randn(4, 3, 9))
    for states in (None, hx):
        with torch.no_grad():
            output, (h, c) = module(sequence, states)
            wide = None if states is None else tuple(s.double() for s in states)
            exact, (h_exact, c_exact) = torchs(module)(sequence.double(), wide)
        assert_close((output.data, h, c), (exact.data, h_exact, c_exact), allowed(torch.float32), torch.float32)
    assert module._pack is not None


FORKS = """
import os, signal, torch, pykernels as pk
from pykernels.nn import _packed

torch.set_num_threads(1)
module = pk.nn.LSTMCell(6, 9).eval()
with _packed._live_lock:  # as a thread holds it that is not in the child
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that waits is killed
        with torch.no_grad():
            module(torch.randn(3, 6))
        os._exit(0 if module._pack is not None else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_fork_while_another_thread_packs_leaves_the_child_able_to_pack():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
