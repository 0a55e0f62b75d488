"""Train a table's row again, and report the comparison with its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attngrid.analysis.replication import compare, retrain
from attngrid.core.errors import InconclusiveError, InconsistentError, RecordError
from attngrid.render.trace import trace


def replicate(row: str, folder: Path, budget_s: float) -> Iterator[str]:
    """Train a row's cells again into a folder; yield the lines of the report.

    Raises:
        RecordError: the row has no record.
        InconclusiveError: no training finished within the budget.
        InconsistentError: the new trainings are not consistent with the records.
    """
    study, _, _, found, cells = trace(row)
    cells = [cell for cell in cells if cell.record.is_file()]
    if not cells:
        raise RecordError(f"{row}: found no record of this row; needs at least one to repeat")
    again = retrain(study, cells, folder, budget_s)
    consistent = True
    for condition in dict.fromkeys(cell.condition for cell in again):
        old, new = ([c for c in group if c.condition == condition] for group in (cells, again))
        result = compare(old, new, folder)
        consistent &= result.consistent
        yield f"{found.label}: {condition}"
        yield f"  {result.trained} trained again, {result.identical} equal to the bit"
        yield (
            f"  top-1 error: new mean less the {result.records} records' "
            f"{result.difference:+.3f} points, {result.limit:.3f} allowed: "
            f"{'consistent' if result.consistent else 'not consistent'}"
        )
    if not again:
        raise InconclusiveError(
            f"{row}: no training finished within {budget_s:g} s; the same command goes on from "
            "its checkpoint"
        )
    if not consistent:
        raise InconsistentError(f"{row}: not consistent with the records")
