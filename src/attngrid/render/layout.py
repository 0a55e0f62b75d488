"""The cells, heads and rows of a table, and how to write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis.reference import Model
from attngrid.core.errors import ConfigError
from attngrid.core.files import write_atomically
from attngrid.render.fitting import fit, sheets
from attngrid.render.templates import Tex, escape, render

MISSING = "--"


@dataclass(frozen=True)
class Value:
    """The content of a table's cell: a number, with its std over seeds, or a word.

    It is bold if it is significantly better than all others of its backbone and condition.
    """

    word: str = MISSING
    number: str = ""
    std: str = ""
    bold: bool = False

    @property
    def text(self) -> str:
        """``29.60 ± 0.10``, ``29.60`` or the word."""
        return f"{self.number} ± {self.std}" if self.std else self.number or self.word

    @property
    def tex(self) -> Tex:
        """The number for a siunitx column; words have to be in braces there."""
        bold = r"\bfseries " if self.bold else ""
        return Tex(bold + self.number if self.number else f"{{{escape(self.word)}}}")

    @property
    def tex_std(self) -> Tex:
        """The std, for the column after the number."""
        return Tex(rf"${{}}\pm {self.std}$" if self.std else "")


@dataclass(frozen=True)
class Head:
    """The two heads of a column: its group, such as ``Published``, and its title."""

    group: str
    title: str
    decimals: int | None = None  # decimals of the numbers; None for a column of words
    span: int = 1  # LaTeX columns: two where a std follows the number


@dataclass(frozen=True)
class Row:
    """A row of a table, with its values in the order of the heads."""

    label: str
    values: tuple[Value, ...]
    starts_backbone: bool = False  # whether a rule precedes the row
    model: Model | None = None  # None if the row is about several models
    condition: str | None = None  # None if the row is about all conditions
    claims: tuple[str, ...] = ()  # ids of the claims that the row shows


@dataclass(frozen=True)
class Table:
    """A table to print, and the same data as an unrounded frame."""

    stem: str  # file name without suffix: ``demo.grid``, or ``claims`` without a study
    caption: str
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]
    frame: pd.DataFrame
    stub: str = "Model"  # the head over the rows' labels
    provenance: tuple[str, ...] = ()  # sources and records; a comment in the LaTeX

    @property
    def files(self) -> list[Path]:
        """The files of the table."""
        return [Path("tables") / f"{self.stem}.{kind}" for kind in ("tex", "md", "csv")]

    @property
    def groups(self) -> list[tuple[str, list[Head]]]:
        """The groups of neighbouring heads."""
        return [(title, list(heads)) for title, heads in groupby(self.heads, lambda h: h.group)]


def write_table(table: Table, kinds: Sequence[str] = (".tex", ".md", ".csv")) -> None:
    """Write a table as LaTeX, Markdown and CSV, each atomically."""
    for file in table.files:
        if file.suffix in kinds:
            write_atomically(file, _text(table, file))


def _text(table: Table, file: Path) -> str:
    if file.suffix == ".csv":
        return table.frame.map(_inert).to_csv(index=False)
    try:
        template = f"table{file.suffix}.j2"
        return render(template, table=table, parts=fit(table), sheets=[*sheets(table)])
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _inert(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula."""
    if not (isinstance(value, str) and value[:1] in ("=", "+", "-", "@")):
        return value
    if not value.strip("- "):  # not run
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
