"""Functions that the Snakefile calls before its jobs start and after they end."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from attngrid.analysis.claims import load_study_claims, untrained
from attngrid.analysis.progress import failed_jobs, status
from attngrid.cli.main import configure_logging
from attngrid.cli.slurm import prepare_slurm
from attngrid.core.errors import AttngridError, ConfigError
from attngrid.core.files import read_yaml
from attngrid.core.validation import name_sources, validate
from attngrid.records.collected import prepare_collection
from attngrid.records.environment import now
from attngrid.records.importing import records_elsewhere
from attngrid.records.status import RUN_BEGAN
from attngrid.render.description import check_descriptions
from attngrid.study.cluster import cluster, require_plain
from attngrid.study.plan import Planner, summary
from attngrid.study.resources import require_captum, require_runnable
from attngrid.study.schema import Study
from attngrid.training.devices import trains_on_cpu
from attngrid.training.max_runtime import deadline
from attngrid.training.signals import forward_signals
from attngrid.training.start import try_models, try_recipes

log = logging.getLogger(__name__)

# What Snakemake prints of its scheduling. A cell prints one line of its own when it is done; a job
# on a cluster prints elsewhere, so there Snakemake's count of the steps stays.
SCHEDULING = re.compile(
    r"Select jobs to execute|Execute \d+ jobs|Finished jobid|Using shell"
    r"|Rules claiming more threads|Conda environments: ignored|Assuming unrestricted shared"
    r"|--keep-incomplete mode is set"
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the run with an error's message only; Snakemake would append lines of source files."""
    try:
        yield
    except AttngridError as error:
        logger.error(f"attngrid: error: {error}")
        sys.exit(1)


def print_less(workflow: Any) -> None:
    """Keep Snakemake from printing ``SCHEDULING``; --verbose prints it."""

    def is_printed(record: logging.LogRecord) -> bool:
        if getattr(record, "event", None) == LogEvent.PROGRESS:
            return bool(workflow.non_local_exec)
        return not SCHEDULING.match(record.getMessage())

    if not workflow.output_settings.verbose:
        logger.addFilter(is_printed)


@one_line_errors()
def check_yaml(*files: str) -> None:
    """Check configuration files that Snakemake will read: its own error names no line.

    Snakemake also lets the last of two equal keys win, in one file and over several files.
    """
    named = [file for file in files if "study" in (read_yaml(file) or {})]
    if len(named) > 1:
        raise ConfigError(
            f"{name_sources(named)}: each has the key study; run Snakemake once for each study, "
            "or remove the key from all files but one to merge them"
        )


@one_line_errors()
def open_study(workflow: Any, config: Mapping[str, Any]) -> tuple[Study, Planner]:
    """Check all configuration files, write the study's snapshot and print its summary.

    The process of a single job reads the same files, but prints no summary.

    Returns:
        The study of ``config``, and the planner of its jobs' run times.
    """
    configure_logging()
    print_less(workflow)
    # The rules' commands are the ones beside this interpreter, whether it is activated or not.
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    check_yaml(*workflow.configfiles)
    overrides = workflow.config_settings.config
    source = name_sources(workflow.configfiles, overrides)
    study = validate(Study, config, source)
    check_descriptions(study, source)
    _, claims = load_study_claims(study)
    for folder in (Path.cwd(), study.results, study.data_folder):
        if set("{}") & set(str(folder)):
            raise ConfigError(
                f"{folder}: Snakemake takes {{ and }} for a wildcard; use a folder without them"
            )
    cluster()
    deadline()
    # Snakemake knows its executor only after it has read the Snakefile.
    submitted = workflow.nodes is not None or not workflow.is_main_process
    planner = Planner(
        study,
        lambda: cluster().limit(ask=workflow.non_local_exec and workflow.is_main_process),
        on_cpu=trains_on_cpu(study.compute.device, elsewhere=submitted),
    )
    if not workflow.is_main_process:
        study.write_snapshot()
        forward_signals()
        return study, planner
    prepare_collection(study)
    os.environ[RUN_BEGAN] = now()
    log.info("%s", summary(planner))
    for line in untrained(study, claims):
        log.warning("%s", line)
    # what the commands in the messages can name
    is_file = len(workflow.configfiles) == 1 and not overrides
    file = name_sources(workflow.configfiles) if is_file else study.snapshot
    if superseded := study.superseded:
        log.info(
            "study %s: %d cells are not trained, because records of another configuration have "
            "their names. `attngrid archive %s` moves these records away, and the next run trains "
            "the cells:\n  %s",
            *(study.study, len(superseded), shlex.quote(str(file)), "\n  ".join(superseded)),
        )
    for folder, count in records_elsewhere(study).items():
        log.info(
            "study %s: %s has records of %d cells that have none here; `attngrid import %s --study "
            "%s` copies them, for example after you renamed a study",
            *(study.study, folder, count, shlex.quote(str(folder)), shlex.quote(str(file))),
        )
    return study, planner


@one_line_errors()
def before_jobs(workflow: Any, study: Study) -> None:
    """Before the first job starts, end the run if a needed job could not run."""
    jobs = list(workflow.dag.needrun_jobs())
    trained = [job.wildcards.cell for job in jobs if job.rule.name in ("trial", "train")]
    require_runnable(study, trained)
    try_models(map(study.training, trained))
    try_recipes(map(study.training, trained))
    in_conda = bool(workflow.deployment_settings.deployment_method)
    compute = study.compute
    named = compute.device == "cuda" or compute.gpus > 1
    if trained and named and not (workflow.non_local_exec or in_conda):
        from attngrid.training.launch import require_device  # imports torch

        require_device(compute)
    if workflow.non_local_exec:
        cluster().limit(ask=True)
        prepare_slurm(Path(f"logs/{study.study}/sbatch.log"))
        overrides = [f"{key}={value}" for key, value in workflow.config_settings.config.items()]
        folders = [workflow.basedir, Path.cwd(), study.results, study.data_folder, sys.executable]
        require_plain([*folders, *workflow.configfiles, *study.user_files, *overrides])
    # conda environments contain captum
    if not in_conda and any(job.rule.name == "maps" for job in jobs):
        require_captum(study)


def after_run(study: Study, *, failed: bool = False) -> None:
    """Print what was made, and what is stale or failed. After a failure, first render the records.

    A run with a deadline only trains; another run renders its records.
    """
    if failed and deadline() == math.inf:
        subprocess.run(["attngrid", "-q", "current", "--ended", str(study.snapshot)])
    made = [file for file in study.outputs() if file.is_file()]
    answers = {study.results / "report.html", study.table_files("claims")[1]}
    if first := [str(file) for file in made if file in answers]:
        log.info(
            "made: %s; `attngrid outputs %s` lists all %d files",
            *(", ".join(first), study.study, len(made)),
        )
    for line in (*status(study), *(failed_jobs(study) if failed else ())):
        log.info("%s", line)
