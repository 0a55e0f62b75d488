"""A study's records as tidy pandas frames; ``docs/results.md`` explains every column."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.cell import MODEL_KEY
from attngrid.config import Study
from attngrid.errors import AttngridError, RecordError
from attngrid.evidence.maps import Maps, read_maps
from attngrid.evidence.stale import stale_records
from attngrid.files import write_atomically
from attngrid.site import results_folder
from attngrid.training.record import STOPPED, read_record, read_status

ERRORS = ("top1_error", "top5_error", "best_top1_error", "best_top5_error")
# What the seeds of a summary's row share.
GROUP = ("study", "dataset", "backbone", "attention", "recipe", "options", "condition")
COUNTS = ("params", "macs", "fvcore_total")
# A cell of these was tried and has no figure to show.
LOST = ("diverged", "failed", "refused", "stale")
INTEGERS = ("best_epoch", "train_images", "test_images", *COUNTS)
STATES = ("measured", *LOST, "running", "not_run")


@dataclass(frozen=True)
class Results:
    """A study's frames.

    Attributes:
        cells: one row a cell.
        epochs: one row a cell and epoch.
        summary: one row a model and condition, over its seeds.
        maps: the attention maps, None before they have been made.
    """

    cells: pd.DataFrame
    epochs: pd.DataFrame
    summary: pd.DataFrame
    maps: Maps | None = None


def load_results(study: str, folder: str | Path | None = None) -> Results:
    """The collected frames and the attention maps of a study, for a notebook.

    Args:
        study: its name, ``demo`` for ``results/demo``.
        folder: the one that holds ``results/``; left out: where the site has them.

    Raises:
        AttngridError: the study has not been collected.
        RecordError: its maps cannot be read.
    """
    home = (results_folder() if folder is None else Path(folder) / "results") / study
    if missing := [n for n in ("cells", "epochs", "summary") if not (home / f"{n}.csv").is_file()]:
        raise AttngridError(
            f"{home.absolute()}: there is no {' or '.join(f'{name}.csv' for name in missing)}; "
            "`snakemake current --configfile ...` collects whatever records exist, and `folder` "
            "says where results/ is"
        )
    maps = read_maps(home / "maps.npz") if (home / "maps.npz").is_file() else None
    cells, epochs, summary = (
        read_frame(home / f"{name}.csv") for name in ("cells", "epochs", "summary")
    )
    return Results(cells, epochs, summary, maps)


def read_frame(file: Path) -> pd.DataFrame:
    """Read one of the CSVs. The attention ``none`` is a name, not a missing value."""
    frame = pd.read_csv(file, keep_default_na=False, na_values=[""])
    texts = frame.columns.intersection(["options", "message"])
    frame[texts] = frame[texts].astype(object).fillna("")
    return frame


def collect(study: Study, *, trained_by_now: bool = False) -> Results:
    """Read a study's records, whichever there are, into frames.

    Args:
        study: its configuration.
        trained_by_now: no training of this study is running any more, wherever it ran, so
            that what still says so has failed.
    """
    counted = _counted(study)
    stale = stale_records(study)
    cells, epochs = [], []
    for cell in study.cells:
        row: dict[str, Any] = {
            "study": study.study,
            "id": cell.id,
            "dataset": cell.dataset,
            "backbone": cell.backbone,
            "attention": cell.attention,
            "recipe": cell.recipe_name,
            "seed": cell.seed,
            "options": cell.options_text,
            "condition": cell.condition,
            **counted.get(cell.model_key, {}),
        }
        names = {key: row[key] for key in (*GROUP, "seed", "id")}
        if cell.id in stale:
            row |= {"state": "stale", "message": stale[cell.id][1]}
        elif cell.record.is_file():
            try:
                record = read_record(cell.record, cell)
            except RecordError as error:
                cells.append(row | {"state": "refused", "message": str(error)})
                continue
            row |= {"state": "measured", "message": ""}
            row |= record.metrics.model_dump(exclude={"curve"})
            row |= {name: record.run.get(name) for name in RUN_COLUMNS}
            epochs += [{**names, **line.model_dump()} for line in record.metrics.curve]
        else:
            status = read_status(cell.status) or {"state": "not_run", "message": ""}
            if trained_by_now and status["state"] == "running":
                status = {"state": "failed", "message": STOPPED}
            row |= {"state": status["state"], "message": status["message"]}
        cells.append(row)
    frame = pd.DataFrame(cells, columns=CELL_COLUMNS)
    # whole numbers that may be missing
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    return Results(frame, pd.DataFrame(epochs, columns=EPOCH_COLUMNS), _summarise(frame))


# Of a record's ``run`` block.
RUN_COLUMNS = (
    "wall_s",
    "images_per_s",
    "peak_memory_mb",
    "device",
    "device_name",
    "deterministic",
    "resumed",
    "torch",
    "commit",
    "started",
)
CELL_COLUMNS = [
    "study",
    "id",
    *GROUP[1:5],
    "seed",
    *GROUP[5:],
    "state",
    "message",
    *ERRORS,
    "best_epoch",
    "train_images",
    "test_images",
    *COUNTS,
    *RUN_COLUMNS,
]
EPOCH_COLUMNS = [
    *GROUP,
    "seed",
    "id",
    "epoch",
    "learning_rate",
    "train_loss",
    "train_top1_error",
    "test_loss",
    "test_top1_error",
    "test_top5_error",
]


def _summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (÷ n−1; empty at one seed) and n over the seeds."""
    rows = []
    for key, group in cells.groupby(list(GROUP), sort=False, dropna=False):
        states = Counter(group["state"])
        row: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        row |= {name: group[name].iloc[0] for name in COUNTS}
        row |= {"n": states["measured"]}
        row |= {f"n_{state}": states[state] for state in STATES[1:]}
        for name in ERRORS:
            values = group.loc[group["state"] == "measured", name].astype(float)
            row |= {f"{name}_mean": values.mean(), f"{name}_std": values.std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def _counted(study: Study) -> dict[tuple[Any, ...], dict[str, int]]:
    """The study's complexity, by model; empty until it has been counted."""
    file = study.results / "complexity.csv"
    if not file.is_file():
        return {}
    return {
        tuple(row[key] for key in MODEL_KEY): {name: row[name] for name in COUNTS}
        for row in read_frame(file).to_dict("records")
    }


def write_results(study: Study, results: Results) -> None:
    """Write the three frames as CSV, and the configuration they are of, each atomically.

    The mark that they are complete goes first and comes last: frames of another configuration, or
    of half a grid, are collected again by the next run.
    """
    for mark in study.collected.parent.glob("*.collected"):
        mark.unlink(missing_ok=True)
    write_atomically(study.file, study.resolved())
    for name in ("cells", "epochs", "summary"):
        frame: pd.DataFrame = getattr(results, name)
        write_atomically(study.results / f"{name}.csv", frame.to_csv(index=False))
    # what is stale is not trained by this run either
    if results.cells["state"].isin(["measured", "stale"]).all():
        write_atomically(study.collected, "")


def unfinished(results: Results) -> list[str]:
    """One line for each cell that diverged or failed, or whose record was refused or is stale."""
    rows = results.cells[results.cells["state"].isin(LOST)]
    rows = rows.drop_duplicates("id")
    return [f"{row['id']}: {row['state']}: {row['message']}" for row in rows.to_dict("records")]
