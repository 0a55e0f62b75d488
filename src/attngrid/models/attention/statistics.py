"""Statistics of a feature map, in float32 even if autocast makes the map bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attngrid.core.errors import ConfigError, UnknownNameError

Dims = tuple[int, ...]
PER_CHANNEL: Dims = (2, 3)  # over height and width
PER_POSITION: Dims = (1,)  # over channels


def mean(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The mean over ``dims``; the result keeps them with size 1."""
    return x_NCHW.mean(dims, keepdim=True, dtype=_at_least_float32(x_NCHW))


def maximum(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The maximum over ``dims``; equal maxima share the gradient."""
    return x_NCHW.amax(dims, keepdim=True).to(_at_least_float32(x_NCHW))


def std(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The standard deviation over ``dims`` (÷ n−1), 0 for n = 1; where it is 0, so is its gradient.

    The first value is subtracted from all. Equal values are then zeros, and their deviation is
    exactly 0 in compiled code, too; a small deviation of large values keeps its precision.
    """
    first_value = x_NCHW.detach()
    for dim in dims:
        first_value = first_value.narrow(dim, 0, 1)
    shifted = x_NCHW - first_value.to(_at_least_float32(x_NCHW))
    n = x_NCHW.numel() // first_value.numel()
    return shifted.std(dims, correction=min(1, n - 1), keepdim=True)


STATISTICS: dict[str, Callable[[Tensor, Dims], Tensor]] = {"avg": mean, "max": maximum, "std": std}


def squeeze(x_NCHW: Tensor, names: Sequence[str], dims: Dims) -> list[Tensor]:
    """Statistics by name: each N×C for ``PER_CHANNEL``, N×1×H×W for ``PER_POSITION``."""
    values = [STATISTICS[name](x_NCHW, dims) for name in names]
    return [value.flatten(1) for value in values] if dims == PER_CHANNEL else values


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names; raise a ConfigError if there is none or one is unknown."""
    if not names:
        raise ConfigError(f"statistics must be one or more of {', '.join(STATISTICS)}, found none")
    for name in names:
        if name not in STATISTICS:
            raise UnknownNameError("statistic", name, STATISTICS)
    return tuple(names)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
