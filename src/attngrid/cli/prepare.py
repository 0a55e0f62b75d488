"""The datasets."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from attngrid.cli.arguments import STEPS, Commands, read_study

log = logging.getLogger(__name__)


def prepare(arguments: argparse.Namespace) -> None:
    """Check a study's datasets once; fetch or unpack what they need."""
    from attngrid.core.errors import UnknownNameError
    from attngrid.data.prepare import link_archives
    from attngrid.data.prepare import prepare as prepare_dataset
    from attngrid.data.registry import find_dataset

    study = read_study(arguments)
    names = list(dict.fromkeys(block.dataset for block in study.grid))
    if arguments.dataset is not None:
        if arguments.dataset not in names:
            raise UnknownNameError(f"dataset of study {study.study}", arguments.dataset, names)
        names = [arguments.dataset]
    folder = study.data_folder
    if arguments.archives is not None:
        link_archives(arguments.archives, folder)
    for name in names:
        report = prepare_dataset(
            name, folder, download=study.data.download, thorough=arguments.thorough
        )
        label = find_dataset(name).label
        if report is None:
            log.info("%s: nothing to prepare", label)
            continue
        images = report["images"]
        log.info(
            f"{label}: {images['train']:,} training and {images['test']:,} held-out images of "
            f"{report['classes']} classes, checked {report['checked']}"
        )


def register(commands: Commands) -> None:
    """Add this command."""
    command = commands.add(STEPS, prepare, study=True)
    command.add_argument("dataset", nargs="?", metavar="DATASET", help="one of the study's")
    command.add_argument("--thorough", action="store_true", help="decode every image")
    command.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="has the archives, whole or in parts"
    )
