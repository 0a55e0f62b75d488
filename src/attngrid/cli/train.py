"""Training, choosing hyperparameters, and testing kept weights again."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

from attngrid.cli.arguments import (
    EVIDENCE,
    STEPS,
    Commands,
    duration,
    read_study,
    study_file,
)

log = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train one cell or tuning trial of a study and write its record."""
    from attngrid.study.find import find_cell
    from attngrid.training.start import start_training

    if arguments.max_runtime is not None:
        os.environ["ATTNGRID_DEADLINE"] = str(time.time() + arguments.max_runtime)
    study, file = read_study(arguments), study_file(arguments)
    level = getattr(arguments, "level", logging.INFO)
    flags = {logging.DEBUG: ["-v"], logging.WARNING: ["-q"]}.get(level, [])
    start_training(study, file, find_cell(study, arguments.cell), arguments.record, flags)


def tune(arguments: argparse.Namespace) -> None:
    """Choose a model's learning rate and weight decay by its trials."""
    from attngrid.study.labels import setting_label
    from attngrid.training.start import choose_hyperparameters

    file, choice = choose_hyperparameters(read_study(arguments), arguments.name)
    setting = setting_label(choice.chosen.learning_rate, choice.chosen.weight_decay)
    log.info("%s: %s, of %d trials", file, setting, len(choice.trials))


def evaluate(arguments: argparse.Namespace) -> None:
    """Test a record's network again with the weights that were kept, and compare the errors."""
    from attngrid.core.errors import RecordError
    from attngrid.study.paths import data_folder
    from attngrid.training.evaluation import evaluate_record

    cell, record, found = evaluate_record(
        arguments.record, arguments.data or data_folder(), arguments.device
    )
    print(f"{cell.label}: {cell.condition}")
    pairs = [
        (name, getattr(record.metrics, name), found[f"test_{name}"])
        for name in ("top1_error", "top5_error")
    ]
    for name, recorded, now in pairs:
        print(f"{name}  recorded {recorded:.4f} %  now {now:.4f} %")
    if any(recorded != now for _, recorded, now in pairs):
        device = record.run["device_name"]
        raise RecordError(
            f"{arguments.record}: these weights do not make its errors; it was trained on {device} "
            f"with torch {record.run['torch']}"
        )


def register(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add(STEPS, train, study=True)
    command.add_argument("cell", metavar="CELL", help="a cell's or trial's id, or its beginning")
    command.add_argument("--record", type=Path, help="where to write the record")
    command.add_argument(
        "--max-runtime",
        type=duration,
        metavar="TIME",
        help="90s, 30m or 2h: a training that would take longer does not start, and one that "
        "does take longer stops at a checkpoint",
    )
    command = commands.add(STEPS, tune, study=True)
    command.add_argument("name", metavar="NAME", help="a file in the study's tuning/, no .json")
    command = commands.add(EVIDENCE, evaluate)
    command.add_argument("record", type=Path, metavar="RECORD")
    command.add_argument("--data", type=Path, help="folder of the datasets, if not the site's")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
