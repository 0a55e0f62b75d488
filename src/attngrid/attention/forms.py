"""Attention in the forms that measured best, or literally, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_LITERAL: ContextVar[bool] = ContextVar("literal", default=False)


def is_literal() -> bool:
    """Whether modules compute by their literal forms now."""
    return _LITERAL.get()


def has_fast_form(x: Tensor) -> bool:
    """Whether a map is on the CPU, with nobody looking on who wants to see single operators.

    A compiler fuses literal forms by itself, and a tracer counts their operators.
    """
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return x.is_cpu and not traced and not is_literal()


@contextmanager
def literal_forms(on: bool = True) -> Iterator[None]:
    """Literal forms within: the same function and gradient, but for rounding, in more time."""
    token = _LITERAL.set(on)
    try:
        yield
    finally:
        _LITERAL.reset(token)
