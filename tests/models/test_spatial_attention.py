"""Spatial attention at scale: the same numbers in every form, and no N×N map where it is large."""

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

# (side, C, d): small and large maps, keys as wide as values and an eighth of them
SHAPES = [(4, 64, 64), (7, 32, 4), (16, 16, 16), (32, 16, 2), (33, 16, 16), (40, 16, 2)]


def literal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """CSM's eq. 5 as it stands: s_ij = exp(Bᵢ·Cⱼ) / Σᵢ exp(Bᵢ·Cⱼ), out_j = Σᵢ s_ij Dᵢ."""
    powers_ij = torch.exp(torch.einsum("bid,bjd->bij", key, query))
    s_ij = powers_ij / powers_ij.sum(1, keepdim=True)
    return torch.einsum("bij,bic->bjc", s_ij, value)


def inputs(positions: int, channels: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, positions, width)] * 2 + [(2, positions, channels)]
    scale = width**-0.25  # scores of deviation 1
    return [(torch.randn(shape, dtype=dtype) * scale).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_form_is_the_equation_with_its_gradients(shape: tuple[int, int, int]) -> None:
    side, channels, width = shape
    exact = inputs(side * side, channels, width, torch.float64)
    ours = [tensor.detach().float().requires_grad_() for tensor in exact]
    grad = torch.randn(2, side * side, channels, dtype=torch.float64)
    expected = literal(*exact)
    found = attend(*ours)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    expected.backward(grad)
    found.backward(grad.float())
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


def test_the_explicit_product_is_for_small_maps_and_for_wide_ones_up_to_1024(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sam, "scaled_dot_product_attention", lambda q, k, v, scale: v + torch.inf)

    def is_fused(positions: int, channels: int) -> bool:
        return not attend(*inputs(positions, channels, 4, torch.float32)).isfinite().all()

    for channels, fused in ((64, (784, 1024, 1089)), (256, (1089,))):
        sizes = (16, 256, 512, 784, 1024, 1089)
        assert [n for n in sizes if is_fused(n, channels)] == list(fused)


@pytest.mark.parametrize("width", [2, 16])
def test_scores_of_bfloat16_are_float32(width: int) -> None:
    """Without a 1/√d they are large: bfloat16's 8 bits would leave errors of tens of percent."""
    for side in (8, 33):
        exact = [10**0.5 * t.bfloat16() for t in inputs(side * side, 16, width, torch.float64)]
        expected = literal(*(t.double() for t in exact))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend(*exact)
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 0.01 * expected.norm()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator makes, the operators' insides included."""

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
def test_at_56x56_no_tensor_is_as_large_as_the_map(name: str) -> None:
    entry = find_attention(name)
    module = entry.load()(64, **entry.options)
    x_NCHW = torch.randn(2, 64, 56, 56, requires_grad=True)
    with Largest() as largest:
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
def test_at_56x56_a_step_takes_less_memory_than_one_map(name: str) -> None:
    """The peak of a process of its own, which sees inside fused kernels; 8 maps are 315 MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True
    )
    maps_kb = 8 * 3136**2 * 4 / 1024
    assert int(done.stdout) < maps_kb / 2


@pytest.mark.parametrize("shape", [(8, 16, 16), (8, 16, 2), (40, 16, 16), (40, 16, 2)], ids=str)
def test_both_products_are_counted_in_every_form(shape: tuple[int, int, int]) -> None:
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
