"""The table of activations: every entry has its gradients, and what is not in it is refused."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._activation import (
    ACTIVATIONS,
    activation_backward,
    activation_code,
    apply_activation,
    is_signed,
    output_tells,
)

#: No point of the kinks at 0 and at hardswish's and hardsigmoid's -3 and 3; beyond relu6's 6.
Z = torch.linspace(-7, 7, 40, dtype=torch.float64)


def numerical(activation, slope, step=1e-6):
    """The derivative at `Z`, by central differences."""
    return (apply_activation(Z + step, activation, slope) - apply_activation(Z - step, activation, slope)) / (2 * step)


@pytest.mark.parametrize("grad_enabled", [False, True])
@pytest.mark.parametrize("slope", [0.01, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_from_the_input_and_from_the_output(activation, slope, grad_enabled):
    gy = torch.linspace(1, 2, len(Z), dtype=torch.float64)
    expected = gy * numerical(activation, slope)
    with torch.set_grad_enabled(grad_enabled):  # silu goes another way there
        from_input = activation_backward(gy, activation, slope, None, lambda: Z)
        torch.testing.assert_close(from_input, expected, rtol=1e-7, atol=1e-8)
        if output_tells(activation, slope):
            y = apply_activation(Z, activation, slope)
            from_output = activation_backward(gy, activation, slope, y, lambda: pytest.fail("y tells it"))
            torch.testing.assert_close(from_output, expected, rtol=1e-7, atol=1e-8)
        if is_signed(activation):
            from_sign = activation_backward(gy, activation, slope, None, Z.sign)
            torch.testing.assert_close(from_sign, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_differentiable_itself(activation):
    z = Z[::4].clone().requires_grad_()
    gy = torch.linspace(1, 2, len(z), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda gy, z: activation_backward(gy, activation, 0.3, None, lambda: z), (gy, z))
    if output_tells(activation, 0.3):
        y = apply_activation(z.detach(), activation, 0.3)
        inside = (y != 0) & (y != 1)  # relu's 0 and hardsigmoid's 1 are kinks of the formula in y
        y, gy = y[inside].requires_grad_(), gy.detach()[inside].requires_grad_()
        assert torch.autograd.gradcheck(
            lambda gy, y: activation_backward(gy, activation, 0.3, y, lambda: pytest.fail("y tells it")), (gy, y)
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_output_tells_where_the_function_is_monotone(activation):
    assert output_tells(activation, 0.01) == bool((apply_activation(Z, activation).diff() >= 0).all())


def test_the_output_does_not_tell_whose_slope_is_not_positive():
    assert not output_tells("leaky_relu", 0.0)
    assert not output_tells("leaky_relu", -0.5)


def test_a_gradient_from_an_output_that_does_not_tell():
    with pytest.raises(AssertionError, match="the output of gelu does not tell its gradient"):
        activation_backward(Z, "gelu", 0.0, Z, lambda: Z)


def test_an_unknown_name_falls_nowhere():
    with pytest.raises(ValueError, match=r"^pykernels.op: activation: expected one of none, .*; got 'nonsense'"):
        activation_code("op", "nonsense")
    for y in (None, Z):
        with pytest.raises(KeyError, match="nonsense"):
            activation_backward(Z, "nonsense", 0.0, y, lambda: Z)
    for lookup in (is_signed, lambda name: output_tells(name, 0.0), lambda name: apply_activation(Z, name)):
        with pytest.raises(KeyError, match="nonsense"):
            lookup("nonsense")
