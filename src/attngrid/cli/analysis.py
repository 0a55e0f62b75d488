"""Commands that read records: frames, verdicts, replication and export."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.cli.arguments import EVIDENCE, STEPS, STUDY, argument, command, duration, read_study

if TYPE_CHECKING:
    from attngrid.study.schema import Study

log = logging.getLogger(__name__)


@command(STEPS, STUDY)
def collect(study: Study) -> None:
    """Read a study's records into cells.csv, epochs.csv and summary.csv."""
    from attngrid.analysis import frames
    from attngrid.core.errors import RecordError

    results = frames.collect(study)
    frames.write_results(study, results)
    if (results.cells["state"] == "refused").any():
        lines = [*frames.unfinished(results), "remove a refused record to train its cell again"]
        raise RecordError("\n".join(lines))


@command(EVIDENCE, argument("only", metavar="STUDY", nargs="?", help="by default all studies"))
def claims(only: str | None) -> None:
    """Judge the papers' claims by all records, and by those of STUDY; or STUDY's own claims."""
    from attngrid.analysis.dependencies import require_statistics

    require_statistics()
    from attngrid.render.verdicts import write_verdicts

    write_verdicts(None if only is None else read_study(only))


@command(EVIDENCE)
def audit() -> None:
    """Audit the published figures: arithmetic on what is printed and counted."""
    from attngrid.analysis.audit import audit as lines
    from attngrid.render.verdicts import write_audit

    write_audit(lines())


@command(
    EVIDENCE,
    argument("row", metavar="TABLE:ROW", help="tables/demo.grid.tex:ResNet-18"),
    argument("--budget", type=duration, default="30m", help="90s, 30m or 2h"),
    argument("--into", type=Path, default="replication", help="folder of the new trainings"),
)
def replicate(row: str, budget: float, into: Path) -> Iterator[str]:
    """Train a table's row again; exit 0: consistent, 3: not consistent, 4: nothing finished."""
    from attngrid.analysis.dependencies import require_statistics

    require_statistics()
    from attngrid.render.replicate import replicate as lines

    return lines(row, into, budget)


@command(
    EVIDENCE,
    STUDY,
    argument("--tensorboard", type=Path, metavar="FOLDER"),
    argument("--wandb", type=Path, metavar="FOLDER", help="offline runs"),
    argument("--torch", type=Path, metavar="FOLDER", help="trained networks, for torch alone"),
)
def export(
    study: Study, tensorboard: Path | None, wandb: Path | None, torch: Path | None
) -> Iterator[str]:
    """Turn records into logs of TensorBoard or Weights & Biases, or into programs of torch."""
    from attngrid.analysis.export import measured, to_tensorboard, to_wandb
    from attngrid.core.errors import ConfigError

    if not (tensorboard or wandb or torch):
        raise ConfigError(
            "export: found no option; needs --tensorboard, --wandb or --torch, and a FOLDER"
        )
    if tensorboard is not None:
        log.info("%s: %d records", tensorboard, to_tensorboard(study, tensorboard))
    if wandb is not None:
        log.info("%s: %d records", wandb, to_wandb(study, study.study, wandb))
    if torch is not None:
        from attngrid.training.trained import load_model

        for cell, _ in measured(study):
            if cell.weights.is_file():
                load_model(cell.record).export(torch / f"{cell.id}.pt2")
                yield f"{torch / cell.id}.pt2"
            else:
                log.warning("%s: has no kept weights", cell.record)
