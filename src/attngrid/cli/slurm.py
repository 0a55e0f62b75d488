"""What a run on Slurm needs besides Snakemake's plugin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attngrid.core.files import shipped


def prepare_slurm(log: Path) -> None:
    """Submit by ``workflow/slurm/sbatch``, and keep asking for the states of jobs.

    ``log`` gets what sbatch refuses.
    """
    folder = shipped("workflow/slurm").absolute()
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    os.environ["ATTNGRID_SBATCH_LOG"] = str(log.absolute())
    _remember_min_job_age()


def _remember_min_job_age() -> None:
    """Keep Snakemake's plugin from changing to sacct while slurmctld is away.

    Before each query the plugin asks slurmctld how long it remembers ended jobs, and without an
    answer takes sacct instead of squeue. Without accounting that fails, and the plugin then forgets
    every job, so that Snakemake waits for ever. With the last known answer it asks squeue until
    slurmctld is back (``slurm-status-attempts`` in the profile). Upstream:
    https://github.com/snakemake/snakemake-executor-plugin-slurm/issues/207
    """
    import snakemake_executor_plugin_slurm as plugin  # type: ignore[import-untyped]

    ask: Any = plugin.get_min_job_age
    known: int | None = ask()

    def min_job_age() -> int | None:
        nonlocal known
        known = found if (found := ask()) is not None else known
        return known

    plugin.get_min_job_age = min_job_age
