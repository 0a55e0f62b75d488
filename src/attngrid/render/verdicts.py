"""The verdicts on the claims as files: CSV, tables, and the numbers that the paper quotes."""

from __future__ import annotations

from attngrid.analysis.audit import audit
from attngrid.analysis.claims import load_claims
from attngrid.analysis.frames import all_cells, load_results, read_frame
from attngrid.core.files import shipped, write_atomically
from attngrid.render.audit import write_audit
from attngrid.render.claims import claims_table, summary_table
from attngrid.render.layout import Table, write_table
from attngrid.render.numbers import numbers, write_numbers
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study


def write_verdicts(study: Study | None) -> None:
    """Judge the claims by the records of all studies, and write all that follows from it.

    Args:
        study: also judged by its own conditions alone; None: no study.
    """
    # SciPy and statsmodels are an extra: without them tables and figures are still rendered.
    from attngrid.analysis.selection import selection
    from attngrid.analysis.verdicts import judge_claims, write_claims

    families, found = load_claims()
    if study is not None:
        cells = load_results(study.study).cells
        of_study = judge_claims(families, found, cells, reduced=True)
        write_claims(study.results / "claims.csv", of_study)
        write_table(claims_table(of_study, study.study))
    cells = all_cells()
    answers = judge_claims(families, found, cells)
    write_claims(results_folder() / "claims.csv", answers)
    write_table(claims_table(answers))
    write_table(summary_table(answers), kinds=(".md",))
    # the demo's digits are no evidence about the papers
    choices = selection(cells[cells["dataset"] != "digits"])
    text = choices.to_csv(index=False, float_format="%.10g")
    write_atomically(results_folder() / "selection.csv", text)
    if shipped("results/complexity.csv").is_file():
        lines = audit()
        write_audit(lines)
        write_numbers(numbers(families, answers, choices, lines))


def study_claims(study: Study) -> Table | None:
    """The study's claims table as it was last written; None without one."""
    file = study.results / "claims.csv"
    if not file.is_file():
        return None
    return claims_table(read_frame(file), study.study)
