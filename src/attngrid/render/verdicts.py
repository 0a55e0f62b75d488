"""Write the verdicts and the audit as CSV, tables, and LaTeX macros for the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from attngrid.analysis.audit import Line, audit
from attngrid.analysis.claims import VERDICTS, Claims, load_claims, load_study_claims
from attngrid.analysis.frames import all_cells, load_results, read_frame, record_ids
from attngrid.core.files import is_checkout, shipped, write_atomically
from attngrid.render.claims import claims_table, summary_table
from attngrid.render.layout import MISSING, Head, Row, Table, Value, write_table
from attngrid.render.templates import escape, render
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

NUMBERS = Path("tables/numbers.tex")
Number = tuple[str, str]  # the text that a macro prints, and its source


def write_verdicts(study: Study | None) -> None:
    """Judge the claims by the records of all studies, and of one study if it is given.

    A study with its own claims is judged by these. Beside such a study, and in a user's folder,
    nothing else is written about the papers.
    """
    # Imported here: without SciPy and statsmodels, tables and figures are still rendered.
    from attngrid.analysis.selection import selection
    from attngrid.analysis.verdicts import judge_claims, write_claims

    if study is not None:
        cells = load_results(study.study).cells
        of_study = judge_claims(*load_study_claims(study), cells, reduced=True)
        write_claims(study.results / "claims.csv", of_study)
        write_table(claims_table(of_study, study.study, study.claims))
        if study.claims is not None or not is_checkout():
            return
    families, found = load_claims()
    cells = all_cells()
    overall = judge_claims(families, found, cells)
    write_claims(results_folder() / "claims.csv", overall)
    write_table(claims_table(overall))
    write_table(summary_table(overall), kinds=(".md",))
    # results on digits, the demo's dataset, say nothing about the papers
    choices = selection(cells[cells["dataset"] != "digits"])
    text = choices.to_csv(index=False, float_format="%.10g")
    write_atomically(results_folder() / "selection.csv", text)
    if shipped("results/complexity.csv").is_file():
        lines = audit()
        write_audit(lines)
        write_numbers(numbers(families, overall, choices, lines))


def study_claims(study: Study) -> Table | None:
    """The study's claims table as last written, or None."""
    file = study.results / "claims.csv"
    if not file.is_file():
        return None
    return claims_table(read_frame(file), study.study, study.claims)


def write_audit(lines: list[Line]) -> None:
    """Write ``results/audit.csv``, ``tables/audit.tex`` and the text ``tables/audit.md``."""
    frame = pd.DataFrame([line.__dict__ for line in lines])
    write_atomically(results_folder() / "audit.csv", frame.to_csv(index=False))
    group = "From printed and counted figures"
    rows = []
    for before, line in pairwise([lines[0], *lines]):
        values = (Value(line.arithmetic or "as printed"), Value(line.value))
        rows.append(Row(line.quantity, values, starts_backbone=line.finding != before.finding))
    table = Table(
        stem="audit",
        caption="The published figures, audited: each value with its arithmetic.",
        heads=(Head(group, "Arithmetic"), Head(group, "Value")),
        rows=tuple(rows),
        frame=frame,
        stub="Quantity",
    )
    write_table(table, kinds=(".tex",))
    write_atomically(Path("tables/audit.md"), render("audit.md.j2", lines=lines))


def numbers(
    claims: Claims, results: pd.DataFrame, choices: pd.DataFrame, lines: Sequence[Line]
) -> dict[str, Number]:
    """The LaTeX macros by name (letters only); a figure that was not measured is ``--``.

    They come from ``judge_claims``, ``selection``, ``audit`` and the levels of the families.
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


def write_numbers(found: Mapping[str, Number], file: Path = NUMBERS) -> None:
    """Write the macros, atomically."""
    lines = ["% attngrid: numbers for prose, generated; edits are lost."]
    for name, (value, source) in sorted(found.items()):
        # a signed number gets a minus sign instead of a hyphen
        signed = value[0] in "+-" and value[1:2].isdigit()
        text = rf"\ensuremath{{{value}}}" if signed else escape(value)
        lines.append(rf"\newcommand{{\{name}}}{{{text}}}% {source or 'as printed'}")
    write_atomically(file, "\n".join(lines) + "\n")
