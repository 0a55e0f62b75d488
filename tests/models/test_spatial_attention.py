"""Spatial attention: both forms give the same numbers, and large maps need no N×N tensor."""

from __future__ import annotations

import subprocess
import sys
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attngrid.measure.complexity import count
from attngrid.models.attention import sam
from attngrid.models.attention.sam import attend
from attngrid.models.registry import find_attention

# (side, C, d): small and large maps; keys with C or C/8 channels
SHAPES = [(4, 64, 64), (7, 32, 4), (16, 16, 16), (32, 16, 2), (33, 16, 16), (40, 16, 2)]


def equation(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """CSM's eq. 5 as printed: s_ij = exp(Bᵢ·Cⱼ) / Σᵢ exp(Bᵢ·Cⱼ), out_j = Σᵢ s_ij Dᵢ."""
    powers_ij = torch.exp(torch.einsum("bid,bjd->bij", key, query))
    s_ij = powers_ij / powers_ij.sum(1, keepdim=True)
    return torch.einsum("bij,bic->bjc", s_ij, value)


def inputs(positions: int, channels: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, positions, width)] * 2 + [(2, positions, channels)]
    scale = width**-0.25  # scores with standard deviation 1
    return [(torch.randn(shape, dtype=dtype) * scale).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_equal_the_equation_and_its_gradients(shape: tuple[int, int, int]) -> None:
    side, channels, width = shape
    exact = inputs(side * side, channels, width, torch.float64)
    ours = [tensor.detach().float().requires_grad_() for tensor in exact]
    grad = torch.randn(2, side * side, channels, dtype=torch.float64)
    expected = equation(*exact)
    found = attend(*ours)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    expected.backward(grad)
    found.backward(grad.float())
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


def test_small_maps_use_the_explicit_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sam, "scaled_dot_product_attention", lambda q, k, v, scale: v + torch.inf)

    def is_fused(positions: int, channels: int) -> bool:
        return not attend(*inputs(positions, channels, 4, torch.float32)).isfinite().all()

    for channels, expected in ((64, (784, 1024, 1089)), (256, (1089,))):
        sizes = (16, 256, 512, 784, 1024, 1089)
        assert [n for n in sizes if is_fused(n, channels)] == list(expected)


@pytest.mark.parametrize("width", [2, 16])
def test_scores_of_bfloat16_maps_are_float32(width: int) -> None:
    """Scores without 1/√d are large: in bfloat16 the error would be tens of percent."""
    for side in (8, 33):
        exact = [10**0.5 * t.bfloat16() for t in inputs(side * side, 16, width, torch.float64)]
        expected = equation(*(t.double() for t in exact))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend(*exact)
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 0.01 * expected.norm()


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [prod(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("name", ["sam", "sam_r8"])
def test_at_56x56_no_tensor_is_as_large_as_the_n_by_n_map(name: str) -> None:
    entry = find_attention(name)
    module = entry.load()(64, **entry.options)
    x_NCHW = torch.randn(2, 64, 56, 56, requires_grad=True)
    with LargestTensor() as largest:
        module(x_NCHW).sum().backward()
    assert largest.elements < 3136**2 / 4


PEAK = """
import resource, sys, torch
from attngrid.models.registry import find_attention
entry = find_attention(sys.argv[1])
module = entry.load()(64, **entry.options)
torch.set_num_threads(1)
module(torch.randn(1, 64, 8, 8)).sum().backward()
x = torch.randn(8, 64, 56, 56, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
module(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "sam_r8"])
def test_at_56x56_a_step_takes_less_memory_than_the_n_by_n_maps(name: str) -> None:
    """The peak memory of a new process includes fused kernels; 8 maps would take 315 MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True
    )
    maps_kb = 8 * 3136**2 * 4 / 1024
    assert int(done.stdout) < maps_kb / 2


@pytest.mark.parametrize("shape", [(8, 16, 16), (8, 16, 2), (40, 16, 16), (40, 16, 2)], ids=str)
def test_both_products_are_counted_at_every_size(shape: tuple[int, int, int]) -> None:
    side, channels, width = shape
    positions = side * side
    entry = find_attention("sam" if width == channels else "sam_r8")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, channels, 1, bias=False), entry.load()(channels, **entry.options)
    )
    projections = positions * channels * (3 + 2 * width + channels)
    counted = count(module, side)
    assert counted["product_macs"] == positions**2 * (width + channels)
    assert counted["macs"] == counted["product_macs"] + projections
