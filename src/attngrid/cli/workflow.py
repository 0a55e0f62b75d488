"""What the Snakefile does before its jobs start and after they end."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

from attngrid.analysis.claims import load_claims
from attngrid.analysis.progress import used
from attngrid.cli.main import configure_logging
from attngrid.core.errors import AttngridError
from attngrid.core.files import set_home
from attngrid.core.validation import name_sources, validate
from attngrid.records.collected import prepare_collection
from attngrid.records.environment import now
from attngrid.records.status import RUN_BEGAN
from attngrid.render.description import check_descriptions
from attngrid.study.cluster import cluster, require_plain
from attngrid.study.plan import Planner, summary
from attngrid.study.resources import require_captum, require_runnable
from attngrid.study.schema import Study
from attngrid.training.max_runtime import deadline
from attngrid.training.signals import forward_signals


def open_study(workflow: Any, config: Mapping[str, Any]) -> tuple[Study, Planner]:
    """Check all configuration files, write the study's snapshot and print its summary.

    The process of a single job reads the same files, but it neither prints nor changes anything.

    Args:
        workflow: Snakemake's workflow, while it reads the Snakefile.
        config: the study's configuration as Snakemake has read it.

    Returns:
        The study and the planner of its jobs' wall times.

    Raises:
        WorkflowError: a file is missing or wrong.
    """
    configure_logging()
    set_home(workflow.current_basedir)
    try:
        source = name_sources(workflow.configfiles, workflow.config_settings.config)
        study = validate(Study, config, source)
        check_descriptions(study, source)
        load_claims()
        cluster()
        deadline()
    except AttngridError as error:
        raise WorkflowError(f"{error}") from None
    # Snakemake knows its executor only after it has read the Snakefile.
    planner = Planner(
        study, lambda: cluster().limit(ask=workflow.non_local_exec and workflow.is_main_process)
    )
    if workflow.is_main_process:
        prepare_collection(study)
        os.environ[RUN_BEGAN] = now()
        print(summary(planner), file=sys.stderr)
        if superseded := study.superseded:
            print(
                f"study {study.study}: not trained, since there are records of their names and "
                f"another configuration: {', '.join(superseded)}. `attngrid archive` puts those "
                "aside",
                file=sys.stderr,
            )
    else:
        study.write_snapshot()
        forward_signals()
    return study, planner


def before_jobs(workflow: Any, study: Study) -> None:
    """Check, before the first job starts, that the needed jobs can run.

    Raises:
        ConfigError: images or a package are missing, or a name would break a Slurm command.
    """
    jobs = list(workflow.dag.needrun_jobs())
    require_runnable(
        study, [job.wildcards.cell for job in jobs if job.rule.name in ("trial", "train")]
    )
    if workflow.non_local_exec:
        folders = [workflow.basedir, Path.cwd(), study.results, study.data_folder]
        overrides = [f"{key}={value}" for key, value in workflow.config_settings.config.items()]
        require_plain(
            [*folders, *workflow.configfiles, *study.user_files, sys.executable, *overrides]
        )
    # conda environments contain captum
    draws_maps = any(job.rule.name == "maps" for job in jobs)
    if draws_maps and not workflow.deployment_settings.deployment_method:
        require_captum(study)


def after_run(study: Study, *, failed: bool = False) -> None:
    """Print the hours used. After a failure, also render the records that exist.

    A run with a deadline only trains; its records are rendered elsewhere.
    """
    if failed and deadline() == math.inf:
        subprocess.run(["attngrid", "current", "--ended", str(study.snapshot)])
    print(used(study), file=sys.stderr)
