"""The audit of the published figures, as a table and as text."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pandas as pd

from attngrid.analysis.audit import FINDINGS, Line
from attngrid.core.files import shipped, write_atomically
from attngrid.render.tables import Head, Row, Table, Value, write_table
from attngrid.study.paths import results_folder


def write_audit(lines: list[Line], templates: Path = Path("workflow/templates")) -> None:
    """Write ``results/audit.csv``, ``tables/audit.tex`` and the text ``tables/audit.md``."""
    frame = pd.DataFrame([line.__dict__ for line in lines])
    write_atomically(results_folder() / "audit.csv", frame.to_csv(index=False))
    group = "From printed and counted figures"
    before = ["", *(line.finding for line in lines)]
    table = Table(
        stem="audit",
        caption="The published figures, audited: each value with its arithmetic.",
        heads=(Head(group, "Arithmetic", None, 1), Head(group, "Value", None, 1)),
        rows=tuple(
            Row(
                line.quantity,
                (Value(line.arithmetic or "as printed"), Value(line.value)),
                starts_backbone=place > 0 and line.finding != before[place],
            )
            for place, line in enumerate(lines)
        ),
        frame=frame,
        stub="Quantity",
    )
    write_table(table, templates, kinds=(".tex",))
    markdown = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped(templates)),
        autoescape=False,  # noqa: S701 - Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    findings = [
        (title, text, [line for line in lines if line.finding == name])
        for name, (title, text) in FINDINGS.items()
    ]
    page = markdown.get_template("audit.md.j2").render(findings=findings)
    write_atomically(Path("tables/audit.md"), page)
