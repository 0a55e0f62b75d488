"""The cells, heads and rows of a table, and how to write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import pandas as pd

from attngrid.analysis.reference import Model
from attngrid.core.files import write_atomically
from attngrid.render.templates import Tex, escape, render

MISSING = "--"
PAGE_ROWS = 42  # rows that fit on a page, with heads and rules


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
    def pages(self) -> list[list[Row]]:
        """The rows of each page; a page break splits only a backbone longer than a page."""
        starts = [index for index, row in enumerate(self.rows) if row.starts_backbone]
        pages: list[list[Row]] = [[]]
        for start, end in pairwise([0, *starts, len(self.rows)]):
            if pages[-1] and len(pages[-1]) + end - start > PAGE_ROWS:
                pages.append([])
            for row in self.rows[start:end]:
                if len(pages[-1]) == PAGE_ROWS:
                    pages.append([])
                pages[-1].append(row)
        return pages

    @property
    def groups(self) -> list[tuple[str, list[Head]]]:
        """The groups of neighbouring heads."""
        return [(title, list(heads)) for title, heads in groupby(self.heads, lambda h: h.group)]

    @property
    def column_types(self) -> list[Tex]:
        """LaTeX column types: S with room for the widest number, c for words, l for the std."""
        types = []
        for index, head in enumerate(self.heads):
            values = [row.values[index] for row in self.rows]
            widths = [len(v.number.partition(".")[0]) for v in values if v.number]
            if head.decimals is None or not widths:
                types.append(Tex("c"))
                continue
            bold = ", detect-weight, mode=text" if any(v.bold for v in values) else ""
            std = "@{}l" if head.span == 2 else ""
            types.append(Tex(f"S[table-format={max(widths)}.{head.decimals}{bold}]{std}"))
        return types


def write_table(table: Table, kinds: Sequence[str] = (".tex", ".md", ".csv")) -> None:
    """Write a table as LaTeX, Markdown and CSV, each atomically."""
    for file in table.files:
        if file.suffix == ".csv" and file.suffix in kinds:
            write_atomically(file, table.frame.to_csv(index=False))
        elif file.suffix in kinds:
            write_atomically(file, render(f"table{file.suffix}.j2", table=table))
