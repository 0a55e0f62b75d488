"""The two-layer perceptron that every channel gate has."""

from __future__ import annotations

from torch import nn

from attngrid.errors import ConfigError


def bottleneck(inputs: int, channels: int, reduction: int) -> nn.Sequential:
    """Linear, ReLU, Linear from ``inputs`` through max(1, C // r) to C, both with bias.

    Raises:
        ConfigError: a reduction below 1.
    """
    if reduction < 1:
        raise ConfigError(f"reduction must be at least 1, found {reduction}")
    hidden = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, channels))
