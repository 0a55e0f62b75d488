"""Statistics of a feature map, in float32 also where autocast makes the map narrower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attngrid.core.errors import ConfigError, UnknownNameError

Dims = tuple[int, ...]
PER_CHANNEL: Dims = (2, 3)  # over height and width
PER_POSITION: Dims = (1,)  # over channels


def mean(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The mean over ``dims``, which are kept."""
    return x_NCHW.mean(dims, keepdim=True, dtype=_at_least_float32(x_NCHW))


def maximum(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The maximum over ``dims``; equal maxima share the gradient."""
    return x_NCHW.amax(dims, keepdim=True).to(_at_least_float32(x_NCHW))


def std(x_NCHW: Tensor, dims: Dims) -> Tensor:
    """The standard deviation over ``dims`` (÷ n−1), 0 for n = 1; the gradient is 0 where it is 0.

    One of the values is subtracted first. Equal values are then zeros, whose deviation is exactly
    0 in compiled code too, and a small deviation far from zero keeps its digits.
    """
    one_value = x_NCHW.detach()
    for dim in dims:
        one_value = one_value.narrow(dim, 0, 1)
    shifted = x_NCHW - one_value.to(_at_least_float32(x_NCHW))
    n = x_NCHW.numel() // one_value.numel()
    return shifted.std(dims, correction=min(1, n - 1), keepdim=True)


STATISTICS: dict[str, Callable[[Tensor, Dims], Tensor]] = {"avg": mean, "max": maximum, "std": std}


def squeeze(x_NCHW: Tensor, names: Sequence[str], dims: Dims) -> list[Tensor]:
    """Statistics by name: each N×C for ``PER_CHANNEL``, N×1×H×W for ``PER_POSITION``."""
    values = [STATISTICS[name](x_NCHW, dims) for name in names]
    return [value.flatten(1) for value in values] if dims == PER_CHANNEL else values


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of statistics, or raise a ConfigError for none or an unknown one."""
    if not names:
        raise ConfigError(f"statistics must be one or more of {', '.join(STATISTICS)}, found none")
    for name in names:
        if name not in STATISTICS:
            raise UnknownNameError("statistic", name, STATISTICS)
    return tuple(names)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
