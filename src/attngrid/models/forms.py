"""Attention in the forms that measured best, or literally, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Values of a map computed at once, 4 MB in float32, which stay near the processor.
PIECE = 2**20


class Switch:
    """Off, but for what runs within ``with switch():``.

    Of all threads: a compiler can look at an attribute, and not, before torch 2.14, at a
    ``ContextVar``.

    Attributes:
        on: whether this runs within it.
    """

    def __init__(self) -> None:
        self.on = False

    @contextmanager
    def __call__(self, on: bool = True) -> Iterator[None]:
        """Turn it on for what runs within; ``on=False`` turns it off, inside of another."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before


# Literal forms within: the same function and gradient, but for rounding, in more time.
literal_forms = Switch()


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether a map is on the CPU, with nobody looking on who wants to see single operators.

    A compiler fuses literal forms by itself, and a tracer counts their operators.
    """
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return x.is_cpu and not traced


def has_fast_form(x: Tensor) -> bool:
    """Whether modules compute of a map by other forms than the literal ones now."""
    return is_eager_on_cpu(x) and not literal_forms.on


def by_images(compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
    """What a function makes of some tensors, of as many images at a time as make a piece.

    Args:
        compute: tensors of some images to small tensors of these; a large one is better among the
            arguments, to be written into than to be put together of its pieces.
        tensors: of N images each; the first one's size counts.
    """
    images = max(1, PIECE * len(tensors[0]) // max(1, tensors[0].numel()))
    if images >= len(tensors[0]):
        return list(compute(*tensors))
    pieces = zip(*(torch.split(tensor, images) for tensor in tensors), strict=True)
    made = [compute(*piece) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]
