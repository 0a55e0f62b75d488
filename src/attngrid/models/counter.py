"""Multiply-accumulates by torch's own counter, on a model without memory or numbers."""

from __future__ import annotations

import torch
from torch import nn


def torch_macs(model: nn.Module, input_size: int) -> int:
    """Multiply-accumulates of convolutions, linear layers and products on one image.

    Args:
        model: built under ``torch.device("meta")``, where torch counts fused attention too; on
            the CPU it counts that as 0.
        input_size: H and W of the N×3×H×W image, in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode  # an eighth of a second, with triton

    image = torch.zeros(1, 3, input_size, input_size, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition
