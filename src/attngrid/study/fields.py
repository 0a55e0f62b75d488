"""The types of a configuration's values: names that are looked up, and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import (
    AfterValidator,
    Field,
)

from attngrid.core.errors import AttngridError
from attngrid.core.validation import RECIPE_NAME
from attngrid.data.registry import full_name
from attngrid.models.registry import find_attention, find_backbone

Item = TypeVar("Item")


def _known(find: Callable[[str], object]) -> AfterValidator:
    """A validator of names: what ``find`` raises lists the near ones."""

    def check(name: str) -> str:
        find(name)
        return name

    return _checked(check)


def _checked(check: Callable[[str], str]) -> AfterValidator:
    """A validator whose error pydantic sets behind the key, as it does with its own."""

    def checked(name: str) -> str:
        try:
            return check(name)
        except AttngridError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(checked)


Dataset = Annotated[str, _checked(full_name)]


Backbone = Annotated[str, _known(find_backbone)]


Attention = Annotated[str, _known(find_attention)]


RecipeName = Annotated[str, Field(pattern=RECIPE_NAME, max_length=40)]


# YAML's lists; `strict` would want tuples
Listed = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]
