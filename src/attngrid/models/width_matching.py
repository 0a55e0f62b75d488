"""The baseline's width at which it costs as much as with an attention module."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import nn

from attngrid.core.errors import ConfigError

STEP = 1 / 512


def torch_macs(model: nn.Module, input_size: int) -> int:
    """Multiply-accumulates of convolutions, linear layers and products, by torch's counter.

    Args:
        model: built under ``torch.device("meta")``; on the CPU torch counts fused attention as 0.
        input_size: H and W of the one N×3×H×W image, in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, 0.1 s

    image = torch.zeros(1, 3, input_size, input_size, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return int(counter.get_total_flops()) // 2  # torch counts multiplications and additions


def matched_width(
    goal: Callable[[], nn.Module],
    baseline: Callable[[float], nn.Module],
    *,
    name: str,
    quantity: str,
    input_size: int,
    width: float,
) -> float:
    """The width, a multiple of 1/512, at which the baseline's cost is nearest to the goal's.

    Args:
        goal: builds the model with the attention module.
        baseline: builds the model without, from its width.
        name: the goal's, for the message.
        quantity: ``params`` or ``macs``.
        input_size: pixels a side of the images.
        width: of the model with the module; the search ends at 16 times this.

    Raises:
        ConfigError: no baseline is as large as the goal.
    """

    def cost(build: Callable[[], nn.Module]) -> int:
        with torch.device("meta"):
            model = build()
        if quantity == "macs":
            return torch_macs(model, input_size)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def cost_at(step: int) -> int:
        return cost(lambda: baseline(step * STEP))

    wanted = cost(goal)
    steps = range(max(1, int(width / STEP)), int(16 * width / STEP))
    above = bisect_left(steps, wanted, key=cost_at)
    if above == len(steps):
        raise ConfigError(f"no baseline is as large as {name}")
    near = [steps[index] for index in (above - 1, above) if index >= 0]
    return STEP * min(near, key=lambda step: abs(cost_at(step) - wanted))
