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

from attngrid.analysis.accuracy import add_accuracies
from attngrid.analysis.reference import Model
from attngrid.core.errors import AttngridError, RecordError
from attngrid.core.files import shipped, write_atomically
from attngrid.measure.maps_file import Maps, read_maps
from attngrid.models.registry import trained_attention
from attngrid.records.collected import collected, edited_frames, latest, write_latest
from attngrid.records.record import Epoch, Record, read_record, read_trial
from attngrid.records.staleness import describe_code
from attngrid.records.status import STOPPED, read_status
from attngrid.records.tuning import read_tuning_result
from attngrid.study.cell import MODEL_KEY, Cell
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study
from attngrid.study.tuning import TUNED_KEYS

COMPLEXITY = Path("results/complexity.csv")
ERRORS = ("top1_error", "top5_error", "best_top1_error", "best_top5_error")
SELECTIONS = ("top1_selection", "top5_selection")
# The summary has one row per combination of these.
GROUP = ("study", "dataset", "backbone", "attention", "recipe", "options", "condition")
COUNTS = ("params", "macs", "fvcore_total")
# States of a cell that was started or has a record, but has no valid result.
LOST = ("diverged", "failed", "refused", "stale")
STATES = ("measured", *LOST, "running", "not_run")
# Columns from a record's ``run`` block.
RUN_COLUMNS = (
    *("wall_s", "images_per_s", "peak_memory_mb", "device", "device_name"),
    *("deterministic", "resumed", "torch", "commit", "started"),
)
NAMES = ("study", "id", *GROUP[1:5], "seed", *GROUP[5:])
INTEGERS = ("best_epoch", "train_images", "test_images", *COUNTS)
# What tells conditions with equal labels apart, the most readable first.
APART = {"threads": "threads {}", "computed": "{}", "condition_digest": "{}"}
CELL_COLUMNS = [*NAMES, *APART, "state", "message"]
CELL_COLUMNS += [*TUNED_KEYS, *ERRORS, *INTEGERS, *RUN_COLUMNS]
TRIAL_COLUMNS = [*NAMES, *TUNED_KEYS, "chosen", "state", "message"]
TRIAL_COLUMNS += ["validation_top1_error", "validation_top5_error"]
TRIAL_COLUMNS += ["train_images", "validation_images", *RUN_COLUMNS]
EPOCH_COLUMNS = [*GROUP, "seed", "id", *Epoch.model_fields]
# Columns that are text, even where every value looks like a number.
TEXTS = (
    *("id", *GROUP, "stem", "state", "message", "device", "device_name", "torch", "commit"),
    *("started", "records", "where", "claim", "key", "source", "statement", "attentions"),
    "seeds_show",
)


@dataclass(frozen=True, repr=False)
class Results:
    """A study's frames, and its attention maps."""

    cells: pd.DataFrame  # one row per cell
    epochs: pd.DataFrame  # one row per cell and epoch
    summary: pd.DataFrame  # one row per model and condition, over its seeds
    maps: Maps | None = None  # None before they are made
    trials: pd.DataFrame | None = None  # one row per tuning trial; None without tuning

    def __repr__(self) -> str:
        frames = {name: value for name, value in vars(self).items() if name != "maps"}
        rows = [
            f"{name}: {0 if frame is None else len(frame)} rows" for name, frame in frames.items()
        ]
        return f"{type(self).__name__}({', '.join(rows)}, maps: {self.maps})"


def load_results(study: str, folder: str | Path | None = None) -> Results:
    """Load a study's collected frames and attention maps, for example in a notebook.

    Beside each error the frames have its accuracy: ``top1_accuracy`` is 100 − ``top1_error``.

    Args:
        study: its name, such as ``demo`` for ``results/demo``.
        folder: the parent of ``results/``; by default the results folder of ``site.yaml``.

    Raises:
        AttngridError: the study has not been collected, or its frames were edited since.
        RecordError: the maps cannot be read.

    Examples:
        >>> results = load_results("cifar20")
        >>> results
        Results(cells: 15 rows, epochs: 45 rows, summary: 5 rows, trials: 0 rows, maps: None)
        >>> by_seed = results.cells.pivot(
        ...     index="seed", columns="attention", values="top1_accuracy"
        ... )
        >>> by_seed["se"].to_list()
        [51.3, 50.85, 50.15]
    """
    path = (results_folder() if folder is None else Path(folder) / "results") / study
    files = [path / f"{name}.csv" for name in ("cells", "epochs", "summary")]
    if missing := [file.name for file in files if not file.is_file()]:
        collected = ", ".join(sorted(file.parent.name for file in path.parent.glob("*/cells.csv")))
        raise AttngridError(
            f"{path.absolute()}: there is no {' or '.join(missing)}; "
            f"studies that have been collected there: {collected or 'none'}. "
            "`snakemake current --configfile ...` collects the existing records, and `folder` "
            "sets the parent of results/"
        )
    if edited := edited_frames(path):
        raise AttngridError(
            f"{edited[0]}: is not what was collected; `snakemake current` collects again"
        )
    cells, epochs, summary = (add_accuracies(read_frame(file)) for file in files)
    maps, trials = path / "maps.npz", path / "trials.csv"
    return Results(
        cells,
        epochs,
        summary,
        maps=read_maps(maps) if maps.is_file() else None,
        trials=add_accuracies(read_frame(trials)) if trials.is_file() else None,
    )


def read_frame(file: Path) -> pd.DataFrame:
    """Read one of our CSVs. A name stays text: ``none`` is not missing, ``007`` not a number."""
    texts = dict.fromkeys(TEXTS, str)
    frame = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=texts)
    filled = frame.columns.intersection(["options", "message", "condition", "records"])
    frame[filled] = frame[filled].fillna("")
    return frame


def read_counts(stem: str, num_classes: int, input_size: int) -> dict[Model, dict[Any, Any]]:
    """The papers' models as counted at one geometry, by model; empty before they are counted."""
    file = shipped(COMPLEXITY)
    if not file.is_file():
        return {}
    at = {"stem": stem, "num_classes": num_classes, "input_size": input_size, "options": ""}
    return {
        (row["backbone"], row["attention"]): row
        for row in read_frame(file).to_dict("records")
        if all(row[key] == value for key, value in at.items())
    }


def record_ids(results: pd.DataFrame) -> list[str]:
    """The ids of the records behind the verdicts."""
    return sorted({name for text in results["records"] for name in text.split()})


def all_cells() -> pd.DataFrame:
    """The cells of every collected study in the results folder."""
    files = sorted(results_folder().glob("*/cells.csv"))
    frames = [frame for file in files if not (frame := read_frame(file)).empty]
    if not frames:
        return pd.DataFrame(columns=CELL_COLUMNS)
    return distinguish_conditions(pd.concat(frames, ignore_index=True))


def by_trained_attention(cells: pd.DataFrame) -> pd.DataFrame:
    """The measured cells; attentions that compute the same function have one name."""
    measured = cells[cells["state"] == "measured"]
    return measured.assign(attention=measured["attention"].map(trained_attention))


def distinguish_conditions(cells: pd.DataFrame) -> pd.DataFrame:
    """Add what differs to equal labels of different conditions, so that none are pooled."""
    cells = cells.reindex(columns=CELL_COLUMNS)
    for column, text in APART.items():
        several = cells.groupby("condition")[column].transform("nunique") > 1
        for row in cells.index[several & cells[column].notna()]:
            cells.loc[row, "condition"] += ", " + text.format(cells.loc[row, column])
    return cells


def collect(study: Study, *, ended: bool = False) -> Results:
    """Read all existing records of a study into frames.

    With ``ended``, no cell runs on any machine, so a cell whose status is ``running`` has failed.
    """
    file = study.results / "complexity.csv"
    counted = read_frame(file).to_dict("records") if file.is_file() else []
    counts = {tuple(row[key] for key in MODEL_KEY): row for row in counted}
    stale = study.superseded
    cells: list[dict[str, Any]] = []
    curves: dict[int, list[dict[str, Any]]] = {}  # by the number of the cell's row
    for cell in study.cells:
        count = counts.get(cell.model_key, {})
        row = _names(cell) | {name: count.get(name) for name in COUNTS}
        row |= {"threads": cell.threads, "condition_digest": cell.condition_digest}
        row |= {} if cell.tuning else _setting(cell.recipe.model_dump())
        if cell.id in stale:
            message = (
                f"{stale[cell.id]}: belongs to another configuration of this cell; `attngrid "
                f"archive {study.study}` moves it away, and the next run trains this cell again"
            )
            row |= {"state": "stale", "message": message}
        else:
            state, record = _read(cell, ended)
            row |= state
            if record is not None and record.metrics is not None:
                if record.run.get("code") is not None:
                    row["message"] = describe_code(record.run)
                row |= {**_run(record), "computed": _computed(record.run)}
                row |= _setting(record.config["recipe"]) if cell.tuning else {}
                metrics = record.metrics.model_dump()
                curves[len(cells)] = metrics.pop("curve")
                row |= metrics
        cells.append(row)
    # Int64 holds whole numbers that may be missing
    frame = pd.DataFrame(cells, columns=CELL_COLUMNS).astype(dict.fromkeys(INTEGERS, "Int64"))
    frame = distinguish_conditions(frame)
    labels = frame["condition"]
    epochs = [
        {**cells[place], "condition": labels[place], **line}
        for place, curve in curves.items()
        for line in curve
    ]
    return Results(
        add_accuracies(frame),
        add_accuracies(pd.DataFrame(epochs, columns=EPOCH_COLUMNS)),
        add_accuracies(_summarise(frame)),
        trials=add_accuracies(_collect_trials(study, ended)) if study.tuning else None,
    )


def _names(cell: Cell) -> dict[str, Any]:
    """The values of ``NAMES``."""
    return {
        "study": cell.study,
        "id": cell.id,
        "dataset": cell.dataset,
        "backbone": cell.backbone,
        "attention": cell.attention,
        "recipe": cell.recipe_name,
        "seed": cell.seed,
        "options": cell.options_text,
        "condition": cell.condition,
    }


def _setting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The tuned hyperparameters of a recipe."""
    return {name: recipe[name] for name in TUNED_KEYS}


def _run(record: Record) -> dict[str, Any]:
    return {name: record.run.get(name) for name in RUN_COLUMNS}


def _computed(run: Mapping[str, Any]) -> str:
    """What changes numbers by rounding: ``cuda, compiled``; compiling may be unknown."""
    options = run.get("performance") or run.get("fast") or {}
    words = {True: "compiled", False: "not compiled", "attention": "attention compiled"}
    return ", ".join(filter(None, [run.get("device"), words.get(options.get("compile"))]))


def _read(cell: Cell, ended: bool) -> tuple[dict[str, str], Record | None]:
    """State and message of a cell or trial, and its record if it is valid.

    A tuned cell's record must have the best hyperparameters of its trials.
    """
    if not cell.record.is_file():
        return _why_missing(cell, ended), None
    try:
        read = read_trial if cell.validation else read_record
        record: Record = read(cell.record, cell)
        if cell.choice is not None and cell.choice.is_file():
            chosen = read_tuning_result(cell).chosen.model_dump()
            if _setting(record.config["recipe"]) != chosen:
                raise RecordError(f"{cell.record}: config.recipe: differs from {cell.choice}")
    except RecordError as error:
        return {"state": "refused", "message": str(error)}, None
    return {"state": "measured", "message": ""}, record


def _why_missing(cell: Cell, ended: bool) -> dict[str, str]:
    """State and message of a cell or trial without a record."""
    status = read_status(cell.status) or {"state": "not_run", "message": ""}
    state, message = status["state"], status["message"]
    if ended and state == "running":
        state, message = "failed", STOPPED
    if state in ("waiting", "done"):  # not run yet, or its record was removed
        state = "not_run"
    if cell.choice is not None and cell.choice.is_file():
        try:
            read_tuning_result(cell)
        except RecordError as error:
            state, message = "refused", str(error)
    return {"state": state, "message": message}


def _collect_trials(study: Study, ended: bool) -> pd.DataFrame:
    """One row per trial of each tuned model and condition."""
    tuned = {tuple(_names(cell)[key] for key in GROUP): cell for cell in study.cells if cell.tuning}
    rows = []
    for cell in tuned.values():
        chosen: dict[str, float] | None = None
        with suppress(RecordError):
            chosen = read_tuning_result(cell).chosen.model_dump()
        for trial in cell.trials:
            setting = _setting(trial.recipe.model_dump())
            row = {**_names(cell), "id": trial.id, "seed": trial.seed, **setting}
            row["chosen"] = None if chosen is None else setting == chosen
            rows.append(row | _trial_row(trial, ended))
    frame = pd.DataFrame(rows, columns=TRIAL_COLUMNS)
    images = {"train_images": "Int64", "validation_images": "Int64"}
    return frame.astype(images | {"chosen": "boolean"})


def _trial_row(trial: Cell, ended: bool) -> dict[str, Any]:
    """A trial's state, errors and ``run`` columns."""
    state, record = _read(trial, ended)
    if record is None:
        return state
    if (metrics := record.metrics) is None:
        return {"state": "diverged", "message": record.run["diverged"], **_run(record)}
    return {
        **state,
        "validation_top1_error": metrics.top1_error,
        "validation_top5_error": metrics.top5_error,
        "train_images": metrics.train_images,
        "validation_images": metrics.test_images,
        **_run(record),
    }


def _summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (÷ n−1; empty at one seed) and n over the seeds."""
    rows = []
    for key, group in cells.groupby(list(GROUP), sort=False, dropna=False):
        states = Counter(group["state"])
        row: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        row |= {name: group[name].iloc[0] for name in COUNTS}
        for name in TUNED_KEYS:  # empty where the seeds differ
            distinct = group[name].dropna().unique()
            row[name] = float(distinct[0]) if len(distinct) == 1 else None
        row |= {"n": states["measured"], **{f"n_{state}": states[state] for state in STATES[1:]}}
        measured = group[group["state"] == "measured"]
        for name in (*ERRORS, *SELECTIONS):
            error = name.replace("selection", "error")
            values = measured[error].astype(float)
            if name in SELECTIONS:  # gain of the best epoch over the last
                values -= measured[f"best_{error}"].astype(float)
            row |= {f"{name}_mean": values.mean(), f"{name}_std": values.std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def write_results(study: Study, results: Results) -> None:
    """Write the frames as CSV and their configuration, each file atomically.

    ``latest`` is written after the frames, ``collected`` last and only when no cell is missing.
    The next run collects again where either is missing. Simultaneous calls wait for each other.
    """
    latest(study).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(latest(study).with_name(".latest.lock")):
        latest(study).unlink(missing_ok=True)
        write_atomically(study.file, study.resolved())
        written = []
        for name in ("cells", "epochs", "summary", "trials"):
            frame: pd.DataFrame | None = getattr(results, name)
            if frame is not None:
                written.append(study.results / f"{name}.csv")
                write_atomically(written[-1], frame.to_csv(index=False))
        if results.trials is None:  # the study is not tuned any more
            (study.results / "trials.csv").unlink(missing_ok=True)
        # a stale cell counts as finished: this run does not train it
        complete = results.cells["state"].isin(["measured", "stale"]).all()
        if not complete:
            collected(study).unlink(missing_ok=True)
        write_latest(study, written)
        if complete:
            write_atomically(collected(study), "")


def counts(cells: pd.DataFrame) -> str:
    """How many cells are in each state: ``3 measured, 1 not run``."""
    states = cells.drop_duplicates("id")["state"].value_counts()
    return ", ".join(f"{count} {str(state).replace('_', ' ')}" for state, count in states.items())


def unfinished(results: Results) -> list[str]:
    """One line per cell that diverged, failed, was refused or is stale.

    Trials follow the same rule, except that a diverged trial is finished.
    """
    rows = results.cells[results.cells["state"].isin(LOST)]
    if results.trials is not None:
        lost = results.trials["state"].isin(set(LOST) - {"diverged"})
        rows = pd.concat([results.trials[lost], rows])
    rows = rows.drop_duplicates("id")
    return [f"{row['id']}: {row['state']}: {row['message']}" for row in rows.to_dict("records")]
