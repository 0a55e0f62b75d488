"""Export records as logs of TensorBoard or Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
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
    """The study's valid records; ``collect`` reports the invalid ones."""
    for cell in study.trainings.values():
        if cell.record.is_file():
            with suppress(RecordError):
                yield cell, read_record(cell.record, cell)


def to_tensorboard(study: Study, folder: Path) -> int:
    """Write one event file per record, ``folder/<id>/``; return how many."""
    writers = _import("tensorboardX")
    count = 0
    for cell, record in measured(study):
        started = record.run.get("started", "1970-01-01T00:00:00+00:00")
        start = datetime.fromisoformat(started).timestamp()
        epoch_s = record.run.get("wall_s", 0.0) / len(record.metrics.curve)
        with writers.SummaryWriter(str(folder / cell.id), write_to_disk=True) as writer:
            for line in record.metrics.curve:
                time = start + epoch_s * line.epoch
                for name, tag in CURVE.items():
                    writer.add_scalar(tag, getattr(line, name), line.epoch, walltime=time)
            for name, block in (("config", record.config), ("run", record.run)):
                text = "\n".join(f"    {key}: {value}" for key, value in block.items())
                writer.add_text(name, text, 0, walltime=start)
        count += 1
    return count


def to_wandb(study: Study, project: str, folder: Path) -> int:
    """Write each record as an offline run for ``wandb sync``; return how many."""
    wandb = _import("wandb")
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


def _import(name: str) -> Any:
    """Import an optional package, or raise an AttngridError that says how to install it."""
    try:
        return import_module(name)
    except ImportError:
        raise AttngridError(f"{name} is not installed: pip install {name}") from None
