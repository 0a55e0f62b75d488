"""``tables/numbers.tex``: a LaTeX macro for every number in the paper's prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from attngrid.analysis.audit import Line
from attngrid.analysis.claims import VERDICTS, Claims
from attngrid.analysis.frames import record_ids
from attngrid.core.files import write_atomically
from attngrid.render.layout import MISSING
from attngrid.render.templates import escape

FILE = Path("tables/numbers.tex")
Number = tuple[str, str]  # the text that a macro prints, and its source


def numbers(
    claims: Claims, results: pd.DataFrame, choices: pd.DataFrame, lines: Sequence[Line]
) -> dict[str, Number]:
    """The macros by name, letters only; a figure that was not measured is ``--``.

    Args:
        claims: for the levels of their families.
        results: of ``judge_claims``.
        choices: of ``selection``.
        lines: of ``audit``.
    """
    found = {
        f"Audit{_name(line.finding, line.key)}": (line.value, line.arithmetic) for line in lines
    }
    counts = results["kind"].isin(["printed", "cost"])
    for name, rows in (
        ("Claims", results),
        ("TestedClaims", results[~counts]),
        ("CountedClaims", results[counts]),
        ("PrintedClaims", results[results["kind"] == "printed"]),
    ):
        found[name] = (str(rows["claim"].nunique()), "results/claims.csv")
        for verdict in VERDICTS:
            number = str((rows["verdict"] == verdict).sum())
            found[f"{name}{_name(*verdict.split())}"] = (number, "results/claims.csv")
    found["ClaimsRecords"] = (str(len(record_ids(results))), "results/claims.csv")
    for metric, name in (("top1_error", "TopOne"), ("top5_error", "TopFive")):
        rows = choices[(choices["condition"] == "all") & (choices["metric"] == metric)]
        for key in ("cells", "chosen", "mean", "low", "high", "largest"):
            text = MISSING
            if not rows.empty and not pd.isna(rows[key].iloc[0]):
                text = f"{rows[key].iloc[0]:.{0 if key in ('cells', 'chosen') else 2}f}"
            found[f"Selection{_name(key)}{name}"] = (text, "results/selection.csv")
    for name, family in claims.families.items():
        found[f"Smallest{_name(name)}"] = (f"{family.smallest_effect:g}", "reference/claims.yaml")
    levels = {family.alpha for family in claims.families.values()}
    powers = {family.power for family in claims.families.values()}
    if len(levels) == len(powers) == 1:
        found["Level"] = (f"{levels.pop():g}", "reference/claims.yaml")
        found["Power"] = (f"{100 * powers.pop():.0f}", "reference/claims.yaml")
    return found


def _name(*parts: str) -> str:
    words = {"1": "one", "2": "two", "3": "three", "4": "four", "6": "six", "100": "hundred"}
    text = "_".join(parts)
    for digits in sorted(words, key=len, reverse=True):
        text = text.replace(digits, f"_{words[digits]}_")
    return "".join(part.capitalize() for part in text.split("_"))


def write_numbers(found: Mapping[str, Number], file: Path = FILE) -> None:
    """Write the macros, atomically."""
    lines = ["% attngrid: numbers for prose, generated; edits are lost."]
    for name, (value, source) in sorted(found.items()):
        # a signed number gets a minus sign instead of a hyphen
        signed = value[0] in "+-" and value[1:2].isdigit()
        text = rf"\ensuremath{{{value}}}" if signed else escape(value)
        lines.append(rf"\newcommand{{\{name}}}{{{text}}}% {source or 'as printed'}")
    write_atomically(file, "\n".join(lines) + "\n")
