"""The base class of every configuration section, and the number types of its fields."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from attngrid.core.errors import UnknownNameError


def _scientific(value: object) -> object:
    """Convert a string such as ``1e-4`` to a number, because YAML 1.1 reads it as a string."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


Number = Annotated[float, BeforeValidator(_scientific)]
# A number of something: more than a million of it is a slip.
Count = Annotated[int, Field(gt=0, le=1_000_000)]
CountFrom2 = Annotated[int, Field(ge=2, le=1_000_000)]
CountFrom0 = Annotated[int, Field(ge=0, le=1_000_000)]
# Height and width of an image in pixels.
Pixels = Annotated[int, Field(gt=0, le=10_000)]
# Threads, processes or GPUs of one machine.
Processors = Annotated[int, Field(gt=0, le=1024)]
Positive = Annotated[Number, Field(gt=0, le=1e6)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
WeightDecay = Annotated[Number, Field(ge=0, le=1e6)]


class Strict(BaseModel):
    """A typed section of a configuration: unknown keys and wrong types are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, section: Any) -> Any:
        keys = section if isinstance(section, dict) else ()
        unknown = [key for key in keys if key not in cls.model_fields]
        if unknown:
            errors = (UnknownNameError("key", str(key), cls.model_fields) for key in unknown)
            raise ValueError("; ".join(map(str, errors)))
        return section
