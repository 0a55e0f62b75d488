"""One self-contained HTML page with a study's verdicts, charts, cells, tables and figures."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from attngrid.analysis.frames import Results, unfinished
from attngrid.core.errors import AttngridError
from attngrid.core.files import shipped, write_atomically
from attngrid.models.registry import attention_label
from attngrid.render.charts import COSTS, METRICS, charts
from attngrid.render.layout import MISSING, Table
from attngrid.render.templates import FOLDER, render
from attngrid.study.labels import model_label
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

LIBRARIES = ("vega", "vega-lite", "vega-embed")  # in the order in which they are loaded
# Parts of Snakemake's report that are not in this page.
NOT_HERE = ("snakemake", "pygments", "tailwindcss", "react", "heroicons", "prop-types")
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
    ("macs_m", "MACs (M)", 2),
    ("wall_s", "Time (s)", 0),
)


def write_report(
    study: Study,
    results: Results,
    tables: list[Table],
    claims: Table | None,
    figures: Sequence[str],
) -> None:
    """Write ``results/<study>/report.html`` from tables and from figures already drawn.

    The page contains figures, cells, curves, records and the libraries that show them, and loads
    no other file.

    Raises:
        AttngridError: the libraries are missing.
    """
    file = study.results / "report.html"
    libraries, licences = _libraries(file)
    scripts = [*libraries, shipped(FOLDER / "report.js").read_text("utf-8")]
    pictures = [
        (CAPTIONS[name], base64.b64encode(study.figure_files(name)[1].read_bytes()).decode())
        for name in figures
    ]
    measured = results.cells[results.cells["state"] == "measured"].drop_duplicates("id")
    trials = results.cells[:0] if results.trials is None else results.trials
    tried = trials[trials["state"].isin(["measured", "diverged"])].drop_duplicates("id")
    drawn = charts(results)
    content = {"charts": drawn, "records": _records(results.cells)}
    page = render(
        "report.html.j2",
        study=study,
        charts=drawn,
        metrics=METRICS,
        costs=COSTS,
        grid=_grid(results.cells),
        shared=_shared(results.cells),
        claims=None if claims is None else _without_constant(_verdict_first(claims)),
        verdicts={} if claims is None else claims.frame["verdict"].value_counts().to_dict(),
        tables=[_without_constant(table) for table in tables],
        figures=pictures,
        trainings=len(study.trainings),
        trials=len(study.trials),
        measured=len(measured),
        tried=len(tried),
        hours=(measured["wall_s"].sum() + tried["wall_s"].sum()) / 3600,
        machines=sorted(set(measured["device_name"].dropna())),
        unfinished=unfinished(results),
        configuration=json.dumps(study.model_dump(mode="json"), indent=1),
        # JSON without <, so that no text ends the script
        data=Markup(json.dumps(content).replace("<", "\\u003c")),  # noqa: S704
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - libraries and ours
        script_hashes=[_hash(script) for script in scripts],
        licences=licences,
    )
    write_atomically(file, page)


def _libraries(page: Path) -> tuple[list[str], list[str]]:
    """Scripts and licences of Vega-Lite and what it needs, as in Snakemake's own report."""
    try:
        from snakemake.assets import Assets

        folder = Assets.base_path()  # get_content would download what is missing
        scripts = [(folder / name / f"{name}.js").read_text("utf-8") for name in LIBRARIES]
        licences = [
            f"{name}\n\n{(folder / name).read_text('utf-8')}"
            for name in Assets.spec
            if ("/LICENSE" in name or "/NOTICE" in name) and not name.startswith(NOT_HERE)
        ]
    except (ImportError, OSError) as error:
        raise AttngridError(
            f"{page}: its charts need Vega-Lite, which Snakemake's package contains "
            f'({error}): pip install "attngrid[workflow]"'
        ) from error
    return scripts, licences


def _hash(script: str) -> str:
    """The source expression that lets a browser run this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _shared(cells: pd.DataFrame) -> list[str]:
    """The attentions that share a training, because they compute the same function."""
    labels = cells["attention"].map(attention_label).groupby(cells["id"], sort=False)
    joined = labels.agg(lambda own: " = ".join(own.unique()))
    return list(dict.fromkeys(text for text in joined if " = " in text))


def _constant(rows: Sequence[Sequence[str]]) -> set[int]:
    """The places of the columns with the same text in all rows."""
    columns = enumerate(zip(*rows, strict=True))
    return {place for place, texts in columns if len(texts) > 1 and len(set(texts)) == 1}


def _without_constant(table: Table) -> tuple[Table, list[str]]:
    """A table without its constant columns, and what these say."""
    constant = _constant([[value.text for value in row.values] for row in table.rows])
    kept = [place for place in range(len(table.heads)) if place not in constant]
    rows = [replace(row, values=tuple(row.values[place] for place in kept)) for row in table.rows]
    heads = tuple(table.heads[place] for place in kept)
    titles = [head.title for head in table.heads]
    said = []
    for place in sorted(constant):
        group = f"{table.heads[place].group}, " if titles.count(titles[place]) > 1 else ""
        said.append(f"{group}{titles[place]}: {table.rows[0].values[place].text}")
    return replace(table, heads=heads, rows=tuple(rows)), said


def _verdict_first(table: Table) -> Table:
    """A table of claims with its last column, the verdict, as the first; a phone shows no more."""
    rows = tuple(replace(row, values=(row.values[-1], *row.values[:-1])) for row in table.rows)
    return replace(table, heads=(table.heads[-1], *table.heads[:-1]), rows=rows)


def _grid(cells: pd.DataFrame) -> dict[str, Any]:
    """The table of cells: columns, rows, what all rows share, and an example of a filter."""
    models = zip(cells["backbone"], cells["attention"], strict=True)
    frame = cells.assign(
        model=[model_label(*model) for model in models],
        params_m=cells["params"].astype("Float64") / 1e6,
        macs_m=cells["macs"].astype("Float64") / 1e6,
    ).astype(object)
    frame["state"] = frame["state"].str.replace("_", " ")
    rows = frame.where(frame.notna(), None).to_dict("records")
    texts = [[_text(row[key], decimals) for key, _, decimals in COLUMNS] for row in rows]
    constant = _constant(texts) - {0}
    kept = [place for place in range(len(COLUMNS)) if place not in constant]
    keys = ("backbone", "attention", "dataset", "recipe", "id")
    return {
        "columns": [COLUMNS[place] for place in kept],
        "rows": [
            {
                "id": row["id"],
                "words": " ".join([*own, *(str(row[key]) for key in keys)]).lower(),
                "values": [(own[place], row[COLUMNS[place][0]]) for place in kept],
            }
            for row, own in zip(rows, texts, strict=True)
        ],
        "constant": [f"{COLUMNS[place][1]}: {texts[0][place]}" for place in sorted(constant)],
        "example": " ".join(rows[-1][key] for key in ("backbone", "attention", "state")),
    }


def _text(value: Any, decimals: int | None) -> str:
    if value is None or value == "":
        return MISSING
    return str(value) if decimals is None else f"{value:.{decimals}f}"


def _records(cells: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of each cell: its record without the curve, or why there is none."""
    found = {}
    for row in cells.drop_duplicates("id").to_dict("records"):
        file = results_folder() / row["study"] / "records" / f"{row['id']}.json"
        content: dict[str, Any] = {}
        state = row["state"].replace("_", " ")
        if row["state"] == "measured" and file.is_file():
            content = json.loads(file.read_text("utf-8"))
            content["metrics"].pop("curve", None)
        found[row["id"]] = {
            "title": f"{model_label(row['backbone'], row['attention'])}, seed {row['seed']}",
            "condition": row["condition"],
            "file": str(file) if content else f"no record: {state}",
            "message": row["message"] if isinstance(row["message"], str) else "",
            "content": content or None,
        }
    return found
