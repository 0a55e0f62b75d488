"""The width at which the baseline costs as much as the network with an attention module."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import nn

from attngrid.core.errors import ConfigError
from attngrid.models.registry import Quantity

STEP = 1 / 512


def torch_macs(model: nn.Module, input_size: int) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products, by torch's counter.

    Args:
        model: on ``torch.device("meta")``, because on a CPU torch counts fused attention as 0.
        input_size: height and width of the image in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, 0.1 s

    image = torch.zeros(1, 3, input_size, input_size, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return int(counter.get_total_flops()) // 2  # torch counts multiplications and additions


def matched_width(
    create: Callable[[str, float], nn.Module],
    attention: str,
    quantity: Quantity,
    *,
    input_size: int,
    width: float,
) -> float:
    """The multiple of 1/512 at which the baseline's cost is closest to the network's.

    Args:
        create: builds the backbone from the name of its attention and its width.
        attention: the module of the network to match.
        quantity: the cost to match.
        input_size: height and width of the images in pixels.
        width: width of the network with the module; the search ends at 16 times this width.

    Raises:
        ConfigError: all baselines in this range cost less; or the closest one costs no more than
            the baseline itself, and would be trained a second time under another name.
    """

    def cost(attention: str, width: float) -> int:
        with torch.device("meta"):
            model = create(attention, width)
        if quantity == "macs":
            return torch_macs(model, input_size)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    goal = cost(attention, width)
    steps = range(max(1, int(width / STEP)), int(16 * width / STEP))
    above = bisect_left(steps, goal, key=lambda step: cost("none", step * STEP))
    if above == len(steps):
        raise ConfigError(f"no baseline up to width {16 * width:g} has {attention}'s {quantity}")
    near = steps[max(0, above - 1) : above + 1]
    best = STEP * min(near, key=lambda step: abs(cost("none", step * STEP) - goal))
    if cost("none", best) == (own := cost("none", width)):
        raise ConfigError(
            f"{attention} adds {goal - own:,} {quantity} to {own:,}, less than a wider baseline "
            "would: this control is the baseline itself; leave it out, with its claims"
        )
    return best
