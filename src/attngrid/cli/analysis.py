"""From records to frames and verdicts, and trainings that are repeated."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from attngrid.cli.arguments import EVIDENCE, STEPS, Commands, duration, read_study

log = logging.getLogger(__name__)


def collect(arguments: argparse.Namespace) -> None:
    """Read a study's records into cells.csv, epochs.csv and summary.csv."""
    from attngrid.analysis import frames
    from attngrid.core.errors import RecordError

    study = read_study(arguments)
    results = frames.collect(study)
    frames.write_results(study, results)
    if (results.cells["state"] == "refused").any():
        lines = [*frames.unfinished(results), "remove such a record to train its cell again"]
        raise RecordError("\n".join(lines))


def claims(arguments: argparse.Namespace) -> None:
    """Judge the papers' claims by all records; of a STUDY, also by its own conditions."""
    from attngrid.analysis.dependencies import require_statistics

    require_statistics()
    from attngrid.render.verdicts import write_verdicts

    write_verdicts(None if arguments.study is None else read_study(arguments))


def audit(arguments: argparse.Namespace) -> None:
    """Audit the published figures: arithmetic on what is printed and counted."""
    from attngrid.analysis.audit import audit as lines
    from attngrid.render.verdicts import write_audit

    write_audit(lines())


def replicate(arguments: argparse.Namespace) -> None:
    """Train a table's row again, elsewhere; exit 0: consistent, 3: not, 4: nothing finished."""
    from attngrid.analysis.dependencies import require_statistics

    require_statistics()
    from attngrid.render.replicate import replicate as lines

    for line in lines(arguments.row, arguments.into, arguments.budget):
        print(line)


def export(arguments: argparse.Namespace) -> None:
    """Turn a study's records into logs of TensorBoard or Weights & Biases."""
    from attngrid.analysis.export import to_tensorboard, to_wandb

    study = read_study(arguments)
    if arguments.tensorboard is not None:
        count, folder = to_tensorboard(study, arguments.tensorboard), arguments.tensorboard
    else:
        count, folder = to_wandb(study, study.study, arguments.wandb), arguments.wandb
    log.info("%s: %d records", folder, count)


def register(commands: Commands) -> None:
    """Add these commands."""
    commands.add(STEPS, collect, study=True)
    command = commands.add(EVIDENCE, claims)
    command.add_argument("study", metavar="STUDY", nargs="?", help="without it, of all records")
    commands.add(EVIDENCE, audit)
    command = commands.add(EVIDENCE, replicate)
    command.add_argument("row", metavar="TABLE:ROW", help="tables/demo.grid.tex:ResNet-18")
    command.add_argument("--budget", type=duration, default="30m", help="90s, 30m or 2h")
    into = Path("replication")
    command.add_argument("--into", type=Path, default=into, help="where the trainings go")
    command = commands.add(EVIDENCE, export, study=True)
    kind = command.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tensorboard", type=Path, metavar="FOLDER")
    kind.add_argument("--wandb", type=Path, metavar="FOLDER", help="offline runs")
