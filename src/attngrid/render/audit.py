"""The audit of the published figures, as a table and as text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from attngrid.analysis.audit import Line
from attngrid.core.files import write_atomically
from attngrid.render.layout import Head, Row, Table, Value, write_table
from attngrid.render.templates import render
from attngrid.study.paths import results_folder


def write_audit(lines: list[Line]) -> None:
    """Write ``results/audit.csv``, ``tables/audit.tex`` and the text ``tables/audit.md``."""
    frame = pd.DataFrame([line.__dict__ for line in lines])
    write_atomically(results_folder() / "audit.csv", frame.to_csv(index=False))
    group = "From printed and counted figures"
    rows, before = [], lines[0].finding
    for line in lines:
        values = (Value(line.arithmetic or "as printed"), Value(line.value))
        rows.append(Row(line.quantity, values, starts_backbone=line.finding != before))
        before = line.finding
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
