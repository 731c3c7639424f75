"""The LSTM's Triton kernels beyond the spec's samples: both ways through a sequence, traces, choices of tiles."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._spec import FLOATS, ROUNDOFF
from tests.harness import relative_l2, triton_reason

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", FLOATS["triton"], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 70, 33), (130, 65, 100), (64, 20, 700), (0, 3, 4), (3, 4, 0)])
def test_product(m, n, k, dtype):
    from pykernels.ops.lstm.triton_product import product

    a, b = _random(m, k, dtype=dtype), _random(n, k, dtype=dtype, seed=1)
    bias = _random(n, dtype=dtype, seed=2), _random(n, dtype=dtype, seed=3)
    expected = a.double() @ b.double().t() + (bias[0].double() + bias[1].double())
    bound = 4 * max(k, 4) ** 0.5 * ROUNDOFF[torch.float32]
    found = product(a, b.t(), bias=bias, dtype=torch.float32)
    assert relative_l2(found, expected) <= bound
    # Transposes are strides, and a result may be added to.
    found = product(a.t().contiguous().t(), b.t().contiguous(), torch.ones(m, n, device=DEVICE), add=True)
    assert relative_l2(found, a.double() @ b.double().t() + 1) <= bound


def test_product_is_the_same_each_time():
    from pykernels.ops._triton import INTERPRETER
    from pykernels.ops.lstm.triton_product import config, product

    assert config(64, 20, 700, 4, INTERPRETER).splits > 1
    a, b = _random(64, 700), _random(700, 20)
    assert torch.equal(product(a, b), product(a, b))
