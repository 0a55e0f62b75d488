"""Types of configuration values: names that a registry holds, and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from attngrid.core.errors import AttngridError
from attngrid.core.validation import RECIPE_NAME
from attngrid.data.registry import full_name
from attngrid.models.registry import find_attention, find_backbone

Item = TypeVar("Item")


def _known(find: Callable[[str], object]) -> AfterValidator:
    """Check that ``find`` knows a name; its error lists near matches."""

    def check(name: str) -> str:
        find(name)
        return name

    return _checked(check)


def _checked(check: Callable[[str], str]) -> AfterValidator:
    """Turn the errors of ``check`` into ``ValueError``, which pydantic reports with the key."""

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
# A YAML list; in strict mode pydantic would accept tuples only.
Listed = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]
