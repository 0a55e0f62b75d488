"""One self-contained HTML page with a study's tables, figures and configuration."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jinja2

from attngrid.config import Study
from attngrid.evidence.frames import Results, unfinished
from attngrid.files import shipped, write_atomically
from attngrid.render.tables import Table

CAPTIONS = {
    "modules": "CSM, Fig. 5: the baseline, CAM, SAM and CSM; mean and deviation over seeds.",
    "ordering": "CSM, Fig. 6: which attention comes first; mean and standard deviation over seeds.",
    "maf_curve": "MobileNetV1 with MAF_C on ImageNet-1K: its authors' published log, and ours.",
    "accuracy_macs": "Accuracy against multiply-accumulates; mean and standard deviation.",
    "maps": (
        "In kind CSM, Fig. 4, on this study's own data: Grad-CAM of the true class on the last "
        "stage's output, and the attention module's own spatial map where it has one."
    ),
}


def write_report(
    study: Study,
    results: Results,
    tables: list[Table],
    templates: Path = Path("workflow/templates"),
) -> Path:
    """Write ``results/<study>/report.html`` from tables and from figures already drawn."""
    html = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped(templates)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [
        (CAPTIONS[name], base64.b64encode(study.figure_files(name)[1].read_bytes()).decode())
        for name in study.figures
    ]
    measured = results.cells[results.cells["state"] == "measured"].drop_duplicates("id")
    trials = results.cells[:0] if results.trials is None else results.trials
    tried = trials[trials["state"].isin(["measured", "diverged"])].drop_duplicates("id")
    file = study.results / "report.html"
    page = html.get_template("report.html.j2").render(
        study=study,
        tables=tables,
        figures=figures,
        trainings=len(study.trainings),
        trials=len(study.trials),
        measured=len(measured),
        tried=len(tried),
        hours=(measured["wall_s"].sum() + tried["wall_s"].sum()) / 3600,
        machines=sorted(set(measured["device_name"].dropna())),
        unfinished=unfinished(results),
        configuration=json.dumps(study.model_dump(mode="json"), indent=1),
    )
    write_atomically(file, page)
    return file
