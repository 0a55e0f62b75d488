r"""Fit a table to pages at one size of type: wrapped, turned, split or continued, never shrunk.

Lengths are in points. They are estimated for 8 pt Latin Modern, ``\footnotesize`` of LaTeX's
``article``, and for that class's text block, the narrowest of the common ones. LaTeX measures
every table again and turns only those that are wider than its own text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING

from attngrid.render.templates import Tex, escape

if TYPE_CHECKING:
    from attngrid.render.layout import Head, Row, Table

WIDTH, HEIGHT = 345.0, 550.0  # text block of ``article``
EM, CAPTION_EM = 8.0, 9.4
LINE, CAPTION_LINE, RULE = 9.5, 12.0, 4.5  # of a row, of the caption, around a rule
GAP = 6.0  # between columns
MARGIN = 30.0  # above and below a caption, and a table's own rules
STUB = 150.0  # the narrowest width at which row labels are wrapped
FEWEST = 4  # rows of a last page
# Whether the table is turned, and the widest column of words: the first that fits is taken.
TRIES = [(False, math.inf), (False, 150.0), (False, 110.0)]
TRIES += [(True, math.inf), (True, 150.0), (True, 110.0), (True, 80.0)]
_NARROW, _WIDE = frozenset(" .,:;'|!()[]/-ijlfrt"), frozenset("mwMW%±×—≈≤≥")


@lru_cache(maxsize=1 << 16)
def text_width(text: str, em: float = EM) -> float:
    """An upper estimate of the width of a text in one line."""
    return em * sum(
        0.36 if c in _NARROW else 0.92 if c in _WIDE else 0.77 if c.isupper() else 0.54
        for c in text
    )


def wrap(text: str, width: float) -> list[str]:
    """Break a text between words into lines of at most this width; a long word is one line."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


@dataclass(frozen=True)
class Part:
    """The columns of a table that stand beside each other on a page."""

    table: Table
    places: tuple[int, ...]  # of the columns in the table
    turned: bool = False
    limit: float = math.inf  # of a column of words; wider ones are wrapped

    @property
    def heads(self) -> list[Head]:
        """The heads of these columns."""
        return [self.table.heads[place] for place in self.places]

    @property
    def groups(self) -> list[tuple[Tex, int]]:
        """The groups of neighbouring heads, each wrapped to its columns' width, and their spans."""
        groups, place = [], 0
        for title, heads in groupby(self.heads, lambda head: head.group):
            columns = list(heads)
            width = sum(self._width(p) for p in self.places[place : place + len(columns)])
            width += GAP * (len(columns) - 1)
            groups.append((stack(title, max(width, 40.0)), sum(head.span for head in columns)))
            place += len(columns)
        return groups

    @property
    def titles(self) -> list[Tex]:
        """The columns' titles, each wrapped to its column's width."""
        return [stack(self.table.heads[p].title, self._width(p)) for p in self.places]

    @property
    def stub_type(self) -> Tex:
        """The LaTeX type of the column of the rows' labels."""
        return _paragraph(self._stub) if self._wraps_stub else Tex("l")

    @property
    def column_types(self) -> list[Tex]:
        """LaTeX column types: S with room for the widest number, c or p for words, l for a std."""
        types = []
        for place, head in zip(self.places, self.heads, strict=True):
            values = [row.values[place] for row in self.table.rows]
            widths = [len(v.number.partition(".")[0]) for v in values if v.number]
            if head.decimals is None or not widths:
                wraps = self._naturals[place] > self.limit
                types.append(_paragraph(self.limit) if wraps else Tex("c"))
                continue
            bold = ", detect-weight, mode=text" if any(v.bold for v in values) else ""
            std = "@{}l" if head.span == 2 else ""
            types.append(Tex(f"S[table-format={max(widths)}.{head.decimals}{bold}]{std}"))
        return types

    @property
    def widest(self) -> list[Tex]:
        """An invisible row with the widest texts, so that all pages of a table are equally wide."""
        label = max((row.label for row in self.table.rows), key=text_width, default="")
        cells = ["" if self._wraps_stub else label]
        for place, head, kind in zip(self.places, self.heads, self.column_types, strict=True):
            values = [row.values[place] for row in self.table.rows]
            words = ["" if "p{" in kind or value.number else value.word for value in values]
            cells.append(max(words, key=text_width, default=""))
            if head.span == 2:
                cells.append("± " + max((value.std for value in values), key=text_width))
        return [Tex(rf"{{\hphantom{{{escape(text)}}}}}") for text in cells]

    @property
    def width(self) -> float:
        """The estimated width of the part."""
        return self._stub + sum(self._width(place) + GAP for place in self.places)

    @property
    def pages(self) -> list[list[Row]]:
        """The rows of each page, evenly; only a backbone longer than a page is broken."""
        across, along = (HEIGHT, WIDTH) if self.turned else (WIDTH, HEIGHT)
        caption = text_width(self.table.caption + " (continued)", CAPTION_EM)
        room = along - MARGIN - CAPTION_LINE * (1 + caption // across) - 4 * LINE
        starts = [place for place, row in enumerate(self.table.rows) if row.starts_backbone]
        blocks: list[Sequence[Row]] = []
        for start, end in pairwise([0, *starts, len(self.table.rows)]):
            block = self.table.rows[start:end]
            blocks += [block] if self._height(block) <= room else [[row] for row in block]
        pages = self._fill(blocks, room)
        lower = room
        while len(pages) > 1 and (lower := lower - LINE) > 0:
            even = self._fill(blocks, lower)
            if len(even) > len(pages):
                break
            pages = even
        missing = FEWEST - len(pages[-1])
        if len(pages) > 1 and 0 < missing < len(pages[-2]):
            pages[-2:] = [pages[-2][:-missing], pages[-2][-missing:] + pages[-1]]
        return pages

    def _fill(self, blocks: Iterable[Sequence[Row]], room: float) -> list[list[Row]]:
        """Rows by page; a page is higher than ``room`` only where a block is."""
        pages: list[list[Row]] = [[]]
        used = 0.0
        for block in blocks:
            height = self._height(block)
            if pages[-1] and used + height > max(room, height):
                pages.append([])
                used = 0.0
            pages[-1] += block
            used += height
        return pages

    def _height(self, rows: Sequence[Row]) -> float:
        return sum(self._heights[id(row)] for row in rows)

    @cached_property
    def _heights(self) -> dict[int, float]:
        """The height of each row, by its identity."""
        heights = {}
        for row in self.table.rows:
            cells = [(row.label, self._stub)] if self._wraps_stub else []
            if self.limit < math.inf:
                cells += [(row.values[place].text, self.limit) for place in self.places]
            lines = max([1, *(len(wrap(text, width)) for text, width in cells)])
            heights[id(row)] = LINE * lines + RULE * row.starts_backbone
        return heights

    @cached_property
    def _naturals(self) -> dict[int, float]:
        """The width of each column's widest value."""
        rows = self.table.rows
        return {
            place: max((text_width(row.values[place].text) for row in rows), default=0.0)
            for place in self.places
        }

    def _width(self, place: int) -> float:
        """The width of a column: its values', wrapped if they are words, or its title's words'."""
        head = self.table.heads[place]
        values = self._naturals[place]
        if head.decimals is None:
            values = min(values, self.limit)
        return max([values, *map(text_width, head.title.split())])

    @cached_property
    def _labels(self) -> float:
        return max(
            text_width(text) for text in (self.table.stub, *(r.label for r in self.table.rows))
        )

    @property
    def _stub(self) -> float:
        return min(self._labels, max(self.limit, STUB))

    @property
    def _wraps_stub(self) -> bool:
        return self._labels > self._stub


def fit(table: Table, places: Sequence[int] | None = None) -> list[Part]:
    """The parts of a table, each no wider than a page; cuts are between groups of columns."""
    places = tuple(range(len(table.heads)) if places is None else places)
    for turned, limit in TRIES:
        part = Part(table, places, turned, limit)
        if part.width <= (HEIGHT if turned else WIDTH):
            return [part]
    sizes = [len(list(heads)) for _, heads in groupby(places, lambda p: table.heads[p].group)]
    for cuts in ([*accumulate(sizes)][:-1], range(1, len(places))):
        for cut in reversed(cuts):
            if Part(table, places[:cut], *TRIES[-1]).width <= HEIGHT:
                return fit(table, places[:cut]) + fit(table, places[cut:])
    return [part]  # one column that is wider than a page


def sheets(table: Table) -> Iterator[tuple[Part, list[Row]]]:
    """The parts and rows of each float of a table, in their order."""
    for part in fit(table):
        for rows in part.pages:
            yield part, rows


def stack(text: str, width: float) -> Tex:
    """A head of a column as LaTeX, in as many lines as the width needs."""
    lines = r"\\".join(escape(line) for line in wrap(text, width))
    return Tex(rf"\shortstack{{{lines}}}" if r"\\" in lines else lines)


def _paragraph(width: float) -> Tex:
    return Tex(rf">{{\raggedright\arraybackslash}}p{{{width:.0f}pt}}")
