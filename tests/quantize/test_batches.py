"""What `pk.quantize` takes for batches, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk
from tests.quantize.models import batches, residual, run


def test_batches_of_all_kinds():
    model, data = residual(), batches()
    expected = run(pk.quantize(model, data), data[0])
    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in data]
    for given in (labelled, iter(data), (x for x in data), [{"x": x} for x in data], [[x] for x in data]):
        assert torch.equal(run(pk.quantize(model, given), data[0]), expected)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ([], ValueError, "at least one, got none"),
        (iter(()), ValueError, "at least one, got none .an empty list, or an iterator that has been used up"),
        (torch.zeros(2, 3, 8, 8), TypeError, "an iterable of batches, such as .x. or a DataLoader, got a tensor"),
        (3, TypeError, "an iterable of batches, such as .x. or a DataLoader, got int"),
        ([torch.full((1, 3, 24, 24), float("nan"))], ValueError, "batch 0 of finite numbers, got NaN or infinity"),
        ([torch.zeros(1, 3, 24, 24), torch.zeros(0, 3, 24, 24)], ValueError, "batch 1 with elements"),
        ([torch.zeros(1, 3, 24, 24, device="meta")], ValueError, "batch 0 on cpu, where the model is, got meta"),
    ],
)
def test_bad_batches_are_refused(given, kind, says):
    with pytest.raises(kind, match=f"pykernels.quantize: batches: expected {says}"):
        pk.quantize(residual(), given)


def test_a_batch_that_the_model_refuses_is_named():
    with pytest.raises(RuntimeError, match=r"batches: batch 1 makes the model raise RuntimeError: .*4, 24, 24"):
        pk.quantize(residual(), [torch.zeros(1, 3, 24, 24), torch.zeros(1, 4, 24, 24)])


def test_overflow_inside_the_model_is_named():
    model = residual()
    with torch.no_grad():
        model.a.weight.fill_(1e30)
        model.b.weight.fill_(1e30)
    with pytest.raises(ValueError, match=r"NaN or infinity in .*b"):
        pk.quantize(model, batches())
