"""A call that is known by heart is made without Python's look-ups, and only where everything is as it was."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

import pykernels as pk
from pykernels import _native
from pykernels.optimize._recall import CONTEXT, MISS, MODES, MOST, KnownCall
from pykernels.optimize._signatures import signature
from pykernels.optimize._stub import Stub

pytestmark = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))

recall = _native.guard().recall if _native.error is None else None
Pair = namedtuple("Pair", "a b")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def stub_of(fast: nn.Module) -> Stub:
    return vars(fast)["_compiled_call_impl"]


def entry_for(args: tuple, kwargs: dict | None = None, **changed) -> KnownCall:
    """One that answers with the tensors that it is given."""
    tensors: list[torch.Tensor] = []
    told = signature(args, tensors), signature(kwargs or {}, tensors)
    nothing = (), (), (), bytearray()
    entry = KnownCall(tuple(m() for m in MODES), *told, nothing, None, (), lambda c, *given: given, (), "it", "bound")
    return entry._replace(**changed)


def answer(entry: KnownCall, args: tuple, kwargs: dict | None = None):
    return recall(CONTEXT, (entry,), [None], args, kwargs or {})


def test_a_known_call_asks_python_nothing(monkeypatch):
    fast, x = pk.optimize(mlp()), torch.randn(3, 8)
    with torch.no_grad():
        fast(x)
        expected = fast(x)
        monkeypatch.setattr(Stub, "_call", lambda *_: pytest.fail("it looked itself"))
        torch.testing.assert_close(fast(x.clone()), expected, rtol=0, atol=0)


def test_sizes_in_turn_are_all_known(monkeypatch):
    fast = pk.optimize(mlp())
    xs = [torch.randn(n, 8) for n in range(1, MOST + 1)]
    with torch.no_grad():
        for _ in range(3):
            expected = [fast(x) for x in xs]
        monkeypatch.setattr(Stub, "_call", lambda *_: pytest.fail("it looked itself"))
        for x, y in zip(xs, expected, strict=True):
            torch.testing.assert_close(fast(x), y, rtol=0, atol=0)


def test_no_more_are_known_than_it_says():
    fast = pk.optimize(mlp())
    with torch.no_grad():
        for n in range(1, 3 * MOST):
            for _ in range(3):
                fast(torch.randn(n, 8))
    assert len(stub_of(fast).known) == MOST


def test_the_report_tells_of_the_program_that_ran_last():
    fast, one, three = pk.optimize(nn.Conv2d(4, 4, 3).eval()), torch.randn(1, 4, 8, 8), torch.randn(4, 8, 8)
    with torch.no_grad():
        for x in (one, three, one, three, one):
            fast(x)
        first = stub_of(fast).last
        fast(three)
    assert len(stub_of(fast).known) == 2
    assert stub_of(fast).last is not first
    assert stub_of(fast).last in [entry.program for entry in stub_of(fast).known]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.mul_(2),
        lambda m: m[0].bias.add_(1),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight * 2)),
        lambda m: m.__setitem__(1, nn.Tanh()),
        lambda m: m[2].register_forward_hook(lambda *a: a[2] * 2),
        lambda m: setattr(m[2], "forward", lambda x: x[:, :4]),
    ],
    ids=["in place", "bias", "data", "parameter", "child", "hook", "forward"],
)
def test_what_changes_counts_at_the_next_call(change):
    fast, x = pk.optimize(mlp()), torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(3):
            before = fast(x)
        change(fast)
        after = fast(x)
        torch.testing.assert_close(after, fast._call_impl(x))
        assert not torch.allclose(before, after)
        for _ in range(3):
            torch.testing.assert_close(fast(x), after)


def test_gradients_that_are_wanted_since():
    fast, x = pk.optimize(mlp()), torch.randn(3, 8)
    for _ in range(3):
        assert not fast(x).requires_grad
    assert stub_of(fast).known
    fast[0].weight.requires_grad_(True)
    assert fast(x).requires_grad
    with torch.no_grad():
        assert not fast(x).requires_grad
    fast[0].weight.requires_grad_(False)
    assert fast(x.clone().requires_grad_()).requires_grad


def test_the_model_itself_answers_where_a_program_fails():
    model, x = mlp(), torch.randn(3, 8)
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(3):
            fast(x)
        entry = stub_of(fast).known[0]
        stub_of(fast).known = (entry._replace(run=lambda *_: 1 / 0),)
        torch.testing.assert_close(fast(x), model(x))


def test_a_model_goes_with_its_last_reference():
    fast, x = pk.optimize(mlp()), torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(3):
            fast(x)
    assert stub_of(fast).known
    gone = weakref.ref(fast)
    del fast
    gc.collect()
    assert gone() is None


def test_a_converted_model_casts_first():
    fast, x = pk.optimize(mlp(), dtype=torch.bfloat16), torch.randn(3, 8)
    with torch.no_grad():
        for y in (x, x, x.bfloat16(), x.bfloat16(), x):
            assert fast(y).dtype is torch.float32


t, u = torch.randn(2, 3), torch.randn(2, 3)
LIKE = [
    ((t,), (u,)),
    ((t, u), (u, t)),
    ((t, t), (u, u)),
    (((t, [u, 1]),), ((u, [t, 1]),)),
    ((Pair(t, 2.5),), (Pair(u, 2.5),)),
    (({"a": t, "b": None},), ({"a": u, "b": None},)),
    ((torch.Size([1, 2]), torch.float32, "x", True), (torch.Size([1, 2]), torch.float32, "x", True)),
    ((), ()),
]
UNLIKE = [
    ((t,), (u[:1],)),
    ((t,), (u.t().contiguous().t(),)),
    ((t,), (u.double(),)),
    ((t,), (u.clone().requires_grad_(),)),
    ((t,), (nn.Parameter(u, requires_grad=False),)),
    ((t,), (u.to_sparse(),)),
    ((t,), (u.to("meta"),)),
    ((t,), (torch._neg_view(u),)),
    ((t,), (None,)),
    ((t,), (u, u)),
    ((t,), ()),
    ((t, u), (u, u)),
    ((t, t), (t, u)),
    (((t, u),), ([t, u],)),
    (((t, u),), ((t,),)),
    ((Pair(t, u),), ((t, u),)),
    (((t, u),), (Pair(t, u),)),
    (([t],), ([t, t],)),
    (({"a": t},), ({"b": t},)),
    (({"a": t},), ({"a": t, "b": t},)),
    (({"a": t, "b": 1},), ({"b": 1, "a": t},)),
    (({"a": t},), (OrderedDict(a=t),)),
    ((1,), (True,)),
    ((1,), (1.0,)),
    ((1.5,), (float("nan"),)),
    ((0.0,), (-0.0,)),
    (("x",), ("y",)),
    ((torch.Size([1, 2]),), ((1, 2),)),
    (((1, 2),), (torch.Size([1, 2]),)),
    ((torch.Size([1, 2]),), (torch.Size([1, 3]),)),
    ((torch.float32,), (torch.float64,)),
]


@pytest.mark.parametrize(("known", "given"), LIKE)
def test_arguments_that_are_alike(known, given):
    result = answer(entry_for(known), given)
    assert result is not MISS
    expected: list[torch.Tensor] = []
    signature(given, expected)
    assert all(a is b for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize(("known", "given"), UNLIKE)
def test_arguments_that_are_not(known, given):
    assert answer(entry_for(known), given) is MISS
    assert answer(entry_for((), {"a": known}), (), {"a": given}) is MISS


def test_a_tensor_with_attributes_is_not_a_plain_one():
    given = torch.randn(2, 3)
    assert answer(entry_for((t,)), (given,)) is not MISS
    given.mine = 1
    assert answer(entry_for((t,)), (given,)) is MISS


def test_keywords_are_told_from_positions():
    assert answer(entry_for((t,), {"a": u}), (u,), {"a": t}) is not MISS
    assert answer(entry_for((t,), {"a": u}), (u, t)) is MISS
    assert answer(entry_for((t,), {"a": u}), (u,), {"b": t}) is MISS


def test_modes_that_are_on():
    with torch.no_grad():
        entry = entry_for((t,))
        assert answer(entry, (u,)) is not MISS
        for mode in (torch.enable_grad(), torch.inference_mode(), pk.backend("reference")):
            with mode:
                assert answer(entry, (u,)) is MISS
        with torch.autocast("cpu"):
            assert answer(entry, (u,)) is MISS
        with forward_ad.dual_level():
            assert answer(entry, (u,)) is MISS
        with torch.overrides.TorchFunctionMode(), torch.overrides.TorchFunctionMode():
            assert answer(entry, (u,)) is MISS
        assert torch.vmap(lambda x: torch.tensor(answer(entry, (u,)) is MISS) & (x == x))(torch.ones(2)).all()
        torch.set_default_dtype(torch.float64)
        try:
            assert answer(entry, (u,)) is MISS
        finally:
            torch.set_default_dtype(torch.float32)
        assert answer(entry, (u,)) is not MISS


def test_what_is_watched():
    live, then = {"a": t}, ("a", t)
    entry = entry_for((t,), watched=((live,), (then,), (), bytearray(8)))
    assert answer(entry, (u,)) is not MISS
    live["a"] = u
    assert answer(entry, (u,)) is MISS


def test_what_the_model_raises_is_raised_in_its_words():
    class Picky(nn.Module):
        def forward(self, x, weight):
            return F.linear(x, weight)

    fast, weight = pk.optimize(Picky().eval()), torch.randn(4, 8)
    with torch.no_grad():
        for _ in range(3):
            fast(torch.randn(3, 8), weight)
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            fast(torch.randn(3, 7), weight)


def test_an_interrupt_is_no_miss():
    def interrupted():
        raise KeyboardInterrupt

    entry = entry_for((t,))
    for context in (((interrupted, None), MODES), (CONTEXT[0], (interrupted, *MODES[1:]))):
        with pytest.raises(KeyboardInterrupt):
            recall(context, (entry,), [None], (u,), {})
    assert recall(((lambda: int("x"), None), MODES), (entry,), [None], (u,), {}) is MISS


@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_what_the_handler_of_a_signal_raises_arrives(error):
    def interrupted(*_):
        raise error

    fast, x = pk.optimize(mlp()), torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(3):
            fast(x)
        stub = stub_of(fast)
        entry = stub.known[0]
        stub.known = (entry._replace(run=interrupted),)
        with pytest.raises(error):
            fast(x)
        bound = entry.program._bound
        bound.by_shape = dict.fromkeys(bound.by_shape, (interrupted, ()))
        stub.known = ()
        with pytest.raises(error):
            fast(x)


def test_minus_nought_is_another_argument():
    class Quotient(nn.Module):
        def forward(self, x, divisor):
            return x / divisor

    model, x = Quotient().eval(), torch.ones(3)
    fast = pk.optimize(model)
    with torch.no_grad():
        for divisor in (0.0, 0.0, 0.0, -0.0, 0.0, -0.0):
            assert torch.equal(fast(x, divisor), model(x, divisor))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, 2, 3, 4, 5),
        (CONTEXT, [], [None], (), {}),
        (CONTEXT, (), [], (), {}),
        (CONTEXT, (1,), [None], (), {}),
        (CONTEXT, ((1, 2),), [None], (), {}),
        (CONTEXT, (entry_for(())._replace(sources=(1,)),), [None], (), {}),
    ],
)
def test_other_arguments_are_an_error_and_no_crash(arguments):
    with pytest.raises(TypeError, match="recall: "):
        recall(*arguments)
