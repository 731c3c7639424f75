"""Every op refuses a bad argument in the same words, and by one rule what is a TypeError and what a ValueError."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import pykernels as pk
from pykernels.ops._spec import all_specs
from pykernels.ops.int8_matmul import int8_linear

V, POSITIVE = torch.randn(4), torch.rand(4) + 1
X, IMAGE = torch.randn(2, 4, 8, 8), torch.randint(-9, 9, (2, 4, 8, 8), dtype=torch.int8)
A = torch.ones(4, 4, dtype=torch.int8)
STATE, CELL_STATE, GATES = torch.zeros(1, 2, 4), torch.zeros(2, 4), torch.randn(16, 4)
INT8_GATES = torch.randint(-127, 128, (16, 4), dtype=torch.int8)

#: Op -> the arguments of a call that is right. A name with a number is an element of a sequence.
CALLS = {
    "conv_bn_act": {
        "x": X, "weight": torch.randn(4, 4, 1, 1), "bias": V, "running_mean": V, "running_var": POSITIVE,
        "bn_weight": V, "bn_bias": V, "residual": X,
    },
    "conv_transpose_bn_act": {
        "x": X, "weight": torch.randn(4, 4, 1, 1), "bias": V, "running_mean": V, "running_var": POSITIVE,
        "bn_weight": V, "bn_bias": V, "residual": X,
    },
    "batch_norm_act": {
        "x": X, "running_mean": V, "running_var": POSITIVE, "weight": V, "bias": V, "residual": X,
    },
    "group_norm_act": {"x": X, "weight": V, "bias": V, "residual": X},
    "lstm_cell": {
        "x": torch.randn(2, 4), "h": CELL_STATE, "c": CELL_STATE, "w_ih": GATES, "w_hh": GATES,
        "b_ih": torch.randn(16), "b_hh": torch.randn(16),
    },
    "lstm": {
        "x": torch.randn(3, 4), "h0": STATE, "c0": STATE, "weights[0]": GATES, "weights[1]": GATES,
        "weights[2]": torch.randn(16), "weights[3]": torch.randn(16), "batch_sizes": torch.tensor([2, 1]),
    },
    "int8_lstm_cell": {
        "x": torch.randn(2, 4), "h": CELL_STATE, "c": CELL_STATE, "w_ih": INT8_GATES, "w_hh": INT8_GATES,
        "s_ih": torch.rand(16), "s_hh": torch.rand(16), "b_ih": torch.randn(16), "b_hh": torch.randn(16),
    },
    "int8_lstm": {
        "x": torch.randn(3, 4), "h0": STATE, "c0": STATE, "weights[0]": INT8_GATES, "weights[1]": INT8_GATES,
        "weights[2]": torch.randn(16), "weights[3]": torch.randn(16), "scales[0]": torch.rand(16),
        "scales[1]": torch.rand(16), "batch_sizes": torch.tensor([2, 1]),
    },
    "int8_matmul": {
        "a": A, "b": A, "a_scale": V, "b_scale": V, "a_zero_point": torch.zeros(4, dtype=torch.int32), "bias": V,
    },
    "int8_linear": {"x": torch.randn(4, 4), "weight": A, "weight_scale": V, "bias": V},
    "weight_only_linear": {"x": torch.randn(4, 4), "weight": A, "weight_scale": V, "bias": V},
    "int8_conv2d": {
        "x": IMAGE, "weight": torch.ones(4, 4, 1, 1, dtype=torch.int8), "scale": V, "bias": V, "residual": X,
    },
    "int8_quantize": {"x": X},
    "int8_dequantize": {"q": IMAGE},
    "int8_add": {"a": IMAGE, "b": IMAGE},
    "int8_lookup": {"q": IMAGE, "table": torch.arange(-128, 128).to(torch.int8)},
    "int8_affine": {"x": IMAGE, "scale": V, "shift": V},
    "int8_squeeze_excite": {
        "x": IMAGE, "reduce_weight": torch.randn(4, 4), "reduce_bias": V, "expand_weight": torch.randn(4, 4),
        "expand_bias": V,
    },
    "max_pool2d": {"x": X},
    "avg_pool2d": {"x": X},
    "global_avg_pool2d": {"x": X},
    "layer_norm": {"x": X[..., :4], "weight": V, "bias": V},
    "channel_shuffle": {"x": X},
    "pixel_shuffle": {"x": X},
    "pixel_unshuffle": {"x": X},
    "upsample2d": {"x": X},
    "squeeze_excite": {
        "x": X, "reduce_weight": torch.randn(4, 4), "reduce_bias": V, "expand_weight": torch.randn(4, 4),
        "expand_bias": V,
    },
    "quantize_int8": {"x": X},
}  # fmt: skip


def function(op):
    return int8_linear if op == "int8_linear" else getattr(pk.ops, op)


PARAMETERS = {op: inspect.signature(function(op)).parameters for op in CALLS}
NUMBERS = [(op, p.name) for op, given in PARAMETERS.items() for p in given.values() if p.annotation == "float"]
#: A number that each of these needs.
FACTORS = {
    "group_norm_act": "groups", "channel_shuffle": "groups", "pixel_shuffle": "upscale_factor",
    "pixel_unshuffle": "downscale_factor",
}  # fmt: skip
#: The grids that each of these needs.
SCALES = {
    "int8_quantize": ("scale",), "int8_dequantize": ("scale",), "int8_add": ("a_scale", "b_scale", "out_scale"),
    "int8_squeeze_excite": ("x_scale", "out_scale"), "int8_affine": ("out_scale",),
}  # fmt: skip
ACTIVATED = [op for op, given in PARAMETERS.items() if "activation" in given]


def call(op, given, **named):
    """The public function with tensors by name; those of the LSTMs in its pairs and lists."""
    given = dict(given)
    if op.startswith(("lstm", "int8_lstm")):
        named["states"] = tuple(given.pop(name) for name in ("h", "c", "h0", "c0") if name in given)
        for several in ("weights", "scales"):
            elements = [given.pop(name) for name in list(given) if name.startswith(f"{several}[")]
            named |= {several: elements} if elements else {}
    if op == "int8_matmul":
        named.setdefault("out_dtype", torch.float32)
    if op in ("max_pool2d", "avg_pool2d"):
        named.setdefault("kernel_size", 2)
    if op in FACTORS:
        named.setdefault(FACTORS[op], 2)
    for scale in SCALES.get(op, ()):
        named.setdefault(scale, 0.1)
    if op == "layer_norm":
        named.setdefault("normalized_shape", 4)
    if op == "upsample2d":
        named.setdefault("scale_factor", 2)
    return function(op)(**given, **named)


def refused(error, op, argument, expected, given, **named):
    with pytest.raises(error, match=rf"^pykernels\.{op}: {re.escape(argument)}: expected {expected}") as raised:
        call(op, given, **named)
    assert type(raised.value) is error


TENSORS = [(op, argument) for op, given in CALLS.items() for argument in given]
#: The first tensor says which device the others have to be on; batch_sizes belong on the CPU.
OTHERS = [(op, argument) for op, given in CALLS.items() for argument in list(given)[1:]]


def test_every_op_is_here():
    names = {spec.name.removesuffix("_scaled").removesuffix("_weight_only") for spec in all_specs()}
    assert names | {"int8_linear"} == set(CALLS)


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_are_right(op):
    call(op, CALLS[op])


@pytest.mark.parametrize(("op", "argument"), TENSORS)
def test_no_tensor(op, argument):
    refused(TypeError, op, argument, "a tensor, got str", {**CALLS[op], argument: "a"})


@pytest.mark.parametrize(("op", "argument"), TENSORS)
def test_a_sparse_tensor(op, argument):
    sparse = CALLS[op][argument].to_sparse()
    refused(ValueError, op, argument, "a dense tensor, got layout torch.sparse_coo", {**CALLS[op], argument: sparse})


@pytest.mark.parametrize(("op", "argument"), TENSORS)
def test_a_wrong_dtype(op, argument):
    wrong = CALLS[op][argument].to(torch.int16)
    refused(TypeError, op, argument, ".*got torch.int16", {**CALLS[op], argument: wrong})


@pytest.mark.parametrize(("op", "argument"), OTHERS)
def test_a_wrong_device(op, argument):
    elsewhere = CALLS[op][argument].to("meta")
    refused(ValueError, op, argument, ".*(device|CPU).*meta", {**CALLS[op], argument: elsewhere})


@pytest.mark.parametrize("op", CALLS)
def test_an_unknown_backend(op):
    refused(ValueError, op, "backend", "one of auto, .*; got 'gpu'", CALLS[op], backend="gpu")


@pytest.mark.parametrize("op", ACTIVATED)
def test_an_unknown_activation(op):
    refused(ValueError, op, "activation", "one of none, .*; got 'swish'", CALLS[op], activation="swish")


@pytest.mark.parametrize("value", ["a", None, [1.0]])
@pytest.mark.parametrize(("op", "argument"), NUMBERS)
def test_no_number(op, argument, value):
    refused(TypeError, op, argument, f"a number, got {type(value).__name__}", CALLS[op], **{argument: value})


@pytest.mark.parametrize("value", ["1", 1.0])
def test_no_int(value):
    refused(TypeError, "lstm", "num_layers", f"an int, got {type(value).__name__}", CALLS["lstm"], num_layers=value)


@pytest.mark.parametrize("value", [None, torch.zeros(16, 3)])
def test_no_sequence_of_weights(value):
    x, h0 = CALLS["lstm"]["x"], STATE
    with pytest.raises(TypeError, match=r"^pykernels.lstm: weights: expected a sequence of tensors, got \w+"):
        pk.ops.lstm(x, (h0, h0), value)


@pytest.mark.parametrize("op", ["lstm", "lstm_cell"])
@pytest.mark.parametrize(
    ("states", "got"), [((STATE,), "tuple of 1"), ([], "list of 0"), (STATE, "Tensor"), (1, "int")]
)
def test_no_pair_of_states(op, states, got):
    with pytest.raises(TypeError, match=rf"^pykernels.{op}: states: expected a pair \(h, c\) of tensors, got {got}"):
        getattr(pk.ops, op)(X[0, 0], states, *([GATES, GATES],) if op == "lstm" else (GATES, GATES))


@pytest.mark.parametrize(
    ("op", "alone", "missing"),
    [
        ("conv_bn_act", "running_mean", "running_var"),
        ("conv_bn_act", "running_var", "running_mean"),
        ("conv_bn_act", "bn_weight", "running_mean"),
        ("conv_bn_act", "bn_bias", "running_mean"),
        ("batch_norm_act", "running_mean", "running_var"),
        ("batch_norm_act", "running_var", "running_mean"),
    ],
)
def test_one_without_the_other(op, alone, missing):
    given = {name: CALLS[op][name] for name in ("x", "weight", alone) if name in CALLS[op]}
    refused(ValueError, op, missing, f"a tensor, because {alone} is given, got None", given)
