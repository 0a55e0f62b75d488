"""Records as logs of TensorBoard or Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from attngrid.core.errors import AttngridError, RecordError
from attngrid.records.record import Record, read_record
from attngrid.study.cell import Cell
from attngrid.study.schema import Study

CURVE = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_top1_error": "top1_error/train",
    "test_top1_error": "top1_error/test",
    "test_top5_error": "top5_error/test",
    "learning_rate": "learning_rate",
}


def measured(study: Study) -> Iterator[tuple[Cell, Record]]:
    """The study's records, those that are not their cell's left out and named by `collect`."""
    for cell in study.trainings.values():
        if cell.record.is_file():
            try:
                yield cell, read_record(cell.record, cell)
            except RecordError:
                continue


def to_tensorboard(study: Study, folder: Path) -> int:
    """Write an event file for each record, ``folder/<id>/``; how many there are.

    Raises:
        AttngridError: tensorboardX is not installed.
    """
    writers = _import("tensorboardX", "pip install tensorboardX")
    count = 0
    for cell, record in measured(study):
        start, step_s = _clock(record)
        with writers.SummaryWriter(str(folder / cell.id), write_to_disk=True) as writer:
            for line in record.metrics.curve:
                for name, tag in CURVE.items():
                    at = start + step_s * line.epoch
                    writer.add_scalar(tag, getattr(line, name), line.epoch, walltime=at)
            writer.add_text("config", _markdown(record.config), 0, walltime=start)
            writer.add_text("run", _markdown(record.run), 0, walltime=start)
        count += 1
    return count


def to_wandb(study: Study, project: str, folder: Path) -> int:
    """Write each record as an offline run that ``wandb sync`` uploads; how many there are.

    Raises:
        AttngridError: wandb is not installed.
    """
    wandb = _import("wandb", "pip install wandb")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for cell, record in measured(study):
        run = wandb.init(
            project=project,
            id=cell.id,
            name=cell.label,
            group=f"{cell.backbone}-{cell.attention}",
            dir=str(folder),
            config=record.config,
            mode="offline",
        )
        for line in record.metrics.curve:
            values = {tag: getattr(line, name) for name, tag in CURVE.items()}
            run.log(values, step=line.epoch)
        for name in ("top1_error", "top5_error", "best_top1_error", "best_epoch"):
            run.summary[name] = getattr(record.metrics, name)
        run.finish()
        count += 1
    return count


def _import(name: str, how: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise AttngridError(f"{name} is not installed: {how}") from None


def _clock(record: Record) -> tuple[float, float]:
    """When a training started, in seconds, and how long an epoch took."""
    started = datetime.fromisoformat(record.run.get("started", "1970-01-01T00:00:00+00:00"))
    return started.timestamp(), record.run.get("wall_s", 0.0) / len(record.metrics.curve)


def _markdown(block: dict[str, Any]) -> str:
    return "\n".join(f"    {name}: {value}" for name, value in block.items())
