"""Checks of modules from outside this package: a user's modules, or timm's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.models.placement import Make


@contextmanager
def named_errors(what: str, *, external: bool) -> Iterator[None]:
    """Put ``what`` before an error's message: any error if ``external``, else AttngridErrors."""
    try:
        yield
    except AttngridError as error:
        raise ConfigError(f"{what}: {error}") from error
    except Exception as error:
        if not external:
            raise
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error


@torch.no_grad()
def feature_sizes(build: Callable[[Make], nn.Module], input_size: int) -> list[tuple[int, int]]:
    """Height and width of the feature map at each attention module, in construction order."""
    places: list[nn.Module] = []
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def make(channels: int, stage: int) -> nn.Module:
        place = nn.Identity()
        place.register_forward_pre_hook(
            lambda module, inputs: sizes.update({module: tuple(inputs[0].shape[2:])})
        )
        places.append(place)
        return place

    with torch.device("meta"):
        build(make).eval()(torch.zeros(1, 3, input_size, input_size))
    return [sizes[place] for place in places]


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
def require_logits(build: Callable[[Make], nn.Module], input_size: int, num_classes: int) -> None:
    """Raise a ConfigError if a backbone, without attention, does not return logits."""
    images = torch.zeros(2, 3, input_size, input_size)
    with torch.random.fork_rng(devices=[]):  # the check must not change the model's random weights
        shape = tuple(build(lambda channels, stage: nn.Identity()).eval()(images).shape)
    if shape != (2, num_classes):
        raise ConfigError(
            f"returns shape {shape} for images {tuple(images.shape)}; needs {(2, num_classes)}"
        )
