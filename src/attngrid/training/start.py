"""Start of ``attngrid train``, before torch is imported."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from attngrid.core.errors import (
    AttngridError,
    BusyCellError,
    ConfigError,
    InterruptedTrainingError,
    LostProcessError,
)
from attngrid.core.files import modified_ns
from attngrid.core.user_code import line_in_user_code
from attngrid.models.registry import find_attention, find_backbone
from attngrid.records.status import has_diverged, write_status
from attngrid.study.cell import Cell
from attngrid.study.recipe import TIMM
from attngrid.study.schema import Study
from attngrid.training.devices import claimed
from attngrid.training.max_runtime import require_time
from attngrid.training.signals import hold_signals, requeue

log = logging.getLogger(__name__)


def start_training(
    study: Study, file: Path, cell: Cell, record: Path | None, flags: Sequence[str] = ()
) -> None:
    """Train a cell on reserved GPUs, in as many processes as the study configures.

    If it fails before the training begins, the cell's status says why.

    Args:
        study: the study of the cell.
        file: the study's configuration, for processes that this one starts.
        cell: a cell or tuning trial.
        record: the file to write; by default the cell's record in the study.
        flags: options of ``attngrid train`` for processes that this one starts.

    Raises:
        AttngridError: the cell already diverged in this run, or any error of ``run_cell``.
        InterruptedTrainingError: a signal ended the training. After Slurm's warning before the time
            limit, the job goes back into the queue if the training wrote a newer checkpoint.
    """
    if message := has_diverged(cell.status):
        raise AttngridError(f"{cell.id}: {message}; not tried again")
    record, before = record or cell.record, modified_ns(cell.checkpoint)
    status_before = modified_ns(cell.status)
    launched = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun started this process
    if not launched and not record.is_file():
        require_time(study, cell)
    if study.compute.gpus == 1:
        hold_signals()  # before the slow import of torch
    try:
        with claimed(0 if launched else study.gpus):
            if study.compute.gpus == 1 or launched:
                _train_here(study, cell, record)
            else:
                from attngrid.training.launch import launch

                launch(study, cell, ["train", str(file), cell.id, "--record", str(record), *flags])
    except InterruptedTrainingError as error:
        if error.number == signal.SIGUSR1 and modified_ns(cell.checkpoint) > before and requeue():
            error.add_note("back in Slurm's queue")
        raise
    except (BusyCellError, LostProcessError):
        raise  # the other process writes the status
    except Exception as error:
        if modified_ns(cell.status) == status_before:  # it failed before the training began
            message = str(error) if isinstance(error, AttngridError) else repr(error)
            with suppress(OSError):
                write_status(cell.status, "failed", message)
        raise


def try_models(cells: Iterable[Cell]) -> None:
    """Build the models with a user's or another package's class, and run each once on two images.

    Raises:
        ConfigError: a class that does not work, or a backbone that builds no attention module.
    """
    models = {
        cell.model_key: cell
        for cell in cells
        if find_backbone(cell.backbone).external or find_attention(cell.attention).external
    }
    if models:
        from attngrid.models.create import create_model

        log.info("trying %d models", len(models))
        for cell in models.values():
            try:
                create_model(**cell.model_arguments())
            except ConfigError as error:
                line = line_in_user_code(error)
                raise ConfigError(f"{error} ({line})" if line else str(error)) from error


def try_recipes(cells: Iterable[Cell]) -> None:
    """Take two steps with each optimizer that timm or its options decide about.

    Raises:
        ConfigError: an optimizer that timm does not know, that fails or that cannot continue from a
            checkpoint, or wrong options.
    """
    recipes = {cell.recipe: cell.recipe_name for cell in cells}
    for recipe, name in recipes.items():
        if recipe.optimizer.startswith(TIMM) or recipe.optimizer_options:
            from attngrid.training.optimization import try_optimizer

            try:
                try_optimizer(recipe)
            except ConfigError as error:
                raise ConfigError(f"recipe {name!r}: {error}") from None


def _train_here(study: Study, cell: Cell, record: Path) -> None:
    from attngrid.training.distributed import tell_launcher
    from attngrid.training.run import run_cell

    try:
        run_cell(study, cell, record)
    except AttngridError as error:
        if not tell_launcher(error):
            raise
        sys.exit(getattr(error, "exit_code", 1))
