"""A user's study: create it, plan it, see its progress, archive and import its records."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.cli.arguments import STUDY, YOUR_STUDY, argument, command, read_study

if TYPE_CHECKING:
    from attngrid.study.schema import Study

log = logging.getLogger(__name__)


@command(YOUR_STUDY, argument("folder", type=Path, help="a new folder; the study gets its name"))
def init(folder: Path) -> Iterator[Path]:
    """Create a folder for your own study, with a working example of everything."""
    from attngrid.study.scaffold import init as make_folder

    yield from make_folder(folder)
    log.info("next: cd %s && snakemake --cores all", shlex.quote(str(folder)))


@command(
    YOUR_STUDY, STUDY, argument("--gpu", help="A100, H100 and so on; by default the cluster's")
)
def plan(study: Study, gpu: str | None) -> Iterator[str]:
    """Estimate how many hours a study takes, and which claims its seeds can decide."""
    from attngrid.analysis.dependencies import has_statistics
    from attngrid.study.plan import Planner
    from attngrid.study.plan import plan as lines
    from attngrid.training.devices import trains_on_cpu
    from attngrid.training.start import try_models

    try_models(cell for cell in study.trainings.values() if not cell.record.is_file())
    elsewhere = gpu is not None or shutil.which("sbatch") is not None
    on_cpu = trains_on_cpu(study.compute.device, elsewhere=elsewhere)
    planner = Planner(study, gpu=gpu, on_cpu=on_cpu)
    counts = study.results / "complexity.csv"
    unknown = any(planner.estimate(cell).seconds is None for cell in study.trainings.values())
    if unknown and not counts.is_file():
        from attngrid.core.files import write_atomically
        from attngrid.measure.complexity import models_of_study, table

        log.info("counting the models")
        write_atomically(counts, table(models_of_study(study), strict=False))
        planner = Planner(study, gpu=gpu, on_cpu=on_cpu)
    yield from lines(planner)
    if has_statistics():
        from attngrid.analysis.power import power

        yield from power(study, planner)
    else:
        log.warning('nothing about the claims: pip install "attngrid[evidence]"')


@command(
    YOUR_STUDY,
    argument("what", choices=("attentions", "backbones", "datasets", "recipes", "cells")),
    argument("file", metavar="STUDY", nargs="?", help="of the cells; see `attngrid --help`"),
)
def list_(what: str, file: str | None) -> Iterable[str]:
    """List the names that a configuration can use, or the ids of a study's cells."""
    import attngrid

    if what == "cells":
        return read_study(file).by_id
    names: Iterable[str] = getattr(attngrid, f"list_{what}")()
    return names


@command(YOUR_STUDY, STUDY)
def status(study: Study) -> Iterator[str]:
    """Show which cells are done, running, waiting, stale or failed, with a remedy for each."""
    from attngrid.analysis.progress import status as lines

    return lines(study)


@command(
    YOUR_STUDY,
    STUDY,
    argument("--other-code", action="store_true", help="also archive records of other code"),
)
def archive(study: Study, other_code: bool) -> Iterator[str]:
    """Move stale records to the archive; the next run trains their cells again."""
    from attngrid.records.staleness import archive as archive_records

    moved = archive_records(study, other_code=other_code)
    yield from (f"{file} -> {now}" for file, now in moved)
    log.info("%s: %d files moved", study.study, len(moved))


@command(
    YOUR_STUDY,
    argument("folder", type=Path, metavar="FOLDER", help="a copy of results/, or records"),
    argument("--study", dest="only", help="their study; by default any study in config/"),
)
def import_(folder: Path, only: str | None) -> Iterator[str]:
    """Check records that were made on another machine, and import them."""
    from attngrid.core.errors import RecordError
    from attngrid.records.importing import import_folder, known_studies

    studies = known_studies() if only is None else [read_study(only)]
    found = import_folder(folder, studies)
    yield from (f"imported {file}" for file in found.filed)
    yield from (f"imported {cell.checkpoint}" for cell in found.continued)
    counts = f"{len(found.filed)} records imported, {len(found.skipped)} already here"
    counts += f", {len(found.refused)} refused; {len(found.continued)} checkpoints imported"
    log.info("%s: %s", folder, counts)
    if found.refused:
        raise RecordError("\n".join(["refused:", *found.refused]))


@command(YOUR_STUDY, STUDY)
def outputs(study: Study) -> list[Path]:
    """List the tables, figures and report that exist."""
    return [file for file in study.outputs() if file.is_file()]


@command(YOUR_STUDY)
def schema() -> list[str]:
    """Print the JSON schema of a study's configuration."""
    from attngrid.study.schema import json_schema

    return json_schema().splitlines()
