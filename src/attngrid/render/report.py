"""One self-contained HTML page with a study's tables, figures and configuration."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from attngrid.analysis.frames import Results, unfinished
from attngrid.core.files import shipped, write_atomically
from attngrid.models.registry import attention_label
from attngrid.render.layout import Table
from attngrid.render.templates import FOLDER, render
from attngrid.study.labels import model_label
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

CAPTIONS = {
    "gains": (
        "Gain in top-1 accuracy over the same backbone without attention: mean with its 95 % "
        "interval (Welch's t-test), and each seed as a dot; hollow squares are widened baselines."
    ),
    "modules": "CSM, Fig. 5: the baseline, CAM, SAM and CSM; mean and standard deviation.",
    "ordering": "CSM, Fig. 6: which attention comes first; mean and standard deviation over seeds.",
    "maf_curve": "MobileNetV1 with MAF_C on ImageNet-1K: its authors' published log, and ours.",
    "accuracy_macs": "Accuracy against multiply-accumulates; mean and standard deviation.",
    "maps": (
        "As in CSM's Fig. 4, on this study's own data: Grad-CAM of the true class "
        "on the last stage's output, and the attention module's own spatial map where it has one."
    ),
}
# The columns of the table of cells: key in the frame, head, decimals.
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
    claims: Table | None,
    figures: Sequence[str],
) -> None:
    """Write ``results/<study>/report.html`` from tables and from figures already drawn.

    The page contains figures, cells, curves and records, and loads no other file.
    """
    pictures = [
        (CAPTIONS[name], base64.b64encode(study.figure_files(name)[1].read_bytes()).decode())
        for name in figures
    ]
    measured = results.cells[results.cells["state"] == "measured"].drop_duplicates("id")
    trials = results.cells[:0] if results.trials is None else results.trials
    tried = trials[trials["state"].isin(["measured", "diverged"])].drop_duplicates("id")
    page = render(
        "report.html.j2",
        columns=[{"key": key, "title": title} for key, title, _ in COLUMNS],
        data=_data(results),
        script=Markup(shipped(FOLDER / "report.js").read_text("utf-8")),  # noqa: S704 - ours
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
    write_atomically(study.results / "report.html", page)


def _data(results: Results) -> Markup:
    """The data of the page's script, as JSON without ``<``, so that no text ends the script."""
    models = zip(results.cells["backbone"], results.cells["attention"], strict=True)
    cells = results.cells.assign(
        model=[model_label(*model) for model in models],
        attention_label=results.cells["attention"].map(attention_label),
        params_m=results.cells["params"].astype("Float64") / 1e6,
        gmacs=results.cells["macs"].astype("Float64") / 1e9,
    )
    keys = ["id", "attention", "attention_label", "message", "params", "macs"]
    keys += [key for key, *_ in COLUMNS]
    rows = json.loads(cells[keys].to_json(orient="records"))
    epochs = results.epochs.drop_duplicates(["id", "epoch"])
    measured = results.cells[results.cells["state"] == "measured"]
    content = {
        "columns": [
            {"key": k, "decimals": d} if d is not None else {"key": k} for k, _, d in COLUMNS
        ],
        "cells": [row | {"key": place} for place, row in enumerate(rows)],
        "curves": {
            str(name): {key: [float(f"{value:.5g}") for value in curve[key]] for key in CURVES}
            for name, curve in epochs.groupby("id", sort=False)
        },
        "records": {
            id: _record(results_folder() / study / "records" / f"{id}.json")
            for study, id in zip(measured["study"], measured["id"], strict=True)
        },
    }
    return Markup(json.dumps(content).replace("<", "\\u003c"))  # noqa: S704 - no < is left


def _record(file: Path) -> dict[str, Any]:
    """A record without its curve; the page draws the curve."""
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    content.get("metrics", {}).pop("curve", None)
    return {"file": str(file), "content": content}
