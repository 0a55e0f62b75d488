"""Commands that prepare datasets, train, choose hyperparameters and test kept weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.cli.arguments import EVIDENCE, STEPS, STUDY, argument, command, duration

if TYPE_CHECKING:
    from attngrid.study.schema import Study

log = logging.getLogger(__name__)


@command(
    STEPS,
    STUDY,
    argument("dataset", nargs="?", metavar="DATASET", help="one of the study's"),
    argument(
        "--thorough",
        action="store_true",
        help="decode every image, which finds what cannot be decoded",
    ),
)
def prepare(study: Study, dataset: str | None, thorough: bool) -> None:
    """Check a study's datasets once; fetch or unpack what they need."""
    from attngrid.core.errors import UnknownNameError
    from attngrid.data.prepare import prepare as prepare_dataset
    from attngrid.data.registry import find_dataset

    names = list(dict.fromkeys(block.dataset for block in study.grid))
    if dataset is not None and dataset not in names:
        raise UnknownNameError(f"dataset of study {study.study}", dataset, names)
    for name in names if dataset is None else [dataset]:
        how = {"download": study.data.download, "thorough": thorough}
        report = prepare_dataset(name, study.data_folder, **how)
        found = "nothing to prepare"
        if report is not None:
            train, test = (f"{report['images'][split]:,}" for split in ("train", "test"))
            found = f"{train} training and {test} held-out images of {report['classes']} classes"
            found += f", checked {report['checked']}"
        log.info("%s: %s", find_dataset(name).label, found)
        for note in (report or {}).get("notes", ()):
            log.warning("%s: %s", find_dataset(name).label, note)


@command(
    STEPS,
    argument("file", metavar="STUDY", nargs="?", help="see `attngrid --help`"),
    argument("cell", metavar="CELL", help="a cell's or trial's id, or its beginning"),
    argument("--record", type=Path, help="where to write the record"),
    argument(
        "--max-runtime",
        type=duration,
        metavar="TIME",
        help="90s, 30m or 2h: a longer training does not start, or stops at a checkpoint",
    ),
)
def train(file: str | None, cell: str, record: Path | None, max_runtime: float | None) -> None:
    """Train one cell or tuning trial of a study and write its record."""
    from attngrid.study.schema import find_study_file, load_study
    from attngrid.training.start import start_training

    if max_runtime is not None:
        from attngrid.training.max_runtime import set_max_runtime

        set_max_runtime(max_runtime)
    configuration = find_study_file(file)
    study = load_study(configuration)
    flag = {logging.DEBUG: ["-v"], logging.WARNING: ["-q"]}.get(log.getEffectiveLevel(), [])
    start_training(study, configuration, study.find_cell(cell), record, flag)


@command(STEPS, STUDY, argument("name", metavar="NAME", help="a file in tuning/, without .json"))
def tune(study: Study, name: str) -> None:
    """Choose a model's learning rate and weight decay from its trials."""
    from attngrid.records.tuning import choose_hyperparameters
    from attngrid.study.labels import setting_label

    file, choice = choose_hyperparameters(study, name)
    setting = setting_label(choice.chosen.learning_rate, choice.chosen.weight_decay)
    log.info("%s: %s, of %d trials", file, setting, len(choice.trials))


@command(
    EVIDENCE,
    argument("record", type=Path, metavar="RECORD"),
    argument("--data", type=Path, help="folder of the datasets; by default that of site.yaml"),
    argument("--device", choices=("auto", "cpu", "cuda"), default="auto"),
)
def evaluate(record: Path, data: Path | None, device: str) -> Iterator[str]:
    """Test a record's network again with the weights that were kept, and compare the errors."""
    from attngrid.core.errors import RecordError
    from attngrid.study.paths import data_folder
    from attngrid.training.evaluation import evaluate_record

    cell, stored, found = evaluate_record(record, data or data_folder(), device)
    yield f"{cell.label}: {cell.condition}"
    same = True
    for name in ("top1_error", "top5_error"):
        recorded, now = getattr(stored.metrics, name), found[f"test_{name}"]
        same &= recorded == now
        yield f"{name}  recorded {recorded:.4f} %  now {now:.4f} %"
    if not same:
        raise RecordError(
            f"{record}: these weights do not reproduce its errors; it was trained on "
            f"{stored.run['device_name']} with torch {stored.run['torch']}"
        )
