"""What the int8 tests share: problems, and what the CPU's and Triton's kernels are both held to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pykernels.ops.int8_matmul import int8_matmul
from pykernels.ops.int8_matmul.reference import int8_matmul_reference
from pykernels.ops.int8_matmul.spec import INT8_MATMUL_SCALED_SPEC, ROUNDINGS
from tests.harness import integers, relative_l2

OPS = torch.ops.pykernels
BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])

#: The largest relative error of a scaled product in float32.
BOUND = INT8_MATMUL_SCALED_SPEC.bound(torch.float32, ROUNDINGS)

LAYOUTS = {
    "rows": lambda t: t,
    "columns": lambda t: t.t().contiguous().t(),
    "sliced": lambda t: torch.stack((t, torch.full_like(t, 77)), -1).flatten(-2)[:, ::2],
    # Rows further apart than they are long, at an odd address.
    "offset": lambda t: torch.nn.functional.pad(t, (1, 2))[:, 1 : 1 + t.shape[1]],
    "wider": lambda t: torch.nn.functional.pad(t, (0, 16))[:, : t.shape[1]],
    "expanded": lambda t: t[:, :1].expand_as(t),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Each element within the rounding of both sides, or a denormal number or two of it."""
    torch.testing.assert_close(got, expected, rtol=2 * BOUND, atol=1e-44, equal_nan=True)


def assert_same_quantisation(got: Any, expected: Any) -> None:
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=0, equal_nan=True)


def check_special_scales_and_biases(backend: str, device: str, dtypes: Any, activations: Any) -> None:
    inf, nan = float("inf"), float("nan")
    a, b = integers(3, 8).to(device), integers(8, 70, seed=1).to(device)
    a[0] = 0
    scale, bias = torch.tensor([1.0, 1e-45, 3e38], device=device), torch.zeros(70, device=device)
    bias[0], bias[1], bias[2], bias[69] = inf, -inf, nan, nan
    for out_dtype, activation in itertools.product(dtypes, activations):
        given = {"a_scale": scale, "bias": bias, "activation": activation, "out_dtype": out_dtype}
        assert_rounded(int8_matmul(a, b, **given, backend=backend), int8_matmul_reference(a, b, **given))


def check_int8_output_rounds_to_even_and_saturates(backend: str, device: str) -> None:
    a = torch.tensor([[1], [-1], [127], [-128]], dtype=torch.int8, device=device)
    b = torch.tensor([[1, 3, 5, 127, -128]], dtype=torch.int8, device=device)
    got = int8_matmul(a, b, a_scale=torch.tensor(0.5, device=device), out_dtype=torch.int8, backend=backend)
    assert got.tolist() == [
        [0, 2, 2, 64, -64],
        [0, -2, -2, -64, 64],
        [64, 127, 127, 127, -128],
        [-64, -128, -128, -128, 127],
    ]


def check_gradients(
    backend: str, device: str, activation: str, *, zero_point: bool, given: tuple[bool, ...] = (True, True, True)
) -> None:
    """First and second gradients of the scales and the bias, against the reference's."""
    a, b = integers(7, 30).to(device), integers(30, 40, seed=1).to(device)
    zero = integers(7, seed=4).int().to(device) if zero_point else None
    names, shapes, sizes = ("a_scale", "b_scale", "bias"), ((7, 1), (40,), (40,)), (1e-3, 0.1, 1)

    def run(which: str) -> Any:
        leaves = [
            (torch.rand(s, generator=torch.Generator().manual_seed(i)) * size).to(device).requires_grad_(g)
            for i, (s, size, g) in enumerate(zip(shapes, sizes, given, strict=True))
        ]
        tensors = dict(zip(names, leaves, strict=True))
        options = {"a_zero_point": zero, "activation": activation, "out_dtype": torch.float32, "backend": which}
        y = int8_matmul(a, b, **tensors, **options)
        wanted = [t for t in leaves if t.requires_grad]
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        return first + torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for got, expected in zip(run(backend), run("reference"), strict=True):
        assert relative_l2(got, expected) < 2 * 4 * BOUND  # of both sides; forward, and through two derivatives
