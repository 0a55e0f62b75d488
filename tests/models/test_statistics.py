"""Statistics of feature maps are accurate in float32, and exact for constant maps."""

from __future__ import annotations

import pytest
import torch

from attngrid.models.attention.statistics import (
    PER_CHANNEL,
    PER_POSITION,
    STATISTICS,
    squeeze,
    std,
)

DIMS = pytest.mark.parametrize("dims", [PER_CHANNEL, PER_POSITION], ids=["channel", "position"])
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def constant(dims: tuple[int, ...], dtype: torch.dtype, side: int) -> torch.Tensor:
    """A map that is constant over ``dims``, with another value at each remaining index."""
    generator = torch.Generator().manual_seed(0)
    shape = [1 if dim in dims else size for dim, size in enumerate((2, 64, side, side))]
    return (3 * torch.randn(shape, generator=generator)).to(dtype).expand(2, 64, side, side)


def std_and_gradient(
    x: torch.Tensor, dims: tuple[int, ...], compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    found = (torch.compile(std) if compiled else std)(x, dims)
    found.sum().backward()
    assert x.grad is not None
    return found, x.grad


@DIMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1, 3, 7, 14])
def test_std_of_constants_and_its_gradient_are_exactly_0(
    dims: tuple[int, ...], dtype: torch.dtype, side: int
) -> None:
    for layout in LAYOUTS:
        x = constant(dims, dtype, side).contiguous(memory_format=layout)
        found, gradient = std_and_gradient(x, dims)
        assert found.dtype == torch.float32
        assert not found.any()
        assert not gradient.any()


@pytest.mark.slow
@DIMS
def test_compiled_std_of_constants_and_its_gradient_are_exactly_0(dims: tuple[int, ...]) -> None:
    """Inductor's standard deviation of unshifted values is not exact, for example 3e-8."""
    x = constant(dims, torch.float32, 7).contiguous()
    found, gradient = std_and_gradient(x, dims, compiled=True)
    assert not found.any()
    assert not gradient.any()


@DIMS
def test_std_is_accurate_for_a_small_deviation_of_large_values(dims: tuple[int, ...]) -> None:
    """Mean 30, deviation 0.01; E[x²] − E[x]² would be off by more than 10 %."""
    x = 30 + 0.01 * torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    found, gradient = std_and_gradient(x, dims)
    expected, expected_gradient = std_and_gradient(x.double(), dims)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-4
    squares = ((x**2).mean(dims, True) - x.mean(dims, True) ** 2).clamp(min=0).sqrt()
    assert ((squares - expected).abs() / expected).max() > 0.1


@DIMS
def test_std_is_accurate_with_an_outlier_as_first_value(dims: tuple[int, ...]) -> None:
    """The first value is subtracted from all; the error is that of float32."""
    x = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    x[:, 0], x[:, :, 0, 0] = 1e4, 1e4
    expected, _ = std_and_gradient(x.double(), dims)
    torch.testing.assert_close(std_and_gradient(x, dims)[0].double(), expected, rtol=1e-5, atol=0)


@DIMS
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_bfloat16_maps_accumulate_in_float32(
    name: str, dims: tuple[int, ...]
) -> None:
    x = (3 + torch.randn(2, 512, 32, 32)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = squeeze(x, [name], dims)
    assert found.dtype == torch.float32
    expected = STATISTICS[name](x.double(), dims).reshape(found.shape)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@DIMS
@pytest.mark.parametrize("name", STATISTICS)
def test_gradients_match_finite_differences(name: str, dims: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: squeeze(x, [name], dims)[0], x)
