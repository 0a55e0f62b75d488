"""Statistics of a feature map, in float32 even where autocast makes the map narrower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.models.forms import by_images, has_fast_form

CHANNEL = (2, 3)  # per channel: over height and width
POSITION = (1,)  # per position: over channels


def mean(x_NCHW: Tensor, over: tuple[int, ...]) -> Tensor:
    """The mean over dimensions, which are kept; accumulated in float32 or wider."""
    return x_NCHW.mean(over, keepdim=True, dtype=_wide(x_NCHW))


def maximum(x_NCHW: Tensor, over: tuple[int, ...]) -> Tensor:
    """The maximum over dimensions; ties share the gradient, the same way on every device."""
    return x_NCHW.amax(over, keepdim=True).to(_wide(x_NCHW))


def deviation(x_NCHW: Tensor, over: tuple[int, ...]) -> Tensor:
    """The standard deviation (÷ n−1), 0 for a single value, with a gradient of 0 where it is 0.

    Two passes over the values, not E[x²]−E[x]², which at mean 30 and deviation 0.01 has no
    digit right in float32.
    """
    wide = x_NCHW.to(_wide(x_NCHW))
    return wide.std(over, correction=min(1, _count(x_NCHW, over) - 1), keepdim=True)


Statistic = Callable[[Tensor, tuple[int, ...]], Tensor]
STATISTICS: dict[str, Statistic] = {"avg": mean, "max": maximum, "std": deviation}


def known(names: Sequence[str]) -> tuple[str, ...]:
    """Names of statistics, checked.

    Raises:
        ConfigError: no name at all.
        UnknownNameError: a name that is none of ``STATISTICS``.
    """
    if not names:
        raise ConfigError(f"statistics must be one or more of {', '.join(STATISTICS)}, found none")
    for name in names:
        if name not in STATISTICS:
            raise UnknownNameError("statistic", name, STATISTICS)
    return tuple(names)


def squeeze(
    x_NCHW: Tensor, statistics: Sequence[str], over: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """A feature map and some of its statistics, float32 or wider.

    On the CPU all of them and their gradients are one operator, in far fewer passes over the map
    than one by one; its gradient is added to that of the map which it returns, so go on with that.

    Args:
        x_NCHW: the map.
        statistics: names of ``STATISTICS``.
        over: ``CHANNEL`` or ``POSITION``.

    Returns:
        The map, and its statistics: N×C per channel, N×1×H×W per position.
    """
    x_NCHW, found = _squeezed(x_NCHW, [(name, over) for name in statistics])
    return x_NCHW, [value.flatten(1) for value in found] if over == CHANNEL else found


def squeeze_both(
    x_NCHW: Tensor, statistics: Sequence[str]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """As ``squeeze``, per channel N×C and per position N×1×H×W, in still fewer passes."""
    wanted = [(name, over) for over in (CHANNEL, POSITION) for name in statistics]
    x_NCHW, found = _squeezed(x_NCHW, wanted)
    count = len(statistics)
    return x_NCHW, [value.flatten(1) for value in found[:count]], found[count:]


# A statistic's name, and what it is over.
Key = tuple[str, tuple[int, ...]]


def _squeezed(x: Tensor, wanted: Sequence[Key]) -> tuple[Tensor, list[Tensor]]:
    if not has_fast_form(x):
        return x, [STATISTICS[name](x, over) for name, over in wanted]
    x, *found = _Squeeze.apply(x, wanted)
    return x, found


def normalised_conv(conv: nn.Module, bn: nn.Module, pooled_N1HW: Sequence[Tensor]) -> Tensor:
    """``BN(conv([p₁;…;p_k]))`` of statistics per position, to N×1×H×W, float32 or wider.

    With the statistics side by side in memory, where PyTorch would lay one behind the other: oneDNN
    is three times as fast then. Normalised in float32: PyTorch rounds the sums of a gradient that
    does not lie as its input does to bfloat16, and one of the gradients before it was 10 % off.
    """
    pooled_NKHW = torch.cat(list(pooled_N1HW), 1).contiguous(memory_format=torch.channels_last)
    features_N1HW = conv(pooled_NKHW)
    logits_N1HW: Tensor = bn(features_N1HW.to(_wide(features_N1HW)))
    return logits_N1HW


class _Squeeze(torch.autograd.Function):
    """The statistics of ``STATISTICS`` and the map itself, whose gradients come back as one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wanted: Sequence[Key]) -> tuple[Tensor, ...]:
        means = [("avg", over) for name, over in wanted if name == "std"]
        # deviations last: the last one may have the copy that the others were computed of
        kept = sorted(dict.fromkeys([*means, *wanted]), key=lambda key: key[0] == "std")

        def found(x: Tensor) -> tuple[Tensor, ...]:
            wide, values = x.to(_wide(x)), dict[Key, Tensor]()
            for number, (name, over) in enumerate(kept, 1):
                if name == "avg":
                    value = wide.mean(over, keepdim=True)
                elif name == "max":
                    value = wide.amax(over, keepdim=True)
                else:
                    spare = number == len(kept) and wide is not x
                    centred = torch.sub(wide, values["avg", over], out=wide if spare else None)
                    value = _root_of_squares(centred, over).div_(_freedom(x, over) ** 0.5)
                values[name, over] = value
            return tuple(values.values())

        values = dict(zip(kept, by_images(found, x), strict=True))
        ctx.wanted, ctx.kept = wanted, kept
        ctx.save_for_backward(x, *values.values())
        ctx.set_materialize_grads(False)
        return (x, *(values[key] for key in wanted))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_x: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
        x, *values = ctx.saved_tensors
        given = {k: grad for k, grad in zip(ctx.wanted, grads, strict=True) if grad is not None}

        def add_gradients(out: Tensor, x: Tensor, *tensors: Tensor) -> tuple[()]:
            value = dict(zip(ctx.kept, tensors, strict=False))
            total = out.zero_() if grad_x is None else tensors[-1]
            offsets = dict[tuple[int, ...], Tensor]()
            made = None  # of the map, to be scaled
            for (name, over), grad in zip(given, tensors[len(values) :], strict=False):
                if name == "avg":
                    offsets[over] = offsets.get(over, 0) + grad / _count(x, over)
                    continue
                made = torch.empty_like(x) if made is None else made
                if name == "std":
                    std, mean = value[name, over], value["avg", over]
                    scale = torch.where(std > 0, grad / (std * _freedom(x, over)), 0)
                    # A narrow map less a narrow mean is exact where they are close; what narrowing
                    # took from the mean is the same for all values.
                    centre = mean.to(x.dtype)
                    torch.sub(x, centre, out=made)
                    if centre is not mean:
                        offsets[over] = offsets.get(over, 0) + (centre - mean) * scale
                else:
                    torch.eq(x, value[name, over].to(x.dtype), out=made)
                    scale = grad / made.sum(over, keepdim=True).to(grad.dtype)  # ties share it
                total = torch.addcmul(total, made, scale.to(x.dtype), out=out)
            for offset in offsets.values():
                total = torch.add(total, offset.to(x.dtype), out=out)
            return ()

        if not given:
            return grad_x, None
        out = torch.empty_like(x)
        by_images(
            add_gradients, out, x, *values, *given.values(), *([] if grad_x is None else [grad_x])
        )
        return out, None


def _root_of_squares(x: Tensor, over: tuple[int, ...]) -> Tensor:
    """The root of the sum of squares, kept dimensions; of x nothing is left."""
    if over == POSITION:
        norm: Tensor = torch.linalg.vector_norm(x, dim=over, keepdim=True)
        return norm
    return x.square_().sum(over, keepdim=True).sqrt_()  # faster than its norm


def _freedom(x: Tensor, over: tuple[int, ...]) -> int:
    """Values that a deviation is of, less the mean; 1 for a single value."""
    return max(1, _count(x, over) - 1)


def _count(x: Tensor, over: tuple[int, ...]) -> int:
    """Values that a statistic is of."""
    count = 1
    for dimension in over:
        count *= x.shape[dimension]
    return count


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
