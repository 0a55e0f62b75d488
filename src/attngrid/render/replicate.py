"""Train a table's row again, and report the comparison with its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attngrid.analysis.deviations import known_deviation
from attngrid.analysis.frames import collect
from attngrid.analysis.replication import compare, retrain
from attngrid.core.errors import InconclusiveError, InconsistentError, RecordError
from attngrid.render.trace import trace


def replicate(row: str, folder: Path, budget_s: float) -> Iterator[str]:
    """Train a row's cells again into a folder; yield the lines of the report.

    Raises:
        RecordError: the row has no record.
        InconclusiveError: no training finished within the budget, or one differs and the
            deviation over seeds is not known.
        InconsistentError: the new trainings are not consistent with the records.
    """
    study, _, _, found, cells = trace(row)
    cells = [cell for cell in cells if cell.record.is_file()]
    if not cells:
        raise RecordError(f"{row}: found no record of this row; needs at least one to repeat")
    again = {cell.id: cell for cell in retrain(study, cells, folder, budget_s)}
    if not again:
        raise InconclusiveError(
            f"{row}: no training finished within {budget_s:g} s; the same command goes on from "
            "its checkpoint"
        )
    frame = collect(study).cells
    verdicts = set()
    own = frame[frame["id"].isin(list(again))].drop_duplicates("id")
    for condition, group in own.groupby("condition", sort=False):
        first = group.iloc[0]
        rows = frame[(frame["condition"] == condition) & (frame["state"] == "measured")]
        model = (first["dataset"], first["backbone"], first["recipe"])
        known = known_deviation(rows, "top1_error", *model)
        result = compare([again[id] for id in group["id"]], folder, known)
        verdicts.add(result.consistent)
        words = {True: "consistent", False: "not consistent", None: "inconclusive"}
        limit = "unknown" if result.limit is None else f"{result.limit:.3f}"
        yield f"{found.label}: {condition}"
        yield f"  {result.trained} trained again, {result.identical} equal to the bit"
        yield (
            f"  top-1 error: new less old {result.difference:+.3f} points on average, {limit} "
            f"allowed ({result.basis}): {words[result.consistent]}"
        )
    if False in verdicts:
        raise InconsistentError(f"{row}: not consistent with the records")
    if None in verdicts:
        raise InconclusiveError(
            f"{row}: one training differs from its record, and no deviation over seeds is known; "
            "records of more seeds make it known"
        )
