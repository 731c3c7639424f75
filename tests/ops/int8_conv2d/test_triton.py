"""int8_conv2d in Triton: interpreted where there is no GPU."""

from __future__ import annotations

import importlib

import torch
from torch.library import opcheck

from tests.harness import needs_triton
from tests.ops.int8_conv2d.checks import DEVICE, each_check, integers


@needs_triton
@each_check
def test_triton(check):
    check("triton")


@needs_triton
def test_opcheck():
    ops = importlib.import_module("pykernels.ops.int8_conv2d.triton")
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = integers(2, 4, 6, 5).contiguous(memory_format=layout), integers(8, 4, 3, 3, seed=1)
        geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
        residual = torch.rand(2, 8, 6, 5, device=DEVICE).contiguous(memory_format=layout)
        end = (1, 0.01, 2.0, torch.float16)
        opcheck(ops.int8_conv2d, (x, weight, torch.rand(8, device=DEVICE), None, residual, 0.5, *geometry, *end))
