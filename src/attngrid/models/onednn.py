"""The workaround of a memory error in oneDNN, PyTorch's library of convolutions on CPUs.

https://github.com/uxlfoundation/oneDNN/issues/6035, open in oneDNN 3.12 (torch 2.14): the weight
gradient of a strided 1×1 convolution writes out of bounds if the channels are innermost in memory
and fewer than 16. Delete this file once the oldest torch that ``pyproject.toml`` allows has the
fix; the backbones then use ``nn.Conv2d``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

# The first torch release with the fix, as (2, 16); None while there is none.
FIXED_IN: tuple[int, int] | None = None
SAFE_CHANNELS = 16


def is_affected() -> bool:
    """Whether the installed torch has the error."""
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    return FIXED_IN is None or version < FIXED_IN


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that takes every stride-th pixel itself where oneDNN would fail to."""

    def forward(self, x: Tensor) -> Tensor:
        few = self.in_channels < SAFE_CHANNELS and self.groups == 1
        if few and x.is_cpu and self.kernel_size == (1, 1) != self.stride and is_affected():
            rows, columns = self.stride
            return conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)
        return super().forward(x)
