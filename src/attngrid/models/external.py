"""Checks of modules from outside this package: a user's, timm's or torchvision's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.models.placement import Make


@contextmanager
def named_errors(what: str, *, external: bool) -> Iterator[None]:
    """Put ``what`` before an error's message: any error if ``external``, else AttngridErrors."""
    try:
        yield
    except Exception as error:
        if not external and not isinstance(error, AttngridError):
            raise
        raise name_error(what, error) from error


def name_error(what: str, error: Exception) -> ConfigError:
    """A ConfigError with ``what`` before an error's message, in one line."""
    kind = "" if isinstance(error, AttngridError) else f"{type(error).__name__}: "
    return ConfigError(f"{what}: {kind}{' '.join(str(error).split())}")


class Place(nn.Identity):
    """A placeholder for an attention module; a plain ``nn.Identity`` is the lack of one."""


@torch.no_grad()
def feature_sizes(build: Callable[[Make], nn.Module], input_size: int) -> list[tuple[int, int]]:
    """Height and width of the feature map at each attention module, in construction order."""
    places: list[nn.Module] = []
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def make(channels: int, stage: int) -> nn.Module:
        place = Place()
        place.register_forward_pre_hook(
            lambda module, inputs: sizes.update({module: tuple(inputs[0].shape[2:])})
        )
        places.append(place)
        return place

    with torch.device("meta"):
        build(make).eval()(torch.zeros(1, 3, input_size, input_size))
    return [sizes.get(place, (input_size, input_size)) for place in places]


def require_module(found: Any) -> nn.Module:
    """Return a module; raise a ConfigError if it is none."""
    if not isinstance(found, nn.Module):
        raise ConfigError(f"is a {type(found).__name__}, not a torch.nn.Module")
    return found


def require_built(
    model: nn.Module, places: Iterable[nn.Module], attention: str, calls: str, hint: str
) -> None:
    """Raise a ConfigError if a network has none of its attention modules, or only some.

    Args:
        model: the network.
        places: the attention modules that its backbone has built.
        attention: their name and placement, for the error.
        calls: the methods that build them, for the error.
        hint: what to change if there are none.
    """
    if not places:
        raise ConfigError(f"builds no module of {attention}; {hint}")
    if not set(places) <= set(model.modules()):
        raise ConfigError(
            f"a module of {attention} is not part of the network; assign what {calls} returns to "
            "an attribute or to an nn.Sequential"
        )


@torch.no_grad()
def try_once(
    model: nn.Module,
    name: str,
    places: Mapping[nn.Module, str],
    input_size: int,
    num_classes: int,
) -> None:
    """Run a network on two black images of their true size.

    Args:
        model: the network; one on the meta device has no values and is not run.
        name: the backbone, in words, for errors.
        places: its attention modules, with their places in words.
        input_size: height and width of the images in pixels.
        num_classes: outputs of the classifier.

    Raises:
        ConfigError: any error of the network; a module that changes the shape of its input or is
            never called; or outputs of another shape than N×num_classes.
    """
    parameter = next(model.parameters(), torch.empty(0))
    if parameter.is_meta:
        return
    running: list[str] = [name]
    called: set[nn.Module] = set()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        running.append(places[module])

    def after(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if (found := tuple(out.shape)) != (given := tuple(inputs[0].shape)):
            raise ConfigError(f"changes the shape of its input from {given} to {found}")
        running.pop()
        called.add(module)

    hooks = [module.register_forward_pre_hook(before) for module in places]
    hooks += [module.register_forward_hook(after) for module in places]
    images = torch.zeros(2, 3, input_size, input_size, device=parameter.device)
    try:
        with torch.random.fork_rng(devices=[]):  # the random numbers of a training do not change
            shape = tuple(model.eval()(images).shape)
        if shape != (2, num_classes):
            raise ConfigError(
                f"returns shape {shape} for images {tuple(images.shape)}; needs {(2, num_classes)}"
            )
        if idle := [place for module, place in places.items() if module not in called]:
            raise ConfigError(f"its forward never calls {idle[0]}")
    except Exception as error:
        raise name_error(running[-1], error) from error
    finally:
        for hook in hooks:
            hook.remove()
    model.train()
