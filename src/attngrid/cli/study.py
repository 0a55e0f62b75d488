"""A user's study: make it, plan it, see where it is, archive and import its records."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from attngrid.cli.arguments import YOUR_STUDY, Commands, read_study

log = logging.getLogger(__name__)


def init(arguments: argparse.Namespace) -> None:
    """Make a folder for your own study, with a working example of everything in it."""
    from attngrid.study.scaffold import init as make_folder

    for file in make_folder(arguments.folder):
        print(file)
    log.info("now: cd %s && snakemake --cores all", shlex.quote(str(arguments.folder)))


def plan(arguments: argparse.Namespace) -> None:
    """Estimate how many hours a study takes, and say what the estimate is based on."""
    from attngrid.study.plan import Planner
    from attngrid.study.plan import plan as lines

    for line in lines(Planner(read_study(arguments), gpu=arguments.gpu)):
        print(line)


def status(arguments: argparse.Namespace) -> None:
    """Show which cells are done, running, waiting or failed; reads files only."""
    from attngrid.analysis.progress import status as lines

    for line in lines(read_study(arguments)):
        print(line)


def archive(arguments: argparse.Namespace) -> None:
    """Move stale records to the archive; the next run trains their cells again."""
    from attngrid.records.staleness import archive as archive_records

    study = read_study(arguments)
    moved = archive_records(study, other_code=arguments.other_code)
    for file, now in moved:
        print(f"{file} -> {now}")
    log.info("%s: %d files put aside", study.study, len(moved))


def import_(arguments: argparse.Namespace) -> None:
    """Check records that were made on another machine, and file them."""
    from attngrid.core.errors import RecordError
    from attngrid.records.importing import import_folder, known_studies

    studies = known_studies() if arguments.study is None else [read_study(arguments)]
    found = import_folder(arguments.folder, studies)
    for file in found.filed:
        print(f"filed {file}")
    for cell in found.continued:
        print(f"goes on {cell.checkpoint}")
    counts = f"{len(found.filed)} records filed, {len(found.skipped)} were here"
    counts += f", {len(found.refused)} refused; {len(found.continued)} checkpoints"
    log.info("%s: %s", arguments.folder, counts)
    if found.refused:
        raise RecordError("\n".join(["refused:", *found.refused]))


def outputs(arguments: argparse.Namespace) -> None:
    """List the tables, figures and report that exist."""
    for file in read_study(arguments).outputs():
        if file.is_file():
            print(file)


def schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of a study's configuration."""
    from attngrid.study.schema import json_schema

    print(json_schema(), end="")


def register(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add(YOUR_STUDY, init)
    command.add_argument("folder", type=Path, help="a new one; the study takes its name")
    command = commands.add(YOUR_STUDY, plan, study=True)
    command.add_argument("--gpu", help="A100, H100 and so on; without it the cluster's")
    commands.add(YOUR_STUDY, status, study=True)
    command = commands.add(YOUR_STUDY, archive, study=True)
    command.add_argument("--other-code", action="store_true", help="also records of other code")
    command = commands.add(YOUR_STUDY, import_)
    command.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a copy of results/, or records"
    )
    command.add_argument("--study", help="whose they are; without it any study in config/")
    commands.add(YOUR_STUDY, outputs, study=True)
    commands.add(YOUR_STUDY, schema)
