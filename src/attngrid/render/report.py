"""One self-contained HTML page with a study's tables, figures and configuration."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from attngrid.analysis.frames import Results, unfinished
from attngrid.core.files import shipped, write_atomically
from attngrid.render.tables import Table
from attngrid.study.labels import attention_label, model_label
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

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


# The table of cells: column of the frame, head, decimals.
COLUMNS = (
    ("model", "Model", None),
    ("condition", "Condition", None),
    ("seed", "Seed", 0),
    ("state", "State", None),
    ("top1_error", "Top-1 error (%)", 2),
    ("top5_error", "Top-5 error (%)", 2),
    ("best_top1_error", "Best epoch's (%)", 2),
    ("params_m", "Params (M)", 3),
    ("gmacs", "GMACs", 4),
    ("wall_s", "Time (s)", 0),
)
CURVES = ("epoch", "train_loss", "train_top1_error", "test_loss", "test_top1_error")


def write_report(
    study: Study,
    results: Results,
    tables: list[Table],
    claims: Table | None = None,
    figures: Sequence[str] | None = None,
    templates: Path = Path("workflow/templates"),
) -> Path:
    """Write ``results/<study>/report.html`` from tables and from figures already drawn.

    The page needs nothing but itself: figures, cells, curves and records are in it.

    Args:
        study: the configuration.
        results: its frames.
        tables: in the page's order.
        claims: the verdicts, if there are any.
        figures: the names of those to show; None: all of the study's.
        templates: the folder of the page's template and script.
    """
    html = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped(templates)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        (CAPTIONS[name], base64.b64encode(study.figure_files(name)[1].read_bytes()).decode())
        for name in (study.figures if figures is None else figures)
    ]
    measured = results.cells[results.cells["state"] == "measured"].drop_duplicates("id")
    trials = results.cells[:0] if results.trials is None else results.trials
    tried = trials[trials["state"].isin(["measured", "diverged"])].drop_duplicates("id")
    file = study.results / "report.html"
    page = html.get_template("report.html.j2").render(
        columns=[{"key": key, "title": title} for key, title, _ in COLUMNS],
        data=_data(results),
        script=Markup(shipped(templates / "report.js").read_text("utf-8")),  # noqa: S704 - ours
        claims=claims,
        study=study,
        tables=tables,
        figures=pictures,
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


def _data(results: Results) -> Markup:
    """What the page's script reads, as JSON that cannot end its element."""
    cells = results.cells.assign(
        model=[
            model_label(row["backbone"], row["attention"])
            for row in results.cells.to_dict("records")
        ],
        attention_label=results.cells["attention"].map(attention_label),
        params_m=results.cells["params"].astype("Float64") / 1e6,
        gmacs=results.cells["macs"].astype("Float64") / 1e9,
    )
    wanted = ["id", "attention", "attention_label", "message", "params", "macs"]
    wanted += [key for key, *_ in COLUMNS]
    rows = json.loads(cells[wanted].to_json(orient="records"))
    for place, row in enumerate(rows):
        row["key"] = place
    epochs = results.epochs.drop_duplicates(["id", "epoch"])
    measured = set(results.cells.loc[results.cells["state"] == "measured", "id"])
    content = {
        "columns": [
            {"key": k, "decimals": d} if d is not None else {"key": k} for k, _, d in COLUMNS
        ],
        "cells": rows,
        "curves": {
            str(name): {key: _short(curve[key]) for key in CURVES}
            for name, curve in epochs.groupby("id", sort=False)
        },
        "records": {
            str(row["id"]): _record(str(row["study"]), str(row["id"]))
            for row in results.cells.to_dict("records")
            if row["id"] in measured
        },
    }
    return Markup(json.dumps(content).replace("<", "\\u003c"))  # noqa: S704 - no < is left


def _short(values: pd.Series[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _record(study: str, name: str) -> dict[str, Any]:
    """A record without its curve, which the page draws."""
    file = results_folder() / study / "records" / f"{name}.json"
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    content.get("metrics", {}).pop("curve", None)
    return {"file": str(file), "content": content}
