"""The figures that the papers print: the CSVs of ``reference/``."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from attngrid.core.errors import ConfigError
from attngrid.core.files import home, shipped

REFERENCE = Path("reference")
Model = tuple[str, str]  # backbone and attention


def is_number(text: str) -> bool:
    """Whether a printed figure is a plain decimal number."""
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def read_published(
    name: str, columns: Mapping[str, str], where: str, reference: Path = REFERENCE
) -> dict[Model, dict[str, str]]:
    """Read a CSV of published figures. Every figure stays text, as it is printed.

    Args:
        name: the name of the file.
        columns: the columns it must have, each by the configuration key that names it.
        where: the start of an error message: the file, and the keys above ``columns``.
        reference: the folder of the published CSVs.

    Raises:
        ConfigError: the file or a column does not exist, or a model has two rows.
    """
    file = shipped(reference / name)
    if not file.is_file():
        folders = {reference, home() / reference}
        known = sorted({other.name for folder in folders for other in folder.glob("*.csv")})
        raise ConfigError(f"{where}published: found {name!r}, {reference} has {', '.join(known)}")
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        header, rows = reader.fieldnames or [], list(reader)
    for key, column in (("published", "backbone"), ("published", "attention"), *columns.items()):
        if column not in header:
            raise ConfigError(
                f"{where}{key}: needs a column {column!r}; {file} has {', '.join(header)}"
            )
    published = {(row["backbone"], row["attention"]): row for row in rows}
    if len(published) < len(rows):
        raise ConfigError(f"{file}: found two rows of the same backbone and attention; needs one")
    return published
