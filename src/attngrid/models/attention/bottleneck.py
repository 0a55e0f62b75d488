"""The two-layer perceptron that every channel gate has, and MobileNets' rounding of widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.models.forms import has_fast_form


class Perceptron(nn.Sequential):
    """Layers for a few values: in its weights' precision a CPU is through before it has cast them.

    The first layer is linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N×inputs to N×outputs."""
        if not (torch.is_autocast_enabled("cpu") and has_fast_form(x)):
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out
        with torch.autocast("cpu", enabled=False):
            return self.forward(x.to(next(self.parameters()).dtype))


def bottleneck(inputs: int, channels: int, reduction: int) -> Perceptron:
    """Linear, ReLU, Linear from ``inputs`` through max(1, C // r) to C, both with bias.

    Raises:
        ConfigError: a reduction below 1.
    """
    if reduction < 1:
        raise ConfigError(f"reduction must be at least 1, found {reduction}")
    hidden = max(1, channels // reduction)
    return Perceptron(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, channels))


def make_divisible(width: float) -> int:
    """Round to a multiple of 8, never more than a tenth down, as the MobileNets do."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
