"""Tables from a description in YAML, the published figures and a study's frame.

A published number and a measured one never share a column. A figure that was not measured is
``--``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis.dependencies import has_statistics
from attngrid.analysis.frames import COMPLEXITY, LOST, read_counts
from attngrid.analysis.reference import REFERENCE, Model, is_number
from attngrid.measure.cost_file import FILE, by_machine, read_costs
from attngrid.models.registry import trained_attention
from attngrid.render.description import Column, Description, load_description, read_figures
from attngrid.render.layout import MISSING, Head, Row, Table, Value
from attngrid.study.labels import model_label
from attngrid.study.schema import Study

SummaryRow = dict[Any, Any]  # of the frame over seeds
_Made = tuple[Head, list[Value]]  # a column
_OWN = ("counted", "measured", "recipe")  # from the study


@dataclass(frozen=True)
class _Sources:
    """Where a table's figures come from, each by model."""

    description: Description
    published: dict[Model, dict[str, str]]
    counted: dict[Model, dict[Any, Any]]
    costs: dict[str, dict[Model, dict[str, str]]]  # by machine

    def figure(
        self,
        kind: str,
        column: Column,
        model: Model,
        row: SummaryRow | None = None,
        machine: str = "",
    ) -> Any:
        """An unrounded figure of a model, or None; a published one is text.

        Args:
            kind: ``published``, ``counted``, ``cost`` or ``recipe``.
            column: its field of that name says which figure.
            model: backbone and attention.
            row: the model's row of the summary, for the study's own counts and recipe.
            machine: of a cost.
        """
        name = getattr(column, kind)
        if kind == "published":
            return self.published.get(model, {}).get(name)
        if kind == "cost":
            text = self.costs[machine].get((model[0], trained_attention(model[1])), {}).get(name)
            return float(text) if text else None
        if kind == "counted" and self.description.counted_at:
            return self.counted.get(model, {}).get(name)
        return row.get(name) if row else None


def build_table(
    study: Study | None,
    summary: pd.DataFrame,
    file: Path,
    *,
    cells: pd.DataFrame | None = None,
    reference: Path = REFERENCE,
    complexity: Path = COMPLEXITY,
    cost: Path = FILE,
) -> Table:
    """Set published, counted and measured figures side by side.

    Args:
        study: None for a table of counts and costs only.
        summary: the study's models over their seeds.
        file: the description.
        cells: the cells behind the summary, for the table's provenance.
        reference: the folder of the published CSVs.
        complexity: the counts at the papers' full size.
        cost: times and memory at that size.

    Raises:
        ConfigError: the description names a file or a column that does not exist.
    """
    description = load_description(file)
    if description.attentions is not None:
        summary = summary[summary["attention"].isin(description.attentions)]
    counted, costs = {}, {}
    if description.counted_at:
        at = description.counted_at.model_dump()
        counted = read_counts(complexity, **at)
        if any(column.cost for column in description.columns):
            costs = by_machine(read_costs(cost), **at) or {"nothing yet": {}}
    published = read_figures(description, file, reference)
    sources = _Sources(description, published, counted, costs)
    models = _models(description, published, summary)
    groups, lines = _arrange(description, models, summary)
    if description.counted_at and not any(column.measured for column in description.columns):
        groups = []
    columns = [
        *_reference_columns(sources, [model for model, _ in lines]),
        *_study_columns(sources, groups, lines),
    ]
    return Table(
        stem=f"{study.study}.{file.stem}" if study else file.stem,
        caption=description.caption,
        heads=tuple(head for head, _ in columns),
        rows=tuple(_rows(lines, columns, groups)),
        frame=_frame(sources, models, summary),
        provenance=tuple(_provenance(study, cells, models, description)),
    )


def _rows(
    lines: Sequence[tuple[Model, str]],
    columns: Sequence[_Made],
    groups: Sequence[tuple[str, list[SummaryRow | None]]],
) -> Iterator[Row]:
    for index, (model, condition) in enumerate(lines):
        ours = groups[0][1][index] if condition and groups else None
        yield Row(
            model_label(*model),
            tuple(values[index] for _, values in columns),
            starts_backbone=index > 0 and model[0] != lines[index - 1][0][0],
            model=model,
            condition=ours["condition"] if ours else None,
        )


def _models(
    description: Description, published: Iterable[Model], summary: pd.DataFrame
) -> list[Model]:
    """The description's rows; else the published ones and the study's, by backbone."""
    if description.models is not None:
        blocks = [product(block.backbones, block.attentions) for block in description.models]
        models = list(dict.fromkeys(chain(*blocks)))
    else:
        measured = zip(summary["backbone"], summary["attention"], strict=True)
        models = list(dict.fromkeys(chain(published, measured)))
    backbones = list(dict.fromkeys(backbone for backbone, _ in models))
    return sorted(models, key=lambda model: backbones.index(model[0]))


def _arrange(
    description: Description, models: Sequence[Model], summary: pd.DataFrame
) -> tuple[list[tuple[str, list[SummaryRow | None]]], list[tuple[Model, str]]]:
    """Arrange the study's conditions as groups of columns, or as rows of one group.

    Returns:
        The groups, each a head and its rows of the summary; and the table's lines, each a model
        and the part of its condition that is not in the head.
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
        own = [(model, condition) for condition in conditions if (model, condition) in by_line]
        lines += own or [(model, "")]
    parts = {condition: condition.split(", ") for condition in conditions}
    shared = [part for part in parts[conditions[0]] if all(part in p for p in parts.values())]
    rest = {c: ", ".join(part for part in p if part not in shared) for c, p in parts.items()}
    group = (f"Ours: {', '.join(shared)}", [by_line.get(line) for line in lines])
    return [group], [(model, rest.get(c, "") or "default") for model, c in lines]


def _column(group: str, column: Column, values: Iterable[Value]) -> _Made:
    values = list(values)
    span = 2 if any(value.std for value in values) else 1
    return Head(group, column.title, column.decimals, span), values


def _reference_columns(sources: _Sources, models: Sequence[Model]) -> Iterator[_Made]:
    """Published figures, counts at the papers' size, and costs by machine."""
    description = sources.description
    blocks = [(description.published_title, "published", "")]
    if at := description.counted_at:
        head = f"Counted: {at.input_size}×{at.input_size}, {at.num_classes} classes"
        blocks.append((head, "counted", ""))
    blocks += [(f"Measured: {machine}", "cost", machine) for machine in sources.costs]
    for (head, kind, machine), column in product(blocks, description.columns):
        if getattr(column, kind):
            figures = [sources.figure(kind, column, model, machine=machine) for model in models]
            yield _column(head, column, [_value(figure, column) for figure in figures])


def _study_columns(
    sources: _Sources,
    groups: Sequence[tuple[str, list[SummaryRow | None]]],
    lines: Sequence[tuple[Model, str]],
) -> Iterator[_Made]:
    """The study's own counts, errors and hyperparameters."""
    kinds = ("measured", "recipe") if sources.description.counted_at else _OWN
    for head, ours in groups:
        if any(condition for _, condition in lines):
            yield Head(head, "Condition"), [Value(condition) for _, condition in lines]
        for column, kind in product(sources.description.columns, kinds):
            if not getattr(column, kind):
                continue
            if kind == "measured":
                best = _best(ours, column)
                values = [_measured(row, column) for row in ours]
                values = [replace(v, bold=index in best) for index, v in enumerate(values)]
            else:
                rows = zip(lines, ours, strict=True)
                figures = [sources.figure(kind, column, line[0], row) for line, row in rows]
                values = [_value(figure, column) for figure in figures]
            yield _column(head, column, values)
        yield Head(head, "n"), [_seeds(row) for row in ours]


def _value(figure: Any, column: Column) -> Value:
    """A figure as it is shown; a published one, which is text, digit for digit."""
    if isinstance(figure, str):
        return Value(number=figure) if is_number(figure) else Value(figure or MISSING)
    if figure is None or pd.isna(figure):
        return Value()
    return Value(number=f"{figure / column.unit:.{column.decimals}f}")


def _measured(row: SummaryRow | None, column: Column) -> Value:
    """Mean ± std over the seeds; without any, the state of the cells."""
    if row is None:
        return Value()
    if not row["n"]:
        return Value(next((state for state in LOST if row[f"n_{state}"]), MISSING))
    mean, std = _statistics(row, column)
    decimals = column.decimals
    return Value(number=f"{mean:.{decimals}f}", std=f"{std:.{decimals}f}" if row["n"] > 1 else "")


def _statistics(row: SummaryRow, column: Column) -> tuple[float, float]:
    """Mean and std of a column's metric; an accuracy is 100 minus the error."""
    assert column.measured is not None
    error = column.measured.replace("accuracy", "error")
    mean = row[f"{error}_mean"]
    return (mean if error == column.measured else 100 - mean), row[f"{error}_std"]


def _best(rows: Sequence[SummaryRow | None], column: Column) -> set[int]:
    """Indices of each backbone's significantly best model in a condition.

    Empty without SciPy and statsmodels, and for a gain by selection.
    """
    assert column.measured is not None
    if column.measured.endswith("selection") or not has_statistics():
        return set()
    if not any(row and row["n"] > 1 for row in rows):
        return set()
    from attngrid.analysis.comparison import best_of

    sign = 1 if column.measured.endswith("accuracy") else -1
    # attentions that compute the same function share their records, so they are one sample
    groups: dict[Any, dict[str, list[int]]] = {}
    for index, row in enumerate(rows):
        if row is not None and row["n"]:
            models = groups.setdefault((row["backbone"], row["condition"]), {})
            models.setdefault(trained_attention(row["attention"]), []).append(index)
    best: set[int] = set()
    for models in groups.values():
        samples = []
        for indices in models.values():
            row = rows[indices[0]]
            assert row is not None
            mean, std = _statistics(row, column)
            samples.append((sign * mean, std, int(row["n"])))
        if (winner := best_of(samples)) is not None:
            best.update(list(models.values())[winner])
    return best


def _seeds(row: SummaryRow | None) -> Value:
    """How many seeds the mean is of, and how many have no figure."""
    if row is None or not (row["n"] or any(row[f"n_{state}"] for state in LOST)):
        return Value()
    lost = [f"{row[f'n_{state}']} {state}" for state in LOST if row["n"] and row[f"n_{state}"]]
    return Value(", ".join([str(row["n"]), *lost]))


def _frame(sources: _Sources, models: Sequence[Model], summary: pd.DataFrame) -> pd.DataFrame:
    """The table as a tidy frame: one row per model, condition and machine, unrounded."""
    by_model: dict[Model, list[SummaryRow]] = {}
    for row in summary.to_dict("records"):
        by_model.setdefault((row["backbone"], row["attention"]), []).append(row)
    columns, lines = sources.description.columns, []
    for model in models:
        for row, machine in product(by_model.get(model, [{"n": 0}]), sources.costs or [""]):
            line: dict[str, Any] = {"backbone": model[0], "attention": model[1]}
            for column, kind in product(columns, ("published", "counted")):
                if name := getattr(column, kind):
                    line[f"{kind}_{name}"] = sources.figure(kind, column, model, row)
            if machine:
                costs = [column for column in columns if column.cost]
                line["machine"] = machine
                line |= {
                    str(c.cost): sources.figure("cost", c, model, None, machine) for c in costs
                }
            line |= {"condition": row.get("condition"), "n": row["n"]}
            for column in columns:
                if column.measured:
                    mean, std = _statistics(row, column) if row["n"] else (None, None)
                    line[f"measured_{column.measured}_mean"] = mean
                    line[f"measured_{column.measured}_std"] = std
                if column.recipe:
                    line[f"recipe_{column.recipe}"] = sources.figure("recipe", column, model, row)
            lines.append(line)
    return pd.DataFrame(lines)


def _provenance(
    study: Study | None,
    cells: pd.DataFrame | None,
    models: Sequence[Model],
    description: Description,
) -> Iterator[str]:
    """The files behind a table; its records, each with the code that made it."""
    if description.published:
        yield f"reference/{description.published}"
    if any(column.counted for column in description.columns):
        own = f"/{study.study}" if study is not None and description.counted_at is None else ""
        yield f"results{own}/complexity.csv"
    measured = any(column.measured for column in description.columns)
    if study is None or cells is None or not measured:
        return
    shown = [model in models for model in zip(cells["backbone"], cells["attention"], strict=True)]
    rows = cells[pd.Series(shown, index=cells.index, dtype=bool) & (cells["state"] == "measured")]
    if description.attentions is not None:
        rows = rows[rows["attention"].isin(description.attentions)]
    rows = rows.drop_duplicates("id")
    if rows.empty:
        yield "no record: nothing of it was measured"
        return
    yield f"study {study.study}, configuration {study.digest[:12]}, {len(rows)} records:"
    commits = rows["commit"].astype(object).fillna("unknown")
    yield from (f"{i}, commit {c}" for i, c in zip(rows["id"], commits, strict=True))
