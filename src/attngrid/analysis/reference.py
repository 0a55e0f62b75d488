"""The figures that the papers print: the CSVs of ``reference/``."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.core.files import home, shipped
from attngrid.models.registry import find_attention, find_backbone

REFERENCE = Path("reference")
Model = tuple[str, str]  # backbone and attention


def is_number(text: str) -> bool:
    """Whether a printed figure is a plain decimal number."""
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def read_published(
    name: str, columns: Mapping[str, str], where: str
) -> dict[Model, dict[str, str]]:
    """Read a CSV of published figures. Every figure stays text, as it is printed.

    Args:
        name: the name of the file.
        columns: the columns it must have, each by the configuration key that names it.
        where: the start of an error message: the file, and the keys above ``columns``.

    Raises:
        ConfigError: the file or a column does not exist, the file is not UTF-8, a model is unknown
            or has two rows, or a figure is neither a number nor missing (empty or ``--``).
    """
    file = shipped(REFERENCE / name)
    if not file.is_file():
        folders = {REFERENCE, home() / REFERENCE}
        known = sorted({other.name for folder in folders for other in folder.glob("*.csv")})
        raise ConfigError(f"{where}published: found {name!r}, {REFERENCE} has {', '.join(known)}")
    try:
        # Excel begins a file with a byte order mark
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: byte {error.start + 1} is not UTF-8; save the file as CSV UTF-8"
        ) from None
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True, restval="")
    header, rows = reader.fieldnames or [], list(reader)
    for key, column in (("published", "backbone"), ("published", "attention"), *columns.items()):
        if column not in header:
            raise ConfigError(
                f"{where}{key}: needs a column {column!r}; {file} has {', '.join(header)}"
            )
    for number, row in enumerate(rows, 2):  # the header is line 1
        for column, find in (("backbone", find_backbone), ("attention", find_attention)):
            try:
                find(row[column])
            except AttngridError as error:
                raise ConfigError(f"{file}, line {number}, {column}: {error}") from None
        for column in columns.values():
            if row[column] not in ("", "--") and not is_number(row[column]):
                raise ConfigError(
                    f"{file}, line {number}, {column}: found {row[column]!r}; needs a number, or "
                    "nothing"
                )
    published = {(row["backbone"], row["attention"]): row for row in rows}
    if len(published) < len(rows):
        raise ConfigError(f"{file}: found two rows of the same backbone and attention; needs one")
    return published
