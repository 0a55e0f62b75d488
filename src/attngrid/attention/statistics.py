"""Statistics of a feature map, in float32 even where autocast makes the map narrower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attngrid.errors import ConfigError, UnknownNameError

CHANNEL = (2, 3)  # per channel: over height and width
POSITION = (1,)  # per position: over channels


def mean(x_NCHW: Tensor, over: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The mean over dimensions, accumulated in float32 or wider."""
    return x_NCHW.mean(over, keepdim=keepdim, dtype=_wide(x_NCHW))


def maximum(x_NCHW: Tensor, over: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The maximum over dimensions; ties share the gradient, the same way on every device."""
    return x_NCHW.amax(over, keepdim=keepdim).to(_wide(x_NCHW))


def deviation(x_NCHW: Tensor, over: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The standard deviation (÷ n−1), 0 for a single value, with a gradient of 0 where it is 0.

    Two passes over the values, not E[x²]−E[x]², which at mean 30 and deviation 0.01 has no
    digit right in float32.
    """
    count = 1
    for dimension in over:
        count *= x_NCHW.shape[dimension]
    wide = x_NCHW.to(_wide(x_NCHW))
    return wide.std(over, correction=min(1, count - 1), keepdim=keepdim)


Statistic = Callable[..., Tensor]
STATISTICS: dict[str, Statistic] = {"avg": mean, "max": maximum, "std": deviation}


def find_all(names: Sequence[str]) -> list[Statistic]:
    """The statistics of some names.

    Raises:
        ConfigError: no name at all.
        UnknownNameError: a name that is none of ``STATISTICS``.
    """
    if not names:
        raise ConfigError(f"statistics must be one or more of {', '.join(STATISTICS)}, found none")
    for name in names:
        if name not in STATISTICS:
            raise UnknownNameError("statistic", name, STATISTICS)
    return [STATISTICS[name] for name in names]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
