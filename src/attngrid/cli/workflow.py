"""Functions that the Snakefile calls before its jobs start and after they end."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from attngrid.analysis.claims import load_study_claims
from attngrid.analysis.progress import failed_jobs, used
from attngrid.cli.main import configure_logging
from attngrid.core.errors import AttngridError
from attngrid.core.files import read_yaml
from attngrid.core.validation import name_sources, validate
from attngrid.records.collected import prepare_collection
from attngrid.records.environment import now
from attngrid.records.status import RUN_BEGAN
from attngrid.render.description import check_descriptions
from attngrid.study.cluster import cluster, require_plain
from attngrid.study.paths import results_folder
from attngrid.study.plan import Planner, summary
from attngrid.study.resources import require_captum, require_runnable
from attngrid.study.schema import Study
from attngrid.training.devices import trains_on_cpu
from attngrid.training.max_runtime import deadline
from attngrid.training.signals import forward_signals
from attngrid.training.start import try_models, try_recipes

log = logging.getLogger(__name__)


def open_study(workflow: Any, config: Mapping[str, Any]) -> tuple[Study, Planner]:
    """Check all configuration files, write the study's snapshot and print its summary.

    The process of a single job reads the same files, but prints no summary.

    Returns:
        The study of ``config``, and the planner of its jobs' run times.
    """
    configure_logging()
    # The rules' commands are the ones beside this interpreter, whether it is activated or not.
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    try:
        for file in workflow.configfiles:  # Snakemake lets the last of two equal keys win
            read_yaml(file)
        source = name_sources(workflow.configfiles, workflow.config_settings.config)
        study = validate(Study, config, source)
        check_descriptions(study, source)
        load_study_claims(study)
        results_folder()
        study.data_folder  # noqa: B018, raises an error
        cluster()
        deadline()
    except AttngridError as error:
        raise WorkflowError(f"{error}") from None
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
    if superseded := study.superseded:
        log.info(
            "study %s: these cells are not trained, because records of another configuration have "
            "their names: %s. `attngrid archive` moves these records away",
            *(study.study, ", ".join(superseded)),
        )
    return study, planner


def before_jobs(workflow: Any, study: Study) -> None:
    """Before the first job starts, raise a ConfigError if a needed job could not run."""
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
        overrides = [f"{key}={value}" for key, value in workflow.config_settings.config.items()]
        folders = [workflow.basedir, Path.cwd(), study.results, study.data_folder, sys.executable]
        require_plain([*folders, *workflow.configfiles, *study.user_files, *overrides])
    # conda environments contain captum
    if not in_conda and any(job.rule.name == "maps" for job in jobs):
        require_captum(study)


def after_run(study: Study, *, failed: bool = False) -> None:
    """Print the hours used. After a failure, also render the records that exist.

    A run with a deadline only trains; another run renders its records.
    """
    if failed and deadline() == math.inf:
        subprocess.run(["attngrid", "current", "--ended", str(study.snapshot)])
    for line in failed_jobs(study) if failed else ():
        log.info("  %s", line)
    log.info("%s", used(study))
