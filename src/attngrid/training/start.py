"""How ``attngrid train`` and ``attngrid tune`` begin, before torch is imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from attngrid.core.errors import (
    AttngridError,
    ConfigError,
    DivergedTrialsError,
    InterruptedTrainingError,
    UnknownNameError,
)
from attngrid.core.files import modified_ns
from attngrid.records.status import has_diverged, write_status
from attngrid.records.tuning import TuningResult, write_tuning_result
from attngrid.records.tuning import choose_hyperparameters as choose
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.devices import claimed
from attngrid.training.max_runtime import require_time
from attngrid.training.signals import hold_signals, requeue


def start_training(
    study: Study, file: Path, cell: Cell, record: Path | None, flags: Sequence[str] = ()
) -> None:
    """Train a cell on GPUs of its own, in as many processes as the study asks for.

    Args:
        study: the cell's.
        file: the study's configuration, for the other processes.
        cell: a cell or tuning trial.
        record: where the record goes; None: where the study has it.
        flags: options of ``attngrid train`` for the other processes.

    Raises:
        AttngridError: the cell has diverged before, or any error of ``run_cell``.
        InterruptedTrainingError: a signal. After Slurm's warning before its time limit, the job
            goes back into the queue if its training has written a newer checkpoint.
    """
    if message := has_diverged(cell.status):
        raise AttngridError(f"{cell.id}: {message}; not tried again")
    record, before = record or cell.record, modified_ns(cell.checkpoint)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if not launched and not record.is_file():
        require_time(study, cell)
    if study.compute.gpus == 1:
        hold_signals()  # before torch takes its time
    try:
        with claimed(0 if launched else study.gpus):
            _train(study, file, cell, record, flags)
    except InterruptedTrainingError as error:
        if error.number == signal.SIGUSR1 and modified_ns(cell.checkpoint) != before and requeue():
            error.add_note("back in Slurm's queue")
        raise


def _train(study: Study, file: Path, cell: Cell, record: Path, flags: Sequence[str]) -> None:
    from attngrid.training.distributed import launched, tell_launcher
    from attngrid.training.run import run_cell

    if study.compute.gpus > 1 and not launched():
        from attngrid.training.launch import launch

        launch(study, cell, ["train", str(file), cell.id, "--record", str(record), *flags])
        return
    try:
        run_cell(study, cell, record)
    except AttngridError as error:
        if not tell_launcher(error):
            raise
        sys.exit(getattr(error, "exit_code", 1))


def choose_hyperparameters(study: Study, name: str) -> tuple[Path, TuningResult]:
    """Choose a model's best hyperparameters by its trials, and write the choice.

    Args:
        study: has ``tuning``.
        name: of the choice's file, without ``.json``.

    Raises:
        ConfigError: a study without ``tuning``.
        DivergedTrialsError: all trials diverged; the status of each tuned cell says so, too.
    """
    if study.tuning is None:
        raise ConfigError(f"study {study.study}: has no `tuning`, so there is nothing to choose")
    cell = study.choices.get(name)
    if cell is None:
        raise UnknownNameError(f"choice of study {study.study}", name, study.choices)
    try:
        choice = choose(cell)
    except DivergedTrialsError as error:
        for other in study.trainings.values():
            if other.choice == cell.choice:
                write_status(other.status, "diverged", str(error))
        raise
    return write_tuning_result(cell, choice), choice
