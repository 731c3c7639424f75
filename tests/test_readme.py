"""The README's matrix of ops is that of the package. Its figures are in test_figures.py."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from pykernels import ops
from pykernels.ops._op import FAMILIES, Op

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="no README beside the tests")


def table_in(page, head):
    """The lines of its table that begins so."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    told = [*lines[start + 2 :], ""]
    return told[: next(i for i, line in enumerate(told) if not line.startswith("|"))]


def ops_by_name():
    found = {}
    for family in FAMILIES:
        module = importlib.import_module(f"pykernels.ops.{family}.op")
        found |= {op.name: op for op in vars(module).values() if isinstance(op, Op)}
    # It chooses its kernels by the name of the op that takes scales.
    return found | {"int8_matmul": found["int8_matmul_scaled"]}


def test_the_matrix_of_ops_is_that_of_the_package():
    known, told = ops_by_name(), set()
    for line in table_in(README, "| op |"):
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in (n.strip(" `") for n in names.split(",")):
            told.add(name)
            for backend, cell in zip(("cpu", "cuda", "triton"), cells, strict=False):
                op = known[name]
                dtypes = [str(d).removeprefix("torch.") for d in op.takes(backend)]
                expected = ", ".join(dtypes) if op.backends[backend] is None else "torch's op"
                assert re.sub("^int8 (to|with) ", "", cell) == expected, f"{name} on {backend}"
    assert told == {name for name in ops.__all__ if name != "ACTIVATIONS"}


def test_ops_have_gradients_where_the_matrix_says_so():
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 1, 1)
    floats = {
        "conv_bn_act": lambda x: ops.conv_bn_act(x, w),
        "conv_transpose_bn_act": lambda x: ops.conv_transpose_bn_act(x, w),
        "batch_norm_act": lambda x: ops.batch_norm_act(x, torch.zeros(4), torch.ones(4)),
        "lstm": lambda x: ops.lstm(x[0], torch.zeros(2, 1, 6, 2).unbind(), [torch.randn(8, 6), torch.randn(8, 2)])[0],
        "max_pool2d": lambda x: ops.max_pool2d(x, 2),
        "avg_pool2d": lambda x: ops.avg_pool2d(x, 2),
        "global_avg_pool2d": ops.global_avg_pool2d,
        "squeeze_excite": lambda x: ops.squeeze_excite(x, w, None, w, None),
        "upsample2d": lambda x: ops.upsample2d(x, scale_factor=2),
        "group_norm_act": lambda x: ops.group_norm_act(x, 2),
        "layer_norm": lambda x: ops.layer_norm(x, 6),
        "channel_shuffle": lambda x: ops.channel_shuffle(x, 2),
        "pixel_shuffle": lambda x: ops.pixel_shuffle(x, 2),
        "pixel_unshuffle": lambda x: ops.pixel_unshuffle(x, 2),
    }
    trains = {
        name.strip(" `"): line.strip("| ").endswith("yes")
        for line in table_in(README, "| op |")
        for name in line.strip("|").split("|")[0].split(",")
    }
    assert {name for name, yes in trains.items() if yes} == {*floats, "lstm_cell"}
    for name, call in floats.items():
        leaf = x.clone().requires_grad_()
        call(leaf).square().sum().backward()
        assert leaf.grad is not None, name
