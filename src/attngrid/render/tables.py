"""Build tables from a description in YAML, the published figures and a study's frame.

A published number and a measured one never share a column. A figure that was not measured is
shown as ``--``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis.dependencies import has_statistics
from attngrid.analysis.frames import LOST, read_counts
from attngrid.analysis.reference import Model, is_number
from attngrid.measure.cost_file import by_machine, read_costs
from attngrid.models.registry import attention_label, trained_attention
from attngrid.render.description import Column, Description, load_description, read_figures
from attngrid.render.layout import MISSING, Head, Row, Table, Value
from attngrid.study.labels import model_label
from attngrid.study.schema import Study

Ours = dict[Any, Any]  # a row of the summary; empty without one
Filled = tuple[Head, list[Value]]  # a column: its head and values
MOST_OF_TOP5 = 5  # classes with which a top-5 error is always 0
UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}


@dataclass(frozen=True)
class Sources:
    """The sources of a table's figures, each by model."""

    description: Description
    published: dict[Model, dict[str, str]]
    counted: dict[Model, dict[Any, Any]]
    costs: dict[str, dict[Model, dict[str, str]]]  # by machine

    def figure(self, kind: str, column: Column, model: Model, ours: Ours, machine: str) -> Any:
        """A column's ``published`` (text), ``counted`` or ``cost`` figure, or None."""
        name = getattr(column, kind)
        if kind == "published":
            return self.published.get(model, {}).get(name)
        if kind == "cost":
            alias = (model[0], trained_attention(model[1]))
            text = self.costs[machine].get(alias, {}).get(name)
            return float(text) if text else None
        if kind == "counted" and self.description.counted_at:
            return self.counted.get(model, {}).get(name)
        return ours.get(name)


def build_table(
    study: Study | None,
    summary: pd.DataFrame,
    file: Path,
    *,
    cells: pd.DataFrame | None = None,
) -> Table:
    """Build a table of published, counted and measured figures.

    ``study`` is None for a table of counts and costs only. ``cells`` are those of the ``summary``.

    Raises:
        ConfigError: the description names a file or a column that does not exist.

    Examples:
        >>> from attngrid import load_results
        >>> from attngrid.study.schema import load_study
        >>> study = load_study("config/cifar20.yaml")
        >>> summary = load_results("cifar20").summary
        >>> table = build_table(study, summary, study.descriptions["grid"])
        >>> table.rows[0].values[0].text  # the baseline's parameters in millions
        '2.812'
    """
    description = load_description(file)
    if description.attentions is not None:
        summary = summary[summary["attention"].isin(description.attentions)]
    published = read_figures(description, file)
    counted, costs = {}, {}
    if description.counted_at:
        at = description.counted_at.model_dump()
        counted = read_counts(**at)
        if any(column.cost for column in description.columns):
            costs = by_machine(read_costs(), **at) or {"nothing yet": {}}
    sources = Sources(description, published, counted, costs)
    models = _models(description, published, summary)
    ours: dict[Model, dict[str, Ours]] = {model: {} for model in models}
    for row in summary.to_dict("records"):
        if (model := (row["backbone"], row["attention"])) in ours:
            ours[model][row["condition"]] = row
    known = {condition for rows in ours.values() for condition in rows}
    conditions = [name for name in dict.fromkeys(summary["condition"]) if name in known]
    lines = [(model, "") for model in models]
    groups = [[condition] for condition in conditions]
    if description.conditions == "rows" and len(conditions) > 1:
        groups = [conditions]
        lines = [(model, condition) for model in models for condition in ours[model] or [""]]
    filled = list(_reference_columns(sources, lines))
    classes = _classes(study, conditions)
    if not description.counted_at or any(column.measured for column in description.columns):
        for group in groups:
            own = [ours[model].get(condition or group[0], {}) for model, condition in lines]
            few = max(classes[condition] for condition in group) <= MOST_OF_TOP5
            filled += _study_columns(description, group, lines, own, top5=not few)
    caption, heads = _share_conditions(description.caption, [head for head, _ in filled])
    return Table(
        stem=f"{study.study}.{file.stem}" if study else file.stem,
        caption=caption,
        heads=tuple(heads),
        rows=tuple(_rows(lines, filled)),
        frame=_frame(sources, ours),
        provenance=tuple(_provenance(study, cells, models, description)),
    )


def _rows(lines: Sequence[tuple[Model, str]], filled: Sequence[Filled]) -> Iterator[Row]:
    for index, (model, condition) in enumerate(lines):
        alias_of = trained_attention(model[1])
        same = f" (= {attention_label(alias_of)})" if alias_of != model[1] else ""
        yield Row(
            model_label(*model) + same,
            tuple(values[index] for _, values in filled),
            starts_backbone=index > 0 and model[0] != lines[index - 1][0][0],
            model=model,
            condition=condition or None,
        )


def _models(
    description: Description, published: Iterable[Model], summary: pd.DataFrame
) -> list[Model]:
    """The models of the description; without any, the published ones and the study's."""
    if description.models is not None:
        blocks = [product(block.backbones, block.attentions) for block in description.models]
        models = list(dict.fromkeys(chain(*blocks)))
    else:
        measured = zip(summary["backbone"], summary["attention"], strict=True)
        models = list(dict.fromkeys(chain(published, measured)))
    backbones = list(dict.fromkeys(backbone for backbone, _ in models))
    return sorted(models, key=lambda model: backbones.index(model[0]))


def _column(group: str, column: Column, values: list[Value]) -> Filled:
    span = 2 if any(value.std for value in values) else 1
    return Head(group, column.title, column.decimals, span), values


def _figures(group: str, column: Column, figures: Sequence[Any]) -> Filled:
    """A column of published figures, counts, costs or hyperparameters, in the unit that fits."""
    if column.unit == "auto":
        column = _scaled(column, figures)
    return _column(group, column, [_value(figure, column) for figure in figures])


def _scaled(column: Column, figures: Sequence[Any]) -> Column:
    """A column in the largest unit in which its smallest figure is at least 0.1.

    It keeps the decimals that show four digits of that figure, and no more than the description's.
    """
    smallest = min((f for f in figures if not pd.isna(f) and f > 0), default=1e6)
    prefix, unit = next((item for item in UNITS.items() if smallest / item[1] >= 0.1), ("", 1.0))
    digits = 1 + math.floor(math.log10(smallest / unit))
    return column.model_copy(
        update={
            "title": column.title.replace("{unit}", prefix),
            "unit": unit,
            "decimals": max(0, min(column.decimals, 4 - digits)) if prefix else 0,
        }
    )


def _classes(study: Study | None, conditions: Sequence[str]) -> dict[str, int]:
    """The largest number of classes in each condition, which begins with its cells' own label."""
    largest: dict[str, int] = {}
    for cell in study.cells if study is not None else ():
        largest[cell.condition] = max(cell.num_classes, largest.get(cell.condition, 0))
    return {
        condition: max(
            (number for own, number in largest.items() if condition.startswith(own)),
            default=MOST_OF_TOP5 + 1,
        )
        for condition in conditions
    }


def _share_conditions(caption: str, heads: Sequence[Head]) -> tuple[str, list[Head]]:
    """Move what all groups of a kind share, such as the dataset, from heads to the caption."""
    groups = dict.fromkeys(head.group for head in heads)
    titles = {}
    for kind in ("Counted", "Measured", "Ours"):
        parts = {g: g.removeprefix(f"{kind}: ").split(", ") for g in groups if g.startswith(kind)}
        shared = [p for p in next(iter(parts.values()), []) if all(p in q for q in parts.values())]
        if shared:
            caption = f"{caption.strip().removesuffix('.')}. {kind}: {', '.join(shared)}."
        for group, own in parts.items():
            rest = ", ".join(part for part in own if part not in shared)
            titles[group] = f"{kind}: {rest or 'default'}" if len(parts) > 1 else kind
    return caption, [replace(head, group=titles.get(head.group, head.group)) for head in heads]


def _reference_columns(sources: Sources, lines: Sequence[tuple[Model, str]]) -> Iterator[Filled]:
    """Published figures, counts at the papers' size, and costs by machine."""
    description = sources.description
    blocks = [(description.published_title, "published", "")]
    if at := description.counted_at:
        head = f"Counted: {at.input_size}×{at.input_size}, {at.num_classes} classes"
        blocks.append((head, "counted", ""))
    blocks += [(f"Measured: {machine}", "cost", machine) for machine in sources.costs]
    for (head, kind, machine), column in product(blocks, description.columns):
        if getattr(column, kind):
            figures = [sources.figure(kind, column, model, {}, machine) for model, _ in lines]
            yield _figures(head, column, figures)


def _study_columns(
    description: Description,
    conditions: Sequence[str],
    lines: Sequence[tuple[Model, str]],
    rows: Sequence[Ours],
    *,
    top5: bool,
) -> Iterator[Filled]:
    """The study's counts, errors and hyperparameters, below what their conditions share."""
    parts = {condition: condition.split(", ") for condition in conditions}
    shared = [part for part in parts[conditions[0]] if all(part in p for p in parts.values())]
    head = f"Ours: {', '.join(shared)}"
    if len(conditions) > 1:
        rest = {c: ", ".join(part for part in p if part not in shared) for c, p in parts.items()}
        own = [Value(rest.get(condition, "") or "default") for _, condition in lines]
        yield Head(head, "Condition"), own
    kinds = ("measured", "recipe") if description.counted_at else ("counted", "measured", "recipe")
    for column, kind in product(description.columns, kinds):
        if kind == "measured" and column.measured:
            if "top5" in column.measured and not top5:
                continue
            best = _best(rows, column)
            values = [_measured(row, column) for row in rows]
            values = [replace(v, bold=index in best) for index, v in enumerate(values)]
            yield _column(head, column, values)
        elif getattr(column, kind):
            yield _figures(head, column, [row.get(getattr(column, kind)) for row in rows])
    yield Head(head, "n"), [_seeds(row) for row in rows]


def _value(figure: Any, column: Column) -> Value:
    """Format a figure; a published one is text and stays unchanged."""
    if isinstance(figure, str):
        return Value(number=figure) if is_number(figure) else Value(MISSING)
    if figure is None or pd.isna(figure):
        return Value()
    return Value(number=f"{figure / column.unit:.{column.decimals}f}")


def _measured(ours: Ours, column: Column) -> Value:
    """Mean ± std over the seeds; if nothing was measured, the state of the cells."""
    if not ours:
        return Value()
    if not ours["n"]:
        return Value(next((state for state in LOST if ours[f"n_{state}"]), MISSING))
    mean, std = (f"{figure:.{column.decimals}f}" for figure in _statistics(ours, column))
    return Value(number=mean, std=std if ours["n"] > 1 else "")


def _statistics(row: Ours, column: Column) -> tuple[float, float]:
    """Mean and std of a column's metric; an accuracy is 100 minus the error."""
    error = str(column.measured).replace("accuracy", "error")
    mean = row[f"{error}_mean"]
    return (mean if error == column.measured else 100 - mean), row[f"{error}_std"]


def _best(rows: Sequence[Ours], column: Column) -> set[int]:
    """Indices of the significantly best model of each backbone and condition.

    It is empty without SciPy and statsmodels, and for a gain by selection.
    """
    metric = str(column.measured)
    if metric.endswith("selection") or not has_statistics():
        return set()
    from attngrid.analysis.comparison import best_of

    sign = 1 if metric.endswith("accuracy") else -1
    # attentions that compute the same function share their records, so they are one sample
    groups: dict[Any, dict[str, list[int]]] = {}
    for index, row in enumerate(rows):
        if row.get("n"):
            models = groups.setdefault((row["backbone"], row["condition"]), {})
            models.setdefault(trained_attention(row["attention"]), []).append(index)
    best: set[int] = set()
    for models in groups.values():
        firsts = [rows[indices[0]] for indices in models.values()]
        figures = [(*_statistics(row, column), int(row["n"])) for row in firsts]
        winner = best_of([(sign * mean, std, n) for mean, std, n in figures])
        if winner is not None:
            best.update(list(models.values())[winner])
    return best


def _seeds(ours: Ours) -> Value:
    """The number of measured seeds, and of seeds that failed, by state."""
    lost = [f"{ours[f'n_{state}']} {state}" for state in LOST if ours.get(f"n_{state}")]
    if not lost and not ours.get("n"):
        return Value()
    return Value(", ".join([str(ours["n"]), *(lost if ours["n"] else ())]))


def _frame(sources: Sources, by_model: Mapping[Model, Mapping[str, Ours]]) -> pd.DataFrame:
    """The table as a tidy frame: one row per model, condition and machine, unrounded."""
    columns, lines = sources.description.columns, []
    for model, by_condition in by_model.items():
        for ours, machine in product([*by_condition.values()] or [{}], sources.costs or [""]):
            line: dict[str, Any] = {"backbone": model[0], "attention": model[1]}
            n = ours.get("n", 0)
            for column, kind in product(columns, ("published", "counted")):
                if name := getattr(column, kind):
                    line[f"{kind}_{name}"] = sources.figure(kind, column, model, ours, machine)
            if machine:
                line["machine"] = machine
                for column in (c for c in columns if c.cost):
                    line[str(column.cost)] = sources.figure("cost", column, model, ours, machine)
            line |= {"condition": ours.get("condition"), "n": n}
            for column in columns:
                if column.measured:
                    mean, std = _statistics(ours, column) if n else (None, None)
                    line[f"measured_{column.measured}_mean"] = mean
                    line[f"measured_{column.measured}_std"] = std
                if column.recipe:
                    line[f"recipe_{column.recipe}"] = ours.get(column.recipe)
            lines.append(line)
    return pd.DataFrame(lines)


def _provenance(
    study: Study | None,
    cells: pd.DataFrame | None,
    models: Sequence[Model],
    description: Description,
) -> Iterator[str]:
    """The files and records behind a table, each record with the commit that made it."""
    if description.published:
        yield f"reference/{description.published}"
    if any(column.counted for column in description.columns):
        own = f"/{study.study}" if study is not None and description.counted_at is None else ""
        yield f"results{own}/complexity.csv"
    measured = any(column.measured for column in description.columns)
    if study is None or cells is None or not measured:
        return
    rows = [
        row
        for row in cells[cells["state"] == "measured"].to_dict("records")
        if (row["backbone"], row["attention"]) in models
        and row["attention"] in (description.attentions or [row["attention"]])
    ]
    records = {row["id"]: row for row in rows}
    if not records:
        yield "no record: nothing of it was measured"
        return
    yield f"study {study.study}, configuration {study.digest[:12]}, {len(records)} records:"
    for id, row in records.items():
        commit = "unknown" if pd.isna(row["commit"]) else row["commit"]
        other = ", of other code than this table's" if row["message"] else ""
        yield f"{id}, commit {commit}{other}"
