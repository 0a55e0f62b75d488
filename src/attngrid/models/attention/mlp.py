"""The two-layer perceptron of channel gates, and how widths are rounded."""

from __future__ import annotations

from torch import nn

from attngrid.core.errors import ConfigError


def mlp(inputs: int, channels: int, reduction: int) -> nn.Sequential:
    """Linear, ReLU, Linear: from ``inputs`` through C/r to C = ``channels``, both with bias."""
    hidden = reduced(channels, reduction)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, channels))


def reduced(channels: int, reduction: int, name: str = "reduction") -> int:
    """Return max(1, C // r); raise a ConfigError with ``name`` if r is below 1."""
    if reduction < 1:
        raise ConfigError(f"{name} must be at least 1, found {reduction}")
    return max(1, channels // reduction)


def make_divisible(width: float) -> int:
    """Round to a multiple of 8, as the MobileNets do; the result is at least 0.9 × ``width``."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
