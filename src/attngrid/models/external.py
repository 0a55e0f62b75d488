"""Checks of modules from outside this package: a user's own, or timm's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from attngrid.core.errors import ConfigError
from attngrid.models.placement import Make


class _Probe(nn.Identity):
    """Takes an attention module's place and keeps the size of its input."""

    size: tuple[int, int] = (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.size = (x.shape[2], x.shape[3])
        return x


@torch.no_grad()
def feature_sizes(build: Callable[[Make], nn.Module], input_size: int) -> list[tuple[int, int]]:
    """Height and width of the feature map at each place, in the order of the modules' making."""
    probes: list[_Probe] = []

    def make(channels: int, stage: int) -> nn.Module:
        probes.append(_Probe())
        return probes[-1]

    with torch.device("meta"):
        build(make).eval()(torch.zeros(1, 3, input_size, input_size))
    return [probe.size for probe in probes]


@torch.no_grad()
def require_same_shape(module: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Raise a ConfigError if an attention module changes the shape of its input."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"is a {type(module).__name__}, not a torch.nn.Module")
    x = torch.zeros(2, channels, *size)
    shape = tuple(module.eval()(x).shape)
    module.train()
    if shape != tuple(x.shape):
        raise ConfigError(f"changes the shape of its input from {tuple(x.shape)} to {shape}")


@torch.no_grad()
def require_logits(
    name: str, build: Callable[[Make], nn.Module], input_size: int, num_classes: int
) -> None:
    """Raise a ConfigError if a backbone cannot be built or does not return logits."""
    images = torch.zeros(2, 3, input_size, input_size)
    try:
        # Without attention, and without a change to the random numbers of the model itself.
        with torch.random.fork_rng(devices=[]):
            shape = tuple(build(lambda channels, stage: nn.Identity()).eval()(images).shape)
    except Exception as error:
        raise ConfigError(f"backbone {name!r}: {type(error).__name__}: {error}") from error
    if shape != (2, num_classes):
        raise ConfigError(
            f"backbone {name!r}: makes {shape} of images {tuple(images.shape)}; "
            f"logits are {(2, num_classes)}"
        )
