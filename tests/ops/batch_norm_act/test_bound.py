"""The CPU's kernel: batch_norm_act_bind, batch_norm_act_bound and batch_norm_act_bound_out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pykernels import _native
from pykernels.ops import ACTIVATIONS
from pykernels.ops._activation import apply_activation
from pykernels.ops._spec import lay_out
from tests.harness import normal, relative_l2

pytestmark = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))
OPS = torch.ops.pykernels
NONE, RELU = ACTIVATIONS.index("none"), ACTIVATIONS.index("relu")
LAYOUTS = ("contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed")


def bind(channels, activation=RELU, slope=0.01, parameters=None):
    scale, shift = normal(channels, seed=3), normal(channels, seed=4)
    return OPS.batch_norm_act_bind(channels, scale, shift, parameters, activation, slope), scale, shift


def expected_of(x, scale, shift, residual=None, activation="relu", slope=0.01):
    z = x.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    return apply_activation(z if residual is None else z + residual.double(), activation, slope)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype):
    xs = [lay_out(normal(2, k, 5, 6, seed=k).to(dtype), layout) for k in (3, 16, 1)]
    bound, scale, shift = bind(20)
    residual = lay_out(normal(2, 20, 5, 6, seed=9).to(dtype), layout)
    y = OPS.batch_norm_act_bound(xs, bound, residual)
    expected = expected_of(torch.cat(xs, 1), scale, shift, residual)
    assert relative_l2(y, expected) < (3e-7 if dtype is torch.float32 else 4e-3)
    assert y.stride() == F.batch_norm(torch.cat(xs, 1), scale.to(dtype), scale.abs().to(dtype)).stride()
    out = lay_out(torch.zeros(2, 20, 5, 6, dtype=dtype), layout)
    OPS.batch_norm_act_bound_out(xs, bound, residual, out)
    assert torch.equal(out, y)
    OPS.batch_norm_act_bound_out([residual], bound, None, residual)
    assert relative_l2(residual, expected_of(lay_out(normal(2, 20, 5, 6, seed=9).to(dtype), layout), scale, shift)) < (
        3e-7 if dtype is torch.float32 else 4e-3
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x = normal(2, 20, 5, 6, seed=1)
    bound, scale, shift = bind(20, ACTIVATIONS.index(activation), 0.2)
    for t in (x, x.to(memory_format=torch.channels_last)):
        y = OPS.batch_norm_act_bound([t], bound, None)
        assert relative_l2(y, expected_of(x, scale, shift, None, activation, 0.2)) < 4e-7


@pytest.mark.parametrize("shape", [(4, 7), (3, 7, 9), (2, 7, 3, 4), (0, 7, 3, 3), (2, 7, 0, 3), (1, 7, 1, 1)])
def test_shapes(shape):
    x = normal(*shape, seed=1)
    y = OPS.batch_norm_act_bound([x], OPS.batch_norm_act_bind(7, None, None, None, NONE, 0.0), None)
    assert torch.equal(x, y)
    assert y.stride() == F.batch_norm(x, torch.zeros(7), torch.ones(7)).stride()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    before = torch.get_num_threads()
    x = normal(2, 40, 60, 33, seed=1).to(memory_format=torch.channels_last)
    bound, _, _ = bind(40)
    expected = OPS.batch_norm_act_bound([x], bound, None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(OPS.batch_norm_act_bound([x], bound, None), expected)
    finally:
        torch.set_num_threads(before)


def test_opcheck():
    xs = [normal(2, k, 5, 6, seed=k) for k in (3, 4)]
    parameters = normal(1, 7, seed=5)
    code = ACTIVATIONS.index("leaky_relu")
    bound, scale, shift = bind(7, code, parameters=parameters)
    torch.library.opcheck(OPS.batch_norm_act_bind.default, (7, scale, shift, parameters, code, 0.0))
    torch.library.opcheck(OPS.batch_norm_act_bound.default, (xs, bound, None))
    torch.library.opcheck(OPS.batch_norm_act_bound_out.default, (xs, bound, None, torch.zeros(2, 7, 5, 6)))


X = torch.zeros(2, 7, 3, 3)
BAD = [
    (lambda b: ([], b, None), "x: expected at least one tensor"),
    (lambda b: ([X, X[:, :, 1:]], b, None), "x: expected tensors that differ only in their channels"),
    (lambda b: ([X[:, 1:]], b, None), "x: expected 7 channels, got 6"),
    (lambda b: ([X.double()], b, None), "x: expected"),
    (lambda b: ([X[0, 0, 0]], b, None), "x: expected"),
    (lambda b: ([X], b, X[:1]), "residual: expected"),
    (lambda b: ([X], b, X.bfloat16()), "residual: expected"),
    (lambda b: ([X], b[:-4], None), "bound_norm: expected"),
    (lambda b: ([X], torch.zeros_like(b), None), "bound_norm: expected what batch_norm_act_bind of this version"),
    (lambda b: ([X], b[:8], None), "bound_norm: expected"),
    (lambda b: ([X], b.float(), None), "bound_norm: expected"),
]


@pytest.mark.parametrize("i", range(len(BAD)))
def test_refusals(i):
    arguments, message = BAD[i]
    with pytest.raises(RuntimeError, match=message):
        OPS.batch_norm_act_bound(*arguments(bind(7)[0]))


def test_refusals_of_out_and_of_what_is_bound():
    bound, scale, shift = bind(7)
    with pytest.raises(RuntimeError, match="out: expected"):
        OPS.batch_norm_act_bound_out([X], bound, None, X[:1].clone())
    with pytest.raises(RuntimeError, match="out: expected elements that do not overlap"):
        OPS.batch_norm_act_bound_out([X], bound, None, torch.zeros(1, 7, 3, 3).expand(2, -1, -1, -1))
    with pytest.raises(RuntimeError, match="scale: expected"):
        OPS.batch_norm_act_bind(7, scale[1:], shift, None, RELU, 0.0)
    with pytest.raises(RuntimeError, match="parameters: expected none"):
        OPS.batch_norm_act_bind(7, scale, shift, scale[None], RELU, 0.0)
    with pytest.raises(RuntimeError, match="activation"):
        OPS.batch_norm_act_bind(7, scale, shift, None, 99, 0.0)
