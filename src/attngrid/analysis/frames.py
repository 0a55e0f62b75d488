"""A study's records as tidy pandas frames; ``docs/results.md`` explains every column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from attngrid.analysis.maps import Maps, read_maps
from attngrid.core.errors import AttngridError, RecordError
from attngrid.core.files import write_atomically
from attngrid.records.record import Record, read_record, read_trial
from attngrid.records.staleness import describe_code, other_code, stale_records
from attngrid.records.status import STOPPED, read_status
from attngrid.study.cell import MODEL_KEY, Cell
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study
from attngrid.study.tuning import TUNED_KEYS
from attngrid.training.tuning import read_choice

ERRORS = ("top1_error", "top5_error", "best_top1_error", "best_top5_error")
SELECTIONS = ("top1_selection", "top5_selection")
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
        trials: one row a trial of a tuned model, None in a study without tuning.
    """

    cells: pd.DataFrame
    epochs: pd.DataFrame
    summary: pd.DataFrame
    maps: Maps | None = None
    trials: pd.DataFrame | None = None


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
        collected = ", ".join(sorted(file.parent.name for file in home.parent.glob("*/cells.csv")))
        raise AttngridError(
            f"{home.absolute()}: there is no {' or '.join(f'{name}.csv' for name in missing)}; "
            f"studies that have been collected there: {collected or 'none'}. "
            "`snakemake current --configfile ...` collects whatever records exist, and `folder` "
            "says where results/ is"
        )
    maps = read_maps(home / "maps.npz") if (home / "maps.npz").is_file() else None
    cells, epochs, summary = (
        read_frame(home / f"{name}.csv") for name in ("cells", "epochs", "summary")
    )
    trials = read_frame(home / "trials.csv") if (home / "trials.csv").is_file() else None
    return Results(cells, epochs, summary, maps, trials)


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
            "id": cell.id,
            **_group(cell),
            "seed": cell.seed,
            **({} if cell.tuning else _setting(cell.recipe.model_dump())),
            **counted.get(cell.model_key, {}),
        }
        names = {key: row[key] for key in (*GROUP, "seed", "id")}
        if cell.id in stale:
            row |= {"state": "stale", "message": stale[cell.id][1]}
        elif cell.record.is_file():
            try:
                record = _measured(cell)
            except RecordError as error:
                cells.append(row | {"state": "refused", "message": str(error)})
                continue
            message = describe_code(record.run) if other_code(record) else ""
            row |= {"state": "measured", "message": message}
            row |= record.metrics.model_dump(exclude={"curve"})
            if cell.tuning is not None:
                row |= _setting(record.config["recipe"])
            row |= {name: record.run.get(name) for name in RUN_COLUMNS}
            epochs += [{**names, **line.model_dump()} for line in record.metrics.curve]
        else:
            row |= _unmeasured(cell, trained_by_now)
        cells.append(row)
    frame = pd.DataFrame(cells, columns=CELL_COLUMNS)
    # whole numbers that may be missing
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64"))
    return Results(
        frame,
        pd.DataFrame(epochs, columns=EPOCH_COLUMNS),
        _summarise(frame),
        trials=_trials(study, trained_by_now) if study.tuning else None,
    )


def _group(cell: Cell) -> dict[str, str]:
    """The values of ``GROUP``."""
    return {
        "study": cell.study,
        "dataset": cell.dataset,
        "backbone": cell.backbone,
        "attention": cell.attention,
        "recipe": cell.recipe_name,
        "options": cell.options_text,
        "condition": cell.condition,
    }


def _setting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What trials vary of a recipe."""
    return {name: recipe[name] for name in TUNED_KEYS}


def _measured(cell: Cell) -> Record:
    """A cell's record; of a tuned one, that of what its trials chose, where that is here.

    Raises:
        RecordError: as ``read_record`` and ``read_choice``, or another setting.
    """
    record = read_record(cell.record, cell)
    if cell.choice is not None and cell.choice.is_file():
        chosen = read_choice(cell).chosen.model_dump()
        if _setting(record.config["recipe"]) != chosen:
            raise RecordError(f"{cell.record}: config.recipe: is not what {cell.choice} chose")
    return record


def _unmeasured(cell: Cell, trained_by_now: bool) -> dict[str, str]:
    """Why a cell or trial has no record."""
    status = read_status(cell.status) or {"state": "not_run", "message": ""}
    if trained_by_now and status["state"] == "running":
        status = {"state": "failed", "message": STOPPED}
    if status["state"] in ("waiting", "done"):  # for time; or its record was removed
        status = {**status, "state": "not_run"}
    if cell.choice is not None and cell.choice.is_file():
        try:
            read_choice(cell)
        except RecordError as error:
            status = {"state": "refused", "message": str(error)}
    return {"state": status["state"], "message": status["message"]}


def _trials(study: Study, trained_by_now: bool) -> pd.DataFrame:
    """The trials of each tuned model and condition, and which of them was chosen."""
    models = {tuple(_group(cell).values()): cell for cell in study.cells if cell.tuning}
    rows = []
    for cell in models.values():
        chosen: dict[str, float] | None = None
        with suppress(RecordError):
            chosen = read_choice(cell).chosen.model_dump()
        for trial in cell.trials:
            setting = _setting(trial.recipe.model_dump())
            row = {"id": trial.id, **_group(cell), "seed": trial.seed, **setting}
            row["chosen"] = None if chosen is None else setting == chosen
            rows.append(row | _tried(trial, trained_by_now))
    frame = pd.DataFrame(rows, columns=TRIAL_COLUMNS)
    integers = dict.fromkeys(("train_images", "validation_images"), "Int64")
    return frame.astype(integers | {"chosen": "boolean"})


def _tried(trial: Cell, trained_by_now: bool) -> dict[str, Any]:
    """What a trial's record says, or why it has none."""
    if not trial.record.is_file():
        return _unmeasured(trial, trained_by_now)
    try:
        record = read_trial(trial.record, trial)
    except RecordError as error:
        return {"state": "refused", "message": str(error)}
    run = {name: record.run.get(name) for name in RUN_COLUMNS}
    if record.metrics is None:
        return {"state": "diverged", "message": record.run["diverged"], **run}
    return {
        "state": "measured",
        "message": "",
        "validation_top1_error": record.metrics.top1_error,
        "validation_top5_error": record.metrics.top5_error,
        "train_images": record.metrics.train_images,
        "validation_images": record.metrics.test_images,
        **run,
    }


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
    *TUNED_KEYS,
    *ERRORS,
    "best_epoch",
    "train_images",
    "test_images",
    *COUNTS,
    *RUN_COLUMNS,
]
TRIAL_COLUMNS = [
    "study",
    "id",
    *GROUP[1:5],
    "seed",
    *GROUP[5:],
    *TUNED_KEYS,
    "chosen",
    "state",
    "message",
    "validation_top1_error",
    "validation_top5_error",
    "train_images",
    "validation_images",
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
        row |= {name: _common(group[name]) for name in TUNED_KEYS}
        row |= {"n": states["measured"]}
        row |= {f"n_{state}": states[state] for state in STATES[1:]}
        measured = group[group["state"] == "measured"]
        for name in (*ERRORS, *SELECTIONS):
            values = _values(measured, name)
            row |= {f"{name}_mean": values.mean(), f"{name}_std": values.std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def _values(cells: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column of errors; of a selection, what the best epoch on the test set gains."""
    if name in SELECTIONS:
        error = name.replace("selection", "error")
        return cells[error].astype(float) - cells[f"best_{error}"].astype(float)
    return cells[name].astype(float)


def _common(values: pd.Series[float]) -> float | None:
    """The value of all that have one; None where none has, or they differ."""
    distinct = values.dropna().unique()
    return float(distinct[0]) if len(distinct) == 1 else None


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
    """Write the frames as CSV, and the configuration they are of, each atomically.

    Whose they are is said after them, and the mark that all cells are in them comes last: frames
    of another configuration, or of half a grid, are collected again by the next run. Processes
    that collect at once take turns.
    """
    study.latest.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(study.latest.with_name(".latest.lock")):
        study.latest.unlink(missing_ok=True)
        write_atomically(study.file, study.resolved())
        for name in ("cells", "epochs", "summary"):
            frame: pd.DataFrame = getattr(results, name)
            write_atomically(study.results / f"{name}.csv", frame.to_csv(index=False))
        trials = study.results / "trials.csv"
        if results.trials is None:
            trials.unlink(missing_ok=True)
        else:
            write_atomically(trials, results.trials.to_csv(index=False))
        # what is stale is not trained by this run either
        whole = results.cells["state"].isin(["measured", "stale"]).all()
        if not whole:
            study.collected.unlink(missing_ok=True)
        write_atomically(study.latest, study.collected.name)
        if whole:
            write_atomically(study.collected, "")


def counts(cells: pd.DataFrame) -> str:
    """How many there are of each state: ``3 measured, 1 not run``."""
    states = cells.drop_duplicates("id")["state"].value_counts()
    return ", ".join(f"{count} {str(state).replace('_', ' ')}" for state, count in states.items())


def unfinished(results: Results) -> list[str]:
    """One line for each cell that diverged or failed, or whose record was refused or is stale.

    So for trials, but one that diverged is finished: it has lost.
    """
    rows = results.cells[results.cells["state"].isin(LOST)]
    if results.trials is not None:
        lost = results.trials["state"].isin(set(LOST) - {"diverged"})
        rows = pd.concat([results.trials[lost], rows])
    rows = rows.drop_duplicates("id")
    return [f"{row['id']}: {row['state']}: {row['message']}" for row in rows.to_dict("records")]
