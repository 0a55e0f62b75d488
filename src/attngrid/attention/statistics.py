"""Statistics of a feature map, in float32 even where autocast makes the map narrower."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNEL = (2, 3)  # per channel: over height and width
POSITION = (1,)  # per position: over channels


def mean(x_NCHW: Tensor, over: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The mean over dimensions, accumulated in float32 or wider."""
    wide = torch.promote_types(x_NCHW.dtype, torch.float32)
    return x_NCHW.mean(over, keepdim=keepdim, dtype=wide)


def maximum(x_NCHW: Tensor, over: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """The maximum over dimensions; ties share the gradient, the same way on every device."""
    wide = torch.promote_types(x_NCHW.dtype, torch.float32)
    return x_NCHW.amax(over, keepdim=keepdim).to(wide)
