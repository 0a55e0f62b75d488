"""Datasets, trainings, the choice of hyperparameters, and tests of kept weights."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from attngrid.cli.arguments import EVIDENCE, STEPS, Commands, duration, read_study, study_file

log = logging.getLogger(__name__)


def prepare(arguments: argparse.Namespace) -> None:
    """Check a study's datasets once; fetch or unpack what they need."""
    from attngrid.core.errors import UnknownNameError
    from attngrid.data.archives import link_archives
    from attngrid.data.prepare import prepare as prepare_dataset
    from attngrid.data.registry import find_dataset

    study = read_study(arguments)
    names = list(dict.fromkeys(block.dataset for block in study.grid))
    if arguments.dataset is not None:
        if arguments.dataset not in names:
            raise UnknownNameError(f"dataset of study {study.study}", arguments.dataset, names)
        names = [arguments.dataset]
    how = {"download": study.data.download, "thorough": arguments.thorough}
    if arguments.archives is not None:
        link_archives(arguments.archives, study.data_folder)
    for name in names:
        report = prepare_dataset(name, study.data_folder, **how)
        found = "nothing to prepare"
        if report is not None:
            train, test = (f"{report['images'][split]:,}" for split in ("train", "test"))
            found = f"{train} training and {test} held-out images of {report['classes']} classes"
            found += f", checked {report['checked']}"
        log.info("%s: %s", find_dataset(name).label, found)


def train(arguments: argparse.Namespace) -> None:
    """Train one cell or tuning trial of a study and write its record."""
    from attngrid.study.find import find_cell
    from attngrid.training.start import start_training

    if arguments.max_runtime is not None:
        from attngrid.training.max_runtime import set_max_runtime

        set_max_runtime(arguments.max_runtime)
    study, file = read_study(arguments), study_file(arguments)
    level = getattr(arguments, "level", logging.INFO)
    flags = {logging.DEBUG: ["-v"], logging.WARNING: ["-q"]}.get(level, [])
    start_training(study, file, find_cell(study, arguments.cell), arguments.record, flags)


def tune(arguments: argparse.Namespace) -> None:
    """Choose a model's learning rate and weight decay by its trials."""
    from attngrid.records.tuning import choose_hyperparameters
    from attngrid.study.labels import setting_label

    file, choice = choose_hyperparameters(read_study(arguments), arguments.name)
    setting = setting_label(choice.chosen.learning_rate, choice.chosen.weight_decay)
    log.info("%s: %s, of %d trials", file, setting, len(choice.trials))


def evaluate(arguments: argparse.Namespace) -> None:
    """Test a record's network again with the weights that were kept, and compare the errors."""
    from attngrid.core.errors import RecordError
    from attngrid.study.paths import data_folder
    from attngrid.training.evaluation import evaluate_record

    folder = arguments.data or data_folder()
    cell, record, found = evaluate_record(arguments.record, folder, arguments.device)
    print(f"{cell.label}: {cell.condition}")
    same = True
    for name in ("top1_error", "top5_error"):
        recorded, now = getattr(record.metrics, name), found[f"test_{name}"]
        same &= recorded == now
        print(f"{name}  recorded {recorded:.4f} %  now {now:.4f} %")
    if not same:
        raise RecordError(
            f"{arguments.record}: these weights do not make its errors; it was trained on "
            f"{record.run['device_name']} with torch {record.run['torch']}"
        )


def register(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add(STEPS, prepare, study=True)
    command.add_argument("dataset", nargs="?", metavar="DATASET", help="one of the study's")
    command.add_argument("--thorough", action="store_true", help="decode every image")
    command.add_argument("--archives", type=Path, metavar="FOLDER", help="with archives or parts")
    command = commands.add(STEPS, train, study=True)
    command.add_argument("cell", metavar="CELL", help="a cell's or trial's id, or its beginning")
    command.add_argument("--record", type=Path, help="where to write the record")
    command.add_argument(
        "--max-runtime",
        type=duration,
        metavar="TIME",
        help="90s, 30m or 2h: what would take longer does not start, or stops at a checkpoint",
    )
    command = commands.add(STEPS, tune, study=True)
    command.add_argument("name", metavar="NAME", help="a file in the study's tuning/, no .json")
    command = commands.add(EVIDENCE, evaluate)
    command.add_argument("record", type=Path, metavar="RECORD")
    command.add_argument("--data", type=Path, help="folder of the datasets, if not the site's")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
