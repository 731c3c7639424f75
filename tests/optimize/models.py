"""Small models for `pykernels.optimize`, and what compares the optimised with the original."""

from __future__ import annotations

import copy
import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.optimize._program import Program
from tests.harness import normal, relative_l2
from tests.models.bounds import model_bound


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that a wrong fold would show."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.running_mean is not None:
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(m.bias, generator=generator)
    return model.eval()


def image(*shape: int) -> torch.Tensor:
    return normal(*(shape or (2, 3, 12, 12)), seed=1)


@torch.no_grad()
def agree(fast, model, *inputs) -> None:
    """Both give the same, to twice what rounding may do in the model's layers: neither is the oracle.

    Thrice: a call of a new kind is recorded, the next is bound, and those after it are run.
    """
    expected = model(*inputs)
    for _ in range(3):
        got = fast(*inputs)
        assert got.dtype == expected.dtype
        assert got.is_contiguous() == expected.is_contiguous()
        assert relative_l2(got, expected) <= 2 * model_bound(model, got.dtype)


def same(model: nn.Module, *inputs: torch.Tensor) -> pk.optimize:
    """The optimised model, after checking it against the original on ``inputs``."""
    fast = pk.optimize(randomise(model))
    agree(fast, model, *inputs)
    return fast


def checked(model, *inputs, times=3):
    """The optimised model, with eager's values, sizes and strides."""
    model = model.eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(times):
            for x in inputs:
                for got, expected in zip(fast(x), model(x), strict=True):
                    assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
                    torch.testing.assert_close(got, expected)
    return fast


@torch.no_grad()
def near(fast, model, x, bound: float) -> None:
    """Is every result of the call that near to the float64 model's, of eager's sizes and strides?"""
    exact = copy.deepcopy(model).double()(x.double())
    for got, expected, right in zip(*map(_tensors, (fast(x), model(x), exact)), strict=True):
        assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
        assert relative_l2(got, right) <= bound


def _tensors(result) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def kinds(fast) -> list[str]:
    return [r.what for r in fast.report().replaced]


def functions(fast) -> Counter[str]:
    """How often which function runs in the programs, by its name."""
    steps = [step.function for program in programs(fast) for step in program.graph.steps]
    return Counter(getattr(f, "__name__", None) or f.name for f in steps)


def programs(fast):
    stubs = [vars(m).get("_compiled_call_impl") for m in fast.modules()]
    found = [p for s in stubs if s is not None for p in s.programs.values()]
    return list({id(p): p for p in found if isinstance(p, Program)}.values())


def called(program: Program) -> set[str]:
    """The names of the functions in the Python that ran last: its text has numbers for them."""
    known = program._writer.names
    return {getattr(known[k], "__name__", "") for k in re.findall(r"\bk\d+\b", program.text())}


class Block(nn.Module):
    def __init__(self, form: str):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.form = form

    def forward(self, x):
        identity = x
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.form == "iadd":
            out += identity
        elif self.form == "add":
            out = identity + out
        elif self.form == "torch.add":
            out = torch.add(out, identity)
        elif self.form == "method":
            out = out.add_(identity)
        elif self.form == "broadcast":
            out = out + identity.mean((2, 3), keepdim=True)
        elif self.form == "alpha":
            out = torch.add(out, identity, alpha=2)
        elif self.form == "scalar":
            out = out + 1
        elif self.form == "overwritten":
            out = out + identity.mul_(2)
        elif self.form == "into identity":
            identity += out
            out = identity
        return F.relu(out)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x, mask=None):
        y = self.body(x)
        return y if mask is None else y * mask

    def describe(self):
        return f"{len(self.body)} layers"


class Branches(Optional):
    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)
