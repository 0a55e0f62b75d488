"""What a run on Slurm needs besides Snakemake's plugin."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from attngrid.core.files import shipped

log = logging.getLogger(__name__)

CHECK_S = 30.0  # seconds between two looks at the pending jobs
# Reasons of squeue for which a pending job never starts by itself, and what to correct. The first
# pattern that is found counts.
STUCK = {
    r"TimeLimit|WallDuration": "time_limit",
    r"PartitionNodeLimit": "partition",
    r"BadConstraints": "constraint, gpu_request and gpu_model",
    r"InvalidAccount|AccountNotAllowed": "account",
    r"InvalidQOS|QOSNotAllowed": "qos",
    r"PerJob": "qos, or threads, workers and gpus in the study",
}
HELD = r"(?i)held"


def prepare_slurm(log_file: Path) -> None:
    """Submit by ``workflow/slurm/sbatch``, keep asking for the states of jobs, and name stuck ones.

    ``log_file`` gets what sbatch refuses.
    """
    folder = shipped("workflow/slurm").absolute()
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    os.environ["ATTNGRID_SBATCH_LOG"] = str(log_file.absolute())
    _remember_min_job_age()
    Thread(target=_name_stuck_jobs, args=(Path.cwd(),), daemon=True).start()


def stuck_jobs(folder: Path, squeue: str) -> dict[str, str]:
    """A message for each of a folder's pending jobs that never starts by itself, by its id.

    ``squeue`` is what it prints of the pending jobs: id|reason|comment|folder.
    """
    found = {}
    for line in squeue.splitlines():
        job, reason, comment, job_folder = line.strip().split("|", 3)
        # the plugin's comment, rule_train_wildcards_CELL
        name = comment.removeprefix("rule_").replace("_wildcards_", " ", 1)
        text = f"job {job} ({name}) waits for ever: {reason}"
        if Path(job_folder) != folder:
            continue
        if re.search(HELD, reason):
            found[job] = f"{text}; `scontrol release {job}` lets it go"
        elif key := next((key for pattern, key in STUCK.items() if re.search(pattern, reason)), ""):
            found[job] = (
                f"{text} (config/cluster.yaml: {key}); press Ctrl-C, correct it and run again"
            )
    return found


def _name_stuck_jobs(folder: Path) -> None:
    """Warn once of each job that never starts: Snakemake would wait for it in silence."""
    command = ["squeue", "--me", "--states=PENDING", "--noheader", "--format=%i|%r|%k|%Z"]
    named: set[str] = set()
    while True:
        time.sleep(CHECK_S)
        # without an answer, ask again the next time
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            found = stuck_jobs(folder, answer.stdout)
            for job in found.keys() - named:
                log.warning("%s", found[job])
            named |= found.keys()


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
