"""The claims and their verdicts as tables: one of every claim, one of the statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from attngrid.analysis.claims import VERDICTS
from attngrid.analysis.frames import record_ids
from attngrid.models.registry import attention_label
from attngrid.render.layout import MISSING, Head, Row, Table, Value
from attngrid.study.labels import backbone_label, model_label

METRICS = {"params": "parameters", "macs": "multiply-accumulates"}
CAPTION = (
    "What the papers claim, and what the records say. Gains are in points, positive where the "
    "claim has them; tests are over seeds, corrected by Holm over each table. -- was not run."
)
REDUCED_CAPTION = (
    "The papers' comparisons in a reduced setting, under this study's conditions. They say nothing "
    "of the papers' claims, which are about other data, sizes or recipes."
)
Line = dict[Any, Any]  # of claims.csv


def claims_table(results: pd.DataFrame, study: str = "") -> Table:
    """Every claim; printed counts have one row per statement.

    Args:
        results: of ``judge_claims``.
        study: show only what was measured in this study's conditions.
    """
    caption = CAPTION
    if study:
        results = results[results["condition"] != ""]
        caption = CAPTION if (results["scope"] == "stated").any() else REDUCED_CAPTION
    heads = [Head("Claim", "Source"), Head("Published", "Figure")]
    heads += [Head("Ours", title) for title in ("Figure", "95 % interval", "n", "Verdict")]
    by_condition = bool((results["condition"] != "").any())
    if by_condition:
        heads.insert(2, Head("Ours", "Condition"))
    rows: list[Row] = []
    for lines in _by_block(results):
        start = len(rows)
        printed = lines[0]["kind"] == "printed"
        for group in [lines] if printed else [[line] for line in lines]:
            line, condition = group[0], "" if printed else group[0]["condition"]
            values = [_source(line)]
            values += _printed(group) if printed else [_published(line), *_ours(line)]
            if by_condition:
                values.insert(2, Value(condition or MISSING))
            rows.append(
                Row(
                    line["statement"] if printed else _label(line),
                    tuple(values),
                    starts_backbone=0 < start == len(rows),
                    condition=condition or None,
                    claims=tuple(line["claim"] for line in group),
                )
            )
    if not rows:
        rows = [Row("no claim's networks were measured", (Value(),) * len(heads))]
    records = record_ids(results) or ["no record: nothing of accuracy was measured"]
    return Table(
        stem=f"{study}.claims" if study else "claims",
        caption=caption,
        heads=tuple(heads),
        rows=tuple(rows),
        frame=results,
        stub="Statement",
        provenance=("reference/claims.yaml", "results/complexity.csv", *records),
    )


def summary_table(results: pd.DataFrame) -> Table:
    """One row per statement: the table of the README."""
    rows = []
    for lines in _by_block(results):
        first = lines[0]
        if first["kind"] == "printed":
            label = first["statement"]
            published, ours, _, n, verdict = _printed(lines)
        else:
            networks = ", ".join(dict.fromkeys(backbone_label(line["backbone"]) for line in lines))
            if len(lines) > 4:
                networks = f"{len({line['backbone'] for line in lines})} networks"
            metrics = " and ".join(dict.fromkeys(_metric(line["metric"]) for line in lines))
            label = f"{first['statement']} ({networks}; {metrics})"
            published = _range([_published(line) for line in lines])
            ours, n = (_range([_ours(line)[place] for line in lines]) for place in (0, 2))
            verdict = _verdicts(lines)
        rows.append(Row(label, (_source(first), published, ours, n, verdict)))
    heads = [("Claim", "Source"), ("Published", "Figure"), ("Ours", "Figure"), ("Ours", "n")]
    return Table(
        stem="claims_summary",
        caption=CAPTION,
        heads=tuple(Head(*head) for head in [*heads, ("Ours", "Verdict")]),
        rows=tuple(rows),
        frame=pd.DataFrame(
            [[row.label, *(value.text for value in row.values)] for row in rows],
            columns=["statement", "source", "published", "ours", "n", "verdict"],
        ),
        stub="Statement",
    )


def _by_block(results: pd.DataFrame) -> list[list[Line]]:
    blocks: dict[str, list[Line]] = {}
    for line in results.to_dict("records"):
        blocks.setdefault(line["claim"].partition("/")[0], []).append(line)
    return list(blocks.values())


def _source(line: Line) -> Value:
    return Value(f"{line['source']}, {line['where']}")


def _metric(metric: str) -> str:
    best = "best epoch's " if metric.startswith("best_") else ""
    name = metric.removeprefix("best_").replace("top1_", "top-1 ").replace("top5_", "top-5 ")
    return best + METRICS.get(name, name)


def _label(line: Line) -> str:
    names, metric = line["attentions"].split(), _metric(line["metric"])
    if line["kind"] == "value":
        return f"{model_label(line['backbone'], names[0])}, {metric}"
    over = " over ".join(attention_label(name) for name in names)
    return f"{backbone_label(line['backbone'])}: {over}, {metric}"


def _published(line: Line) -> Value:
    if line["kind"] == "value":
        return Value(line["published"])
    gain = line["published_gain"]
    if pd.isna(gain):
        return Value()
    decimals = max(len(text.partition(".")[2]) for text in line["published"].split())
    return Value(f"{gain:+.{decimals}f}")


def _ours(line: Line) -> list[Value]:
    """The figure, its interval, the seeds and the verdict."""
    figure, interval, n = Value(), Value(), Value()
    if line["kind"] == "cost":
        counts = line["counted"].split()
        if counts and MISSING not in counts:
            ours, than = map(int, counts)
            figure, n = Value(f"{100 * (ours - than) / than:+z.2f} %"), Value("exact")
    elif not pd.isna(line["gain"]):
        is_value = line["kind"] == "value"
        figure = Value(f"{float(line['mean']):.2f}" if is_value else f"{line['gain']:+z.2f}")
        if not pd.isna(line["gain_low"]):
            interval = Value(f"{line['gain_low']:+.2f} to {line['gain_high']:+.2f}")
        n = Value("/".join(dict.fromkeys(line["n"].split())))
    verdict = line["verdict"]
    if verdict == "underpowered" and not pd.isna(line["seeds_needed"]):
        verdict = f"underpowered, needs {line['seeds_needed']} seeds"
    return [figure, interval, n, Value() if verdict == "not run" else Value(verdict)]


def _printed(lines: Sequence[Line]) -> list[Value]:
    """How many printed counts are ours in every digit."""
    published = Value(f"{len(lines)} figures")
    if all(line["verdict"] == "not run" for line in lines):
        return [published, Value(), Value(), Value(), Value()]
    same = sum(line["verdict"] == "reproduced" for line in lines)
    ours = Value(f"{same} of {len(lines)} to the last digit")
    return [published, ours, Value(), Value("exact"), _verdicts(lines)]


def _verdicts(lines: Sequence[Line]) -> Value:
    """``3 reproduced, 1 underpowered``; only the word where all have the same verdict."""
    found = Counter(line["verdict"] for line in lines)
    if len(found) == 1:
        (verdict,) = found
        return Value() if verdict == "not run" else Value(verdict)
    return Value(", ".join(f"{found[name]} {name}" for name in VERDICTS if found[name]))


def _range(values: Sequence[Value]) -> Value:
    """The least to the greatest gain; figures without a sign are listed."""
    texts = list(dict.fromkeys(value.text for value in values if value.text != MISSING))
    if len(texts) < 2 or texts[0][0] not in "+-":
        return Value(" / ".join(texts) or MISSING)
    numbers = sorted(texts, key=lambda text: float(text.split()[0]))
    return Value(f"{numbers[0]} to {numbers[-1]}")
