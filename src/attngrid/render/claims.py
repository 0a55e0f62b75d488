"""Tables of the claims and their verdicts: one of all claims, one of all statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
    "claim has them; tests are over seeds, corrected by Holm over each table. A printed figure is "
    "one run: it is inside or outside the 95 % prediction interval of one more run. -- was not run."
)
REDUCED_CAPTION = (
    "The papers' comparisons in a reduced setting: a verdict is about this study. It says nothing "
    "of the papers' claims, which are about other data, sizes or recipes."
)
OWN_CAPTION = (
    "This study's claims, and what its records say. Gains are in points, positive where the claim "
    "has them; tests are over seeds, corrected by Holm over each family. -- was not run."
)
SOURCE, PUBLISHED = Head("Claim", "Source"), Head("Published", "Figure")
OURS = [Head("Ours", title) for title in ("Figure", "95 % interval", "n", "Verdict")]
Line = dict[Any, Any]  # a row of claims.csv


def claims_table(results: pd.DataFrame, study: str = "", own: str | None = None) -> Table:
    """A table of all claims, or of a study's; printed counts share a row.

    Of the papers' claims a study has those that it measured, and it has all of its ``own`` file.
    """
    caption = CAPTION if own is None else OWN_CAPTION
    if study and own is None:
        results = results[results["condition"] != ""]
        caption = CAPTION if (results["scope"] == "stated").any() else REDUCED_CAPTION
    values = results[(results["kind"] == "value") & results["deviation"].notna()]
    for std, source in sorted(
        set(zip(values["deviation"], values["deviation_source"], strict=True))
    ):
        caption += f" σ = {std:.2f}: {source}."
    conditions = [Head("Ours", "Condition")] if (results["condition"] != "").any() else []
    heads = [SOURCE, PUBLISHED, *conditions, *OURS]
    rows: list[Row] = []
    for lines in _by_block(results):
        printed = lines[0]["kind"] == "printed"
        for number, group in enumerate([lines] if printed else [[line] for line in lines]):
            line = group[0]
            published, *ours = _printed(group) if printed else _tested(line)
            if conditions:
                ours.insert(0, line["condition"] or MISSING)
            texts = [_source(line), published, *ours]
            rows.append(
                Row(
                    line["statement"] if printed else _label(line),
                    tuple(map(Value, texts)),
                    starts_backbone=number == 0 and bool(rows),
                    condition=line["condition"] or None,
                    claims=tuple(line["claim"] for line in group),
                )
            )
    if study and rows:
        heads, rows, caption = _without_shared(heads, rows, caption)
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
        provenance=(own or "reference/claims.yaml", "results/complexity.csv", *records),
    )


def summary_table(results: pd.DataFrame) -> Table:
    """One row per statement: the table of the README."""
    rows = []
    for lines in _by_block(results):
        first = lines[0]
        label = first["statement"]
        if first["kind"] == "printed":
            published, ours, _, n, verdict = _printed(lines)
        else:
            networks = list(dict.fromkeys(backbone_label(line["backbone"]) for line in lines))
            names = f"{len(networks)} networks" if len(lines) > 4 else ", ".join(networks)
            metrics = " and ".join(dict.fromkeys(_metric(line["metric"]) for line in lines))
            label += f" ({names}; {metrics})"
            columns = zip(*map(_tested, lines), strict=True)
            published, ours, _, n, _ = map(_range, columns)
            if first["kind"] == "value" and len(lines) > 2:
                published, ours = f"{len(lines)} figures", MISSING
            verdict = _verdicts(lines)
        texts = [_source(first), published, ours, n, verdict]
        rows.append(Row(label, tuple(map(Value, texts))))
    return Table(
        stem="claims_summary",
        caption=CAPTION,
        heads=(SOURCE, PUBLISHED, OURS[0], *OURS[2:]),
        rows=tuple(rows),
        frame=results,
        stub="Statement",
    )


def _without_shared(
    heads: list[Head], rows: list[Row], caption: str
) -> tuple[list[Head], list[Row], str]:
    """Leave out each column before the verdicts whose rows are equal; the caption says its text."""
    kept = []
    for place, head in enumerate(heads):
        texts = {row.values[place].text for row in rows}
        if head in OURS or len(texts) > 1:
            kept.append(place)
        elif not texts <= {MISSING, "this study"}:
            caption += f" {head.title}: {texts.pop()}."
    rows = [replace(row, values=tuple(row.values[place] for place in kept)) for row in rows]
    return [heads[place] for place in kept], rows, caption


def _source(line: Line) -> str:
    return ", ".join(text for text in (line["source"], line["where"]) if text and text == text)


def _by_block(results: pd.DataFrame) -> list[list[Line]]:
    blocks: dict[str, list[Line]] = {}
    for line in results.to_dict("records"):
        blocks.setdefault(line["claim"].partition("/")[0], []).append(line)
    return list(blocks.values())


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


def _tested(line: Line) -> list[str]:
    """The texts of a row: published figure, ours, its interval, seeds and verdict."""
    published = figure = interval = n = MISSING
    if line["kind"] == "value":
        return _printed_run(line)
    if not pd.isna(line["published_gain"]):
        decimals = max(len(text.partition(".")[2]) for text in line["published"].split())
        published = f"{line['published_gain']:+.{decimals}f}"
    if line["kind"] == "cost" and line["verdict"] != "not run":
        ours, than = map(int, line["counted"].split())
        figure, n = f"{100 * (ours - than) / than:+z.2f} %", "exact"
    elif not pd.isna(line["gain"]):
        figure = f"{line['gain']:+z.2f}"
        if not pd.isna(line["gain_low"]):
            interval = f"{line['gain_low']:+.2f} to {line['gain_high']:+.2f}"
        n = "/".join(dict.fromkeys(line["n"].split()))
    verdict = _verdicts([line])
    if not pd.isna(line["seeds_needed"]):
        verdict += f"; {line['seeds_show']} needs {int(line['seeds_needed'])} seeds"
    return [published, figure, interval, n, verdict]


def _printed_run(line: Line) -> list[str]:
    """The texts of a row of one printed figure, with the interval of one more of our runs."""
    if line["verdict"] == "not run":
        return [line["published"], *[MISSING] * 4]
    mean, interval, verdict = float(line["mean"]), MISSING, line["verdict"]
    if not pd.isna(line["deviation"]):
        half = (line["gain_high"] - line["gain_low"]) / 2
        interval = f"{mean - half:.2f} to {mean + half:.2f}"
        verdict += f", σ = {line['deviation']:.2f}"
    return [line["published"], f"{mean:.2f}", interval, str(line["n"]), verdict]


def _printed(lines: Sequence[Line]) -> list[str]:
    """The texts of a row of printed counts: how many of ours match in every digit."""
    published, verdict = f"{len(lines)} figures", _verdicts(lines)
    if verdict == MISSING:
        return [published, *[MISSING] * 4]
    same = sum(line["verdict"] == "confirmed" for line in lines)
    return [published, f"{same} of {len(lines)} to the last digit", MISSING, "exact", verdict]


def _verdicts(lines: Sequence[Line]) -> str:
    """For example ``3 confirmed, 1 underpowered``; a single word if all verdicts are equal."""
    found = Counter(line["verdict"] for line in lines)
    if len(found) == 1:
        (verdict,) = found
        return MISSING if verdict == "not run" else str(verdict)
    return ", ".join(f"{found[name]} {name}" for name in VERDICTS if found[name])


def _range(texts: Sequence[str]) -> str:
    """The smallest to the largest gain; a list of figures if they have no sign."""
    texts = list(dict.fromkeys(text for text in texts if text != MISSING))
    if len(texts) < 2 or texts[0][0] not in "+-":
        return " / ".join(texts) or MISSING
    least, *_, greatest = sorted(texts, key=lambda text: float(text.split()[0]))
    return f"{least} to {greatest}"
