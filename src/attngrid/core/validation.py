"""Validation of parsed YAML. The message has one line for each mistake."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.core.files import expand, read_yaml

SHOWN = 100  # characters of a wrong value
AnyModel = TypeVar("AnyModel", bound=BaseModel)

# Regular expressions of allowed text, and their descriptions in messages.
PATTERNS = {
    r"^[a-z0-9][a-z0-9_-]*$": "lowercase letters, digits, _ and -, starting with a letter or digit",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, _, . and -, starting with a letter or digit",
}
STUDY_NAME, RECIPE_NAME = PATTERNS


def validate(model: type[AnyModel], content: Any, source: str | os.PathLike[str]) -> AnyModel:
    """Check parsed YAML against a model.

    Raises:
        ConfigError: one line for each mistake: file, key, what was found, what is accepted.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source}: expected keys and values, found {type(content).__name__}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(content, error, source))) from None
    except AttngridError as error:
        raise ConfigError(f"{source}: {error}") from None


def _lines(content: Any, error: ValidationError, source: object) -> Iterator[str]:
    items = error.errors(include_url=False)
    for place, alike in groupby(items, lambda item: _place(content, item)):
        same_place = list(alike)
        location, kind = same_place[0]["loc"], same_place[0]["type"]
        if kind == "too_short" and any(
            item["loc"][: len(location)] == location != item["loc"] for item in items
        ):
            continue  # pydantic counts valid items only; invalid items have their own lines
        key = ".".join(map(str, place))
        mistake = _mistake(same_place)
        yield f"{source}: {key}: {mistake}" if key else f"{source}: {mistake}"


def _mistake(items: list[ErrorDetails]) -> str:
    """What is wrong with a value; pydantic gives one item for each type of a union."""
    item = items[0]
    found, context = item["input"], item.get("ctx", {})
    match item["type"]:
        case "missing" | "union_tag_not_found":
            return "is required and not there"
        case "value_error":
            return item["msg"].removeprefix("Value error, ")
        case "tuple_type":
            return f"found {_short(found)}; needs a list, such as [{_short(found, str)}]"
        case "union_tag_invalid":
            return f"found {context['tag']!r}; needs one of {context['expected_tags']}"
    needs = " or ".join(map(_need, items))
    return f"found {_short(found)}; needs {needs.replace(' or to be ', ' or ')}"


def _short(found: Any, write: Callable[[Any], str] = repr) -> str:
    """A value as Python writes it, cut where it is long."""
    text = write(found)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _need(item: ErrorDetails) -> str:
    """The accepted values, in words that follow "needs"."""
    match item["type"]:
        case "too_short":
            return "at least 1 item"
        case "string_pattern_mismatch":
            pattern = item["ctx"]["pattern"]
            return PATTERNS.get(pattern, f"to match {pattern}")
        case "model_type" | "model_attributes_type" | "dict_type":
            return "keys and values"
        case "bool_type" | "bool_parsing":
            return "to be true or false"
        case "string_type" if not isinstance(item["input"], str | list | dict):
            return "text, in quotes"
    return re.sub(r"^\w+ should ", "to ", item["msg"])


def _place(content: Any, item: ErrorDetails) -> tuple[int | str, ...]:
    """The path to a mistake's key, without the type names that pydantic adds for a union."""
    place: list[int | str] = []
    for step in item["loc"]:
        if isinstance(content, Mapping):
            is_there = step in content
        else:
            is_there = isinstance(content, list | tuple) and step in range(len(content))
        if is_there:
            content = content[step]
        elif item["type"] != "missing" or step != item["loc"][-1]:
            continue
        place.append(step)
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place.append(item["ctx"]["discriminator"].strip("'"))
    return tuple(place)


def name_sources(files: Iterable[str | os.PathLike[str]], overrides: Iterable[str] = ()) -> str:
    """The names of a run's configuration files and of its ``--config`` keys, for messages."""
    names = [os.path.relpath(file) for file in files]
    if keys := " ".join(overrides):
        names.append(f"--config {keys}")
    return " with ".join(names)


def settings_file(variable: str, default: Path) -> Path:
    """The file that an environment variable names, or else ``default``.

    Raises:
        ConfigError: the named file does not exist.
    """
    named = os.environ.get(variable)
    file = expand(named, f"{variable}: ") if named else default
    if named and not file.is_file():
        raise ConfigError(f"{variable}: found {named!r}; there is no such file")
    return file


def read_settings(model: type[AnyModel], file: Path) -> AnyModel:
    """Read and validate an optional file; without the file, return the model's defaults.

    Raises:
        ConfigError: the file is wrong; see ``read_yaml`` and ``validate``.
    """
    return _read_settings(model, file, file.stat().st_mtime_ns) if file.is_file() else model()


@lru_cache(maxsize=8)
def _read_settings(model: type[AnyModel], file: Path, modified: int) -> AnyModel:
    return validate(model, read_yaml(file) or {}, file)
