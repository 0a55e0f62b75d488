"""``tables/numbers.tex``: a LaTeX macro for every number that the paper's prose quotes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from attngrid.analysis.audit import Line
from attngrid.analysis.claims import VERDICTS, Claims
from attngrid.core.files import write_atomically
from attngrid.render.tables import MISSING, escape

FILE = Path("tables/numbers.tex")
Number = tuple[str, str]  # what a macro prints, and where it is from


def numbers(
    claims: Claims, answers: pd.DataFrame, choices: pd.DataFrame, lines: Sequence[Line]
) -> dict[str, Number]:
    """The macros by name, letters only; what was not measured is ``--``.

    Args:
        claims: their families have the levels.
        answers: as ``verdicts.answer`` gives them.
        choices: as ``selection`` gives them.
        lines: as ``audit`` gives them.
    """
    found = {
        f"Audit{_name(line.finding, line.key)}": (line.value, line.arithmetic) for line in lines
    }
    found |= _verdicts(answers)
    for metric, name in (("top1_error", "TopOne"), ("top5_error", "TopFive")):
        rows = choices[(choices["condition"] == "all") & (choices["metric"] == metric)]
        for key in ("cells", "chosen", "mean", "low", "high", "largest"):
            value = MISSING if rows.empty or pd.isna(rows[key].iloc[0]) else rows[key].iloc[0]
            text = value if isinstance(value, str) else f"{value:.{0 if key[0] == 'c' else 2}f}"
            found[f"Selection{_name(key)}{name}"] = (text, "results/selection.csv")
    for name, family in claims.families.items():
        found[f"Smallest{_name(name)}"] = (f"{family.smallest_effect:g}", "reference/claims.yaml")
    levels = {family.alpha for family in claims.families.values()}
    powers = {family.power for family in claims.families.values()}
    if len(levels) == len(powers) == 1:
        found["Level"] = (f"{levels.pop():g}", "reference/claims.yaml")
        found["Power"] = (f"{100 * powers.pop():.0f}", "reference/claims.yaml")
    return found


def _verdicts(answers: pd.DataFrame) -> Mapping[str, Number]:
    """How many claims there are, of tests and of counts, and how many have each verdict."""
    counts = answers["kind"].isin(["printed", "cost"])
    found: dict[str, Number] = {}
    for name, rows in (
        ("Claims", answers),
        ("TestedClaims", answers[~counts]),
        ("CountedClaims", answers[counts]),
        ("PrintedClaims", answers[answers["kind"] == "printed"]),
    ):
        found[name] = (str(rows["claim"].nunique()), "results/claims.csv")
        for verdict in VERDICTS:
            number = str((rows["verdict"] == verdict).sum())
            found[f"{name}{_name(*verdict.split())}"] = (number, "results/claims.csv")
    ids = {name for text in answers["records"].dropna() for name in str(text).split()}
    found["ClaimsRecords"] = (str(len(ids)), "results/claims.csv")
    return found


def _name(*parts: str) -> str:
    words = {"1": "one", "2": "two", "3": "three", "4": "four", "6": "six", "100": "hundred"}
    text = "_".join(parts)
    for digits in sorted(words, key=len, reverse=True):
        text = text.replace(digits, f"_{words[digits]}_")
    return "".join(part.capitalize() for part in text.split("_"))


def write_numbers(found: Mapping[str, Number], file: Path = FILE) -> None:
    """Write the macros, atomically."""

    def line(name: str, value: str, source: str) -> str:
        # a minus, not a hyphen; a dash stays one
        signed = value[0] in "+-" and value[1:2].isdigit()
        text = rf"\ensuremath{{{value}}}" if signed else escape(value)
        return rf"\newcommand{{\{name}}}{{{text}}}% {source or 'as printed'}"

    head = ["% attngrid: numbers for prose, generated; edits are lost."]
    body: Iterable[str] = (line(name, *number) for name, number in sorted(found.items()))
    write_atomically(file, "\n".join([*head, *body]) + "\n")
