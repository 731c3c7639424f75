"""torch.utils.flop_counter counts of each op what it counts of the plain PyTorch that the op stands for."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import pykernels as pk
from pykernels.ops._flops import FORMULAS
from pykernels.ops._spec import all_specs
from tests.harness import inputs_of, map_tensors, native, normal

pytestmark = native
OPS = torch.ops.pykernels


def count(function, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


#: Torch counts a transposed convolution's products with the pixels that its padding cuts off; ours does not make them.
OTHERWISE = ("int8", "conv_transpose")
CASES = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.name}")
    for spec in all_specs()
    for sample in spec.samples
    if not sample.bench and not spec.name.startswith(OTHERWISE) and spec.op.backends["cpu"] is None
]


@pytest.mark.parametrize(("spec", "sample"), CASES)
def test_forward_counts_as_the_reference(spec, sample):
    args, kwargs = inputs_of(sample, torch.float32)
    with pk.backend("reference"):
        expected = count(spec.function, *args, **kwargs)
    with pk.backend("cpu"):
        assert count(spec.function, *args, **kwargs) == expected


@pytest.mark.parametrize("name", ["lstm", "lstm_cell"])
def test_backward_counts_as_the_reference(name):
    spec = next(s for s in all_specs() if s.name == name)
    args, kwargs = inputs_of(spec.samples[0], torch.float32)
    args = map_tensors(args, lambda t: t.requires_grad_() if t.is_floating_point() else t)

    def train():
        first, *_ = spec.function(*args, **kwargs)
        first.sum().backward()

    with pk.backend("reference"):
        expected = count(train)
    with pk.backend("cpu"):
        assert count(train) == expected


def test_packed_weights_count_as_plain_ones():
    x, weight = normal(2, 4, 9, 8, seed=0), normal(6, 2, 3, 3, seed=1)
    geometry = ((2, 1), (1, 1, 1, 1), (1, 1), 2)
    plain = count(torch.nn.functional.conv2d, x, weight, None, (2, 1), 1, 1, 2)
    packed = OPS.conv_pack(weight, 2, 0)
    bound = OPS.conv_bind(packed, weight.shape, None, None, *geometry, 0, 0.0)
    assert count(OPS.conv_bn_act_bound, x, bound, None) == plain
    assert count(OPS.conv_bn_act_packed, x, packed, weight.shape, None, None, None, *geometry, 0, 0.0) == plain

    x, h = normal(5, 3, 6, seed=0), torch.zeros(4, 3, 8)
    lstm = torch.nn.LSTM(6, 8, 2, bidirectional=True)
    packed = OPS.lstm_pack(lstm._flat_weights, 2, True, True)
    plain = count(OPS.lstm, x, h, h, lstm._flat_weights, None, 2, True, False, True, False)
    assert plain == 2 * 15 * sum(w.numel() for w in lstm._flat_weights if w.dim() == 2)
    assert count(OPS.lstm_packed, x, h, h, packed, 6, 8, None, 2, True, False) == plain
    cell = torch.nn.LSTMCell(6, 8)
    packed = OPS.lstm_pack(list(cell.parameters()), 1, False, True)
    assert count(OPS.lstm_cell_packed, x[0], h[0], h[0], packed, 6, 8) == count(cell, x[0], (h[0], h[0]))


def test_integer_products_count_as_floating_ones():
    a, b = torch.ones(3, 5, dtype=torch.int8), torch.ones(5, 7, dtype=torch.int8)
    plain = count(torch.mm, a.float(), b.float())
    assert count(pk.ops.int8_matmul, a, b) == plain
    packed = OPS.int8_pack(b)
    assert count(OPS.int8_matmul_packed, a, packed, 7, None, None, None, None, 0, torch.int32) == plain
    scale = torch.ones(7)
    assert count(OPS.int8_linear, a.float(), b, scale, None, 0) == plain
    assert count(OPS.int8_linear_packed, a.float(), packed, 7, scale, None, 0) == plain
    x, w = torch.ones(2, 4, 6, 6, dtype=torch.int8), torch.ones(8, 2, 3, 3, dtype=torch.int8)
    plain = count(torch.nn.functional.conv2d, x.float(), w.float(), groups=2)
    assert count(pk.ops.int8_conv2d, x, w, groups=2) == plain
    conv8 = pk.nn.Int8Conv2d(4, 8, 3, groups=2, x_scale=0.1)
    conv8(x)  # packs
    assert count(conv8, x) == plain


def test_every_op_has_a_formula():
    names = {s.name.removeprefix("pykernels::") for s in torch._C._jit_get_all_schemas() if "pykernels::" in s.name}
    ours = {n for n in names if not n.endswith("_triton")}
    notes = {"note_tensors", "are_as_noted", "kept_weight_bytes", "forget_kept_weights", "on_huge_pages"}
    assert ours - notes == set(FORMULAS)  # the notes compute nothing
    assert all(getattr(OPS, name) in flop_registry for name in FORMULAS)
