"""Tables: a description in YAML, the published figures, the study's frame → .tex, .md, .csv.

A published number and a measured one never share a column. What was not measured is ``--``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, pairwise, product
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from attngrid.analysis.frames import LOST, read_frame
from attngrid.analysis.optional import can_test
from attngrid.core.files import shipped, write_atomically
from attngrid.measure.cost_file import FILE, by_machine, measured_as, read_costs
from attngrid.models.registry import trained_attention
from attngrid.render.description import (
    Column,
    CountedAt,
    Description,
    load_description,
    read_published,
)
from attngrid.study.labels import model_label
from attngrid.study.schema import Study

MISSING = "--"
PAGE = 42  # rows that fit on a page, with heads and rules
Model = tuple[str, str]  # backbone and attention
SummaryRow = dict[Any, Any]  # of the frame over seeds
Costs = dict[Model, dict[str, str]]  # of a machine


@dataclass(frozen=True)
class Value:
    """What a cell of a table shows: a number, with its deviation over seeds, or a word.

    It is bold where it is better than all it is compared with, beyond what seeds explain.
    """

    word: str = MISSING
    number: str = ""
    deviation: str = ""
    bold: bool = False

    @property
    def text(self) -> str:
        """``29.60 ± 0.10``, ``29.60`` or the word."""
        return f"{self.number} ± {self.deviation}" if self.deviation else self.number or self.word

    @property
    def tex(self) -> Tex:
        """The number for a siunitx column, which wants words in braces."""
        bold = r"\bfseries " if self.bold else ""
        return Tex(bold + self.number if self.number else f"{{{escape(self.word)}}}")

    @property
    def tex_deviation(self) -> Tex:
        """The deviation, for the column that follows the number's."""
        return Tex(rf"${{}}\pm {self.deviation}$" if self.deviation else "")


@dataclass(frozen=True)
class Head:
    """A column's heads: of its group, such as ``Published``, and its own.

    Attributes:
        group, title: the heads.
        decimals: of its numbers; None for a column of words.
        span: LaTeX columns it takes, two where a deviation follows the number.
    """

    group: str
    title: str
    decimals: int | None
    span: int


@dataclass(frozen=True)
class Row:
    """A model and its values, in the order of the heads.

    Attributes:
        label, values: what is set.
        starts_backbone: whether a rule comes first.
        model: backbone and attention; None where it is of several.
        condition: where the row is of one; None: of all.
        claims: the ids of the claims that it is of.
    """

    label: str
    values: tuple[Value, ...]
    starts_backbone: bool
    model: Model | None = None
    condition: str | None = None
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table ready to be set, and the same as a frame with one row a model and condition.

    Attributes:
        stem: of its files: ``demo.grid``, or ``claims`` where it is of no study.
        caption, heads, rows: what is set.
        frame: the same, unrounded.
        stub: the head over the rows' labels.
        provenance: what is behind it, line by line; a comment under the LaTeX.
    """

    stem: str
    caption: str
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]
    frame: pd.DataFrame
    stub: str = "Model"
    provenance: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Where it is written."""
        return [Path("tables") / f"{self.stem}.{kind}" for kind in ("tex", "md", "csv")]

    @property
    def parts(self) -> list[list[Row]]:
        """The rows by pages; a backbone is broken only where it fits on none."""
        starts = [index for index, row in enumerate(self.rows) if row.starts_backbone]
        parts: list[list[Row]] = [[]]
        for start, end in pairwise([0, *starts, len(self.rows)]):
            if parts[-1] and len(parts[-1]) + end - start > PAGE:
                parts.append([])
            for row in self.rows[start:end]:
                if len(parts[-1]) == PAGE:
                    parts.append([])
                parts[-1].append(row)
        return parts

    @property
    def groups(self) -> list[tuple[str, list[Head]]]:
        """Neighbouring heads of one group."""
        return [(title, list(heads)) for title, heads in groupby(self.heads, lambda h: h.group)]


def build_table(
    study: Study | None,
    summary: pd.DataFrame,
    file: Path,
    *,
    cells: pd.DataFrame | None = None,
    reference: Path = Path("reference"),
    complexity: Path = Path("results/complexity.csv"),
    cost: Path = FILE,
) -> Table:
    """Set published, counted and measured figures side by side.

    Args:
        study: whose table it is; None for one that only counts and times.
        summary: its models over their seeds.
        file: the description.
        cells: the cells behind the summary, for the table's provenance.
        reference: the folder of the published CSVs.
        complexity: the counts at the papers' full size.
        cost: times and memory at that size.

    Raises:
        ConfigError: a description whose published file or columns do not exist.
    """
    description = load_description(file)
    if description.attentions is not None:
        summary = summary[summary["attention"].isin(description.attentions)]
    published = read_published(description, file, reference)
    counted = _counted(description.counted_at, complexity)
    costs = _costs(description, cost)
    models = _models(description, published, summary)
    groups, lines = _arrange(description, models, summary)
    if description.counted_at and not any(column.measured for column in description.columns):
        groups = []  # the study has nothing to add

    heads: list[Head] = []
    columns: list[list[Value]] = []

    def add(group: str, title: str, decimals: int | None, values: Iterable[Value]) -> None:
        columns.append(list(values))
        span = 2 if any(value.deviation for value in columns[-1]) else 1
        heads.append(Head(group, title, decimals, span))

    for column in description.columns:
        if column.published:
            printed = [published.get(model, {}).get(column.published) for model, _ in lines]
            values = [_printed(text) for text in printed]
            add(description.published_title, column.title, column.decimals, values)
    if description.counted_at:
        for column in description.columns:
            if column.counted:
                numbers = [counted.get(model, {}).get(column.counted) for model, _ in lines]
                values = [_number(number, column) for number in numbers]
                add(description.counted_at.title, column.title, column.decimals, values)
    for machine, taken in costs.items():
        for column in description.columns:
            if column.cost:
                numbers = [_taken(taken, model, column) for model, _ in lines]
                values = [_number(number, column) for number in numbers]
                add(f"Measured: {machine}", column.title, column.decimals, values)
    for head, ours in groups:
        if any(condition for _, condition in lines):
            add(head, "Condition", None, [Value(condition) for _, condition in lines])
        for column in description.columns:
            if column.counted and not description.counted_at:
                counts = [_number(row[column.counted] if row else None, column) for row in ours]
                add(head, column.title, column.decimals, counts)
            if column.measured:
                best = _best(ours, column)
                values = [_measured(row, column) for row in ours]
                values = [replace(v, bold=place in best) for place, v in enumerate(values)]
                add(head, column.title, column.decimals, values)
            if column.recipe:
                settings = [_number(row[column.recipe] if row else None, column) for row in ours]
                add(head, column.title, column.decimals, settings)
        add(head, "n", None, map(_seeds, ours))

    conditions: list[str | None] = [None] * len(lines)
    if any(condition for _, condition in lines):
        conditions = [None if row is None else row["condition"] for row in groups[0][1]]
    sources = [f"reference/{description.published}"] if description.published else []
    if any(column.counted for column in description.columns):
        own_size = study is not None and description.counted_at is None
        folder = f"results/{study.study}" if study and own_size else "results"
        sources.append(f"{folder}/complexity.csv")

    return Table(
        stem=f"{study.study}.{file.stem}" if study else file.stem,
        caption=description.caption,
        heads=tuple(heads),
        rows=tuple(
            Row(
                model_label(*model),
                tuple(column[index] for column in columns),
                starts_backbone=index > 0 and model[0] != lines[index - 1][0][0],
                model=model,
                condition=conditions[index],
            )
            for index, (model, _) in enumerate(lines)
        ),
        frame=_frame(description, models, published, counted, costs, summary),
        provenance=(*sources, *(_behind(study, cells, models, description) if study else ())),
    )


def _behind(
    study: Study,
    cells: pd.DataFrame | None,
    models: Sequence[Model],
    description: Description,
) -> list[str]:
    """The records behind a table, each with the code that made it, and their configuration."""
    if cells is None or not any(column.measured for column in description.columns):
        return []
    shown = [model in models for model in zip(cells["backbone"], cells["attention"], strict=True)]
    rows = cells[pd.Series(shown, index=cells.index, dtype=bool) & (cells["state"] == "measured")]
    if description.attentions is not None:
        rows = rows[rows["attention"].isin(description.attentions)]
    rows = rows.drop_duplicates("id")
    if rows.empty:
        return ["no record: nothing of it was measured"]
    head = f"study {study.study}, configuration {study.digest[:12]}, {len(rows)} records:"
    commits = rows["commit"].astype(object).fillna("unknown")
    return [head, *(f"{i}, commit {c}" for i, c in zip(rows["id"], commits, strict=True))]


def _arrange(
    description: Description, models: Sequence[Model], summary: pd.DataFrame
) -> tuple[list[tuple[str, list[SummaryRow | None]]], list[tuple[Model, str]]]:
    """The study's conditions as groups of columns beside each other, or as lines of one group.

    Returns:
        The groups, each a head and its rows of the summary, and the table's lines, each a model
        and what its condition adds to the head.
    """
    by_line: dict[tuple[Model, str], SummaryRow] = {
        ((row["backbone"], row["attention"]), row["condition"]): row
        for row in summary.to_dict("records")
        if (row["backbone"], row["attention"]) in models
    }
    conditions = list(dict.fromkeys(condition for _, condition in by_line))
    if description.conditions == "columns" or len(conditions) < 2:
        groups = [
            (f"Ours: {condition}", [by_line.get((model, condition)) for model in models])
            for condition in conditions
        ]
        return groups, [(model, "") for model in models]
    lines = []
    for model in models:
        ran = [(model, condition) for condition in conditions if (model, condition) in by_line]
        lines += ran or [(model, "")]
    parts = {condition: condition.split(", ") for condition in conditions}
    shared = [part for part in parts[conditions[0]] if all(part in p for p in parts.values())]
    own = {c: ", ".join(part for part in p if part not in shared) for c, p in parts.items()}
    ours = [by_line.get(line) for line in lines]
    head = f"Ours: {', '.join(shared)}"
    return [(head, ours)], [(model, own.get(c, "") or "default") for model, c in lines]


def _counted(at: CountedAt | None, complexity: Path) -> dict[Model, dict[Any, Any]]:
    """The counts at a geometry by model; empty until they have been made."""
    complexity = shipped(complexity)
    if at is None or not complexity.is_file():
        return {}
    frame = read_frame(complexity)
    for name, value in {**at.model_dump(), "options": ""}.items():
        frame = frame[frame[name] == value]
    return {(row["backbone"], row["attention"]): row for row in frame.to_dict("records")}


def _costs(description: Description, cost: Path) -> dict[str, Costs]:
    """Times and memory by machine; where nothing was measured, under a head that says so."""
    at = description.counted_at
    if at is None or not any(column.cost for column in description.columns):
        return {}
    return by_machine(read_costs(cost), **at.model_dump()) or {"nothing yet": {}}


def _taken(taken: Costs, model: Model, column: Column) -> float | None:
    """A figure of a model on a machine."""
    backbone, attention = model
    text = taken.get((backbone, measured_as(attention)), {}).get(column.cost or "")
    return float(text) if text else None


def _models(
    description: Description, published: Iterable[Model], summary: pd.DataFrame
) -> list[Model]:
    """The description's rows; else the published ones and the study's, by backbone."""
    if description.models is not None:
        blocks = [product(block.backbones, block.attentions) for block in description.models]
        models = list(dict.fromkeys(chain(*blocks)))
    else:
        ran = zip(summary["backbone"], summary["attention"], strict=True)
        models = list(dict.fromkeys(chain(published, ran)))
    backbones = list(dict.fromkeys(backbone for backbone, _ in models))
    return sorted(models, key=lambda model: backbones.index(model[0]))


def _printed(text: str | None) -> Value:
    """A published figure, digit for digit; what is no number is a word."""
    if not text:
        return Value()
    return Value(number=text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else Value(text)


def _number(number: float | None, column: Column) -> Value:
    if number is None or pd.isna(number):
        return Value()
    return Value(number=f"{number / column.unit:.{column.decimals}f}")


def _measured(row: dict[Any, Any] | None, column: Column) -> Value:
    """Mean ± deviation over the seeds; where there is none, why."""
    if row is None:
        return Value()
    if not row["n"]:
        return Value(next((state for state in LOST if row[f"n_{state}"]), MISSING))
    mean, deviation = statistics(row, column)
    return Value(
        number=f"{mean:.{column.decimals}f}",
        deviation=f"{deviation:.{column.decimals}f}" if row["n"] > 1 else "",
    )


def _best(rows: Sequence[SummaryRow | None], column: Column) -> set[int]:
    """The places of each backbone's best model in a condition, where it is so beyond doubt.

    None where SciPy and statsmodels are not installed.
    """
    assert column.measured is not None
    if column.measured.endswith("selection"):
        return set()  # none is better for it
    if not can_test() or not any(row and row["n"] > 1 for row in rows):
        return set()
    from attngrid.analysis.comparison import best_of

    sign = 1 if column.measured.endswith("accuracy") else -1
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        if row is not None and row["n"]:
            groups.setdefault((row["backbone"], row["condition"]), []).append(place)
    best: set[int] = set()
    for places in groups.values():
        # two names of one function share their records
        models: dict[str, list[int]] = {}
        for place in places:
            name = rows[place]["attention"]  # type: ignore[index]
            models.setdefault(trained_attention(name), []).append(place)
        samples = []
        for first, *_ in models.values():
            row = rows[first]
            assert row is not None
            mean, deviation = statistics(row, column)
            samples.append((sign * mean, deviation, int(row["n"])))
        if (winner := best_of(samples)) is not None:
            best.update(list(models.values())[winner])
    return best


def statistics(row: dict[Any, Any], column: Column) -> tuple[float, float]:
    """Mean and deviation of a column's metric; an accuracy is 100 less the error."""
    assert column.measured is not None
    error = column.measured.replace("accuracy", "error")
    mean = row[f"{error}_mean"]
    return (mean if error == column.measured else 100 - mean), row[f"{error}_std"]


def _seeds(row: dict[Any, Any] | None) -> Value:
    """How many seeds the mean is of, and how many have none to give."""
    if row is None or not (row["n"] or any(row[f"n_{state}"] for state in LOST)):
        return Value()
    lost = [f"{row[f'n_{state}']} {state}" for state in LOST if row["n"] and row[f"n_{state}"]]
    return Value(", ".join([str(row["n"]), *lost]))


def _frame(
    description: Description,
    models: Sequence[Model],
    published: dict[Model, dict[str, str]],
    counted: dict[Model, dict[Any, Any]],
    costs: dict[str, Costs],
    summary: pd.DataFrame,
) -> pd.DataFrame:
    """The table as a tidy frame: one row a model, condition and machine, unrounded."""
    by_model: dict[Model, list[dict[Any, Any]]] = {}
    for row in summary.to_dict("records"):
        by_model.setdefault((row["backbone"], row["attention"]), []).append(row)
    lines = []
    for model in models:
        for row, machine in product(by_model.get(model) or [{"n": 0}], costs or [None]):
            line: dict[str, Any] = {"backbone": model[0], "attention": model[1]}
            for column in description.columns:
                if column.published:
                    printed = published.get(model, {}).get(column.published)
                    line[f"published_{column.published}"] = printed
                if column.counted:
                    counts = counted.get(model, {}) if description.counted_at else row
                    line[f"counted_{column.counted}"] = counts.get(column.counted)
            if machine is not None:
                line["machine"] = machine
                for column in description.columns:
                    if column.cost:
                        line[column.cost] = _taken(costs[machine], model, column)
            line |= {"condition": row.get("condition"), "n": row["n"]}
            for column in description.columns:
                if column.measured:
                    mean, std = statistics(row, column) if row["n"] else (None, None)
                    line[f"measured_{column.measured}_mean"] = mean
                    line[f"measured_{column.measured}_std"] = std
                if column.recipe:
                    line[f"recipe_{column.recipe}"] = row.get(column.recipe)
            lines.append(line)
    return pd.DataFrame(lines)


def write_table(
    table: Table,
    templates: Path = Path("workflow/templates"),
    kinds: Sequence[str] = (".tex", ".md", ".csv"),
) -> None:
    """Write a table as LaTeX, Markdown and CSV, each atomically."""
    for file in table.files:
        if file.suffix not in kinds:
            continue
        if file.suffix == ".csv":
            text = table.frame.to_csv(index=False)
        else:
            template = f"table{file.suffix}.j2"
            text = (
                environment(shipped(templates), file.suffix)
                .get_template(template)
                .render(table=table)
            )
        write_atomically(file, text)


class Tex(str):
    """LaTeX source, which is not escaped again."""

    __slots__ = ()


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "Σ": r"$\Sigma$",
    "√": r"$\surd$",
    "σ": r"$\sigma$",
    **{digit: f"$^{place}$" for place, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{digit: f"$_{place}$" for place, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text as LaTeX sets it letter by letter."""
    return "".join(_TEX.get(character, character) for character in text)


def environment(templates: Path, kind: str) -> jinja2.Environment:
    r"""Jinja for LaTeX (``\VAR{}``, ``\BLOCK{}``; everything is escaped) or for Markdown."""
    loader = jinja2.FileSystemLoader(templates)
    common: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    if kind != ".tex":
        markdown = jinja2.Environment(
            loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=False, **common
        )
        markdown.filters["cell"] = lambda text: str(text).replace("|", r"\|").replace("_", r"\_")
        return markdown
    latex = jinja2.Environment(
        loader=loader,
        block_start_string=r"\BLOCK{",
        block_end_string="}",
        variable_start_string=r"\VAR{",
        variable_end_string="}",
        comment_start_string=r"\#{",
        comment_end_string="}",
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=lambda value: value if isinstance(value, Tex) else escape(str(value)),
        **common,
    )
    # in a comment or a \\label nothing is escaped, so only harmless characters go there
    latex.filters["identifier"] = lambda name: Tex(re.sub(r"[^A-Za-z0-9._-]+", "-", name))
    latex.filters["comment"] = lambda text: Tex(re.sub(r"[^ -~]+", "-", text))
    latex.globals["zip"] = zip
    latex.filters["column_type"] = _column_type
    latex.filters["stacked"] = _stacked
    return latex


def _column_type(table: Table, index: int) -> Tex:
    """S with room for the widest number, c for words; the deviation's column is left-aligned."""
    head = table.heads[index]
    numbers = [number for row in table.rows if (number := row.values[index].number)]
    if head.decimals is None or not numbers:
        return Tex("c")
    whole = max(len(number.partition(".")[0]) for number in numbers)
    deviations = "@{}l" if head.span == 2 else ""
    bold = ", detect-weight, mode=text" if any(row.values[index].bold for row in table.rows) else ""
    return Tex(f"S[table-format={whole}.{head.decimals}{bold}]{deviations}")


def _stacked(text: str) -> Tex:
    """A long head on two lines, broken at the comma nearest its middle."""
    commas = [match.end() for match in re.finditer(", ", text)]
    if len(text) < 30 or not commas:
        return Tex(escape(text))
    at = min(commas, key=lambda comma: abs(comma - len(text) / 2))
    return Tex(rf"\shortstack{{{escape(text[:at].rstrip())}\\{escape(text[at:])}}}")
