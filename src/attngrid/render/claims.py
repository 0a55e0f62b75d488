"""The claims and their verdicts as tables: every claim, and a line for each statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from attngrid.analysis.claims import VERDICTS
from attngrid.render.tables import MISSING, Head, Row, Table, Value
from attngrid.study.labels import attention_label, backbone_label, model_label

METRICS = {"params": "parameters", "macs": "multiply-accumulates"}
CAPTION = (
    "What the papers claim, and what the records say. Gains are in points, positive where the "
    "claim has them; tests are over seeds, corrected by Holm over each table. -- was not run."
)
IN_KIND = (
    "The papers' comparisons in kind, under this study's conditions. They say nothing of the "
    "papers' claims, which are about other data, sizes or recipes."
)


def claims_table(answers: pd.DataFrame, study: str = "") -> Table:
    """Every claim; printed counts have one line a metric.

    Args:
        answers: as ``verdicts.answer`` gives them.
        study: whose conditions alone are shown; left out: what answers the claims.
    """
    caption = CAPTION
    if study:
        answers = answers[answers["condition"] != ""]
        caption = CAPTION if (answers["scope"] == "stated").any() else IN_KIND
    heads = ["Source", "Figure", "Figure", "95 % interval", "n", "Verdict"]
    groups = ["Claim", "Published", *["Ours"] * 4]
    if (answers["condition"] != "").any():
        heads.insert(2, "Condition")
        groups.insert(2, "Ours")
    rows: list[Row] = []
    for lines in _by_block(answers):
        first, start = lines[0], len(rows)
        if first["kind"] == "printed":
            ids = tuple(line["claim"] for line in lines)
            shown = [(first["statement"], [_source(first), *_printed(lines)], "", ids)]
        else:
            shown = [
                (
                    _label(line),
                    [_source(line), _published(line), *_ours(line)],
                    line["condition"],
                    (line["claim"],),
                )
                for line in lines
            ]
        for label, values, condition, ids in shown:
            if "Condition" in heads:
                values.insert(2, Value(condition or MISSING))
            rule = 0 < start == len(rows)
            rows.append(Row(label, tuple(values), rule, condition=condition or None, claims=ids))
    if not rows:
        rows = [Row("no claim's networks were measured", (Value(),) * len(heads), False)]
    return Table(
        stem=f"{study}.claims" if study else "claims",
        caption=caption,
        heads=tuple(
            Head(group, title, None, 1) for group, title in zip(groups, heads, strict=True)
        ),
        rows=tuple(rows),
        frame=answers,
        stub="Statement",
        provenance=("reference/claims.yaml", "results/complexity.csv", *_records(answers)),
    )


def _records(answers: pd.DataFrame) -> list[str]:
    """The ids of the records behind the verdicts."""
    ids = {name for text in answers["records"].dropna() for name in str(text).split()}
    return sorted(ids) or ["no record: nothing of accuracy was measured"]


def summary_table(answers: pd.DataFrame) -> Table:
    """One line a statement: what the README prints."""
    rows = []
    for lines in _by_block(answers):
        first = lines[0]
        if first["kind"] == "printed":
            values = [_source(first), *_printed(lines)]
            values.pop(3)  # no interval
        else:
            values = [
                _source(first),
                _range([_published(line) for line in lines]),
                _range([_ours(line)[0] for line in lines]),
                _range([_ours(line)[2] for line in lines]),
                _verdicts(lines),
            ]
        networks = ", ".join(dict.fromkeys(backbone_label(line["backbone"]) for line in lines))
        if len(lines) > 4:
            networks = f"{len({line['backbone'] for line in lines})} networks"
        metrics = " and ".join(dict.fromkeys(_metric(line["metric"]) for line in lines))
        label = first["statement"]
        if first["kind"] != "printed":
            label += f" ({networks}; {metrics})"
        rows.append(Row(label, tuple(values), starts_backbone=False))
    heads = [("Claim", "Source"), ("Published", "Figure"), ("Ours", "Figure"), ("Ours", "n")]
    return Table(
        stem="claims_summary",
        caption=CAPTION,
        heads=tuple(Head(group, title, None, 1) for group, title in [*heads, ("Ours", "Verdict")]),
        rows=tuple(rows),
        frame=pd.DataFrame(
            [[row.label, *(value.text for value in row.values)] for row in rows],
            columns=["statement", "source", "published", "ours", "n", "verdict"],
        ),
        stub="Statement",
    )


def _by_block(answers: pd.DataFrame) -> list[list[dict[Any, Any]]]:
    blocks: dict[str, list[dict[Any, Any]]] = {}
    for line in answers.to_dict("records"):
        blocks.setdefault(line["claim"].partition("/")[0], []).append(line)
    return list(blocks.values())


def _source(line: dict[Any, Any]) -> Value:
    return Value(f"{line['source']}, {line['where']}")


def _metric(metric: str) -> str:
    best = "best epoch's " if metric.startswith("best_") else ""
    name = metric.removeprefix("best_").replace("top1_", "top-1 ").replace("top5_", "top-5 ")
    return best + METRICS.get(name, name)


def _label(line: dict[Any, Any]) -> str:
    names = line["attentions"].split()
    backbone, metric = backbone_label(line["backbone"]), _metric(line["metric"])
    if line["kind"] == "value":
        return f"{model_label(line['backbone'], names[0])}, {metric}"
    over = " over ".join(attention_label(name) for name in names)
    return f"{backbone}: {over}, {metric}"


def _published(line: dict[Any, Any]) -> Value:
    if line["kind"] == "value":
        return Value(line["published"])
    gain = line["published_gain"]
    if pd.isna(gain):
        return Value()
    decimals = max(len(text.partition(".")[2]) for text in line["published"].split())
    return Value(f"{gain:+.{decimals}f}")


def _ours(line: dict[Any, Any]) -> list[Value]:
    """The figure, its interval, the seeds and the verdict."""
    verdict = _verdict(line)
    if line["kind"] == "cost":
        counts = line["counted"].split()
        if MISSING in counts or not counts:
            return [Value(), Value(), Value(), verdict]
        ours, than = map(int, counts)
        return [Value(f"{100 * (ours - than) / than:+z.2f} %"), Value(), Value("exact"), verdict]
    if pd.isna(line["gain"]):
        return [Value(), Value(), Value(), verdict]
    number = f"{float(line['mean']):.2f}" if line["kind"] == "value" else f"{line['gain']:+z.2f}"
    interval = (
        Value()
        if pd.isna(line["gain_low"])
        else Value(f"{line['gain_low']:+.2f} to {line['gain_high']:+.2f}")
    )
    seeds = line["n"].split()
    return [Value(number), interval, Value("/".join(dict.fromkeys(seeds))), verdict]


def _verdict(line: dict[Any, Any]) -> Value:
    if line["verdict"] == "not run":
        return Value()
    if line["verdict"] == "underpowered" and not pd.isna(line["seeds_needed"]):
        return Value(f"underpowered, needs {line['seeds_needed']} seeds")
    return Value(line["verdict"])


def _printed(lines: Sequence[dict[Any, Any]]) -> list[Value]:
    """How many printed counts are ours in every digit."""
    same = sum(line["verdict"] == "reproduced" for line in lines)
    ran = any(line["verdict"] != "not run" for line in lines)
    published = Value(f"{len(lines)} figures")
    if not ran:
        return [published, Value(), Value(), Value(), Value()]
    ours = Value(f"{same} of {len(lines)} to the last digit")
    return [published, ours, Value(), Value("exact"), _verdicts(lines)]


def _verdicts(lines: Sequence[dict[Any, Any]]) -> Value:
    """``3 reproduced, 1 underpowered``; the word alone where all have one."""
    found = Counter(line["verdict"] for line in lines)
    if len(found) == 1:
        (verdict,) = found
        return Value() if verdict == "not run" else Value(verdict)
    return Value(", ".join(f"{found[name]} {name}" for name in VERDICTS if found[name]))


def _range(values: Sequence[Value]) -> Value:
    """The least and the largest of what there is; two figures of another kind are both shown."""
    texts = list(dict.fromkeys(value.text for value in values if value.text != MISSING))
    if len(texts) < 2 or texts[0][0] not in "+-":
        return Value(" / ".join(texts) or MISSING)
    numbers = sorted(texts, key=lambda text: float(text.split()[0]))
    return Value(f"{numbers[0]} to {numbers[-1]}")
