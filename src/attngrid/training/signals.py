"""TODO."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from attngrid.study.cluster import slurm_job


def forward_signals() -> None:
    """Pass Slurm's warnings on to the trainings that this Snakemake runs.

    Slurm signals a job's own processes, which are Snakemakes, and not what they have started.
    Snakemake's handlers stay: at TERM it waits for its jobs, at USR1 it would have ended.
    """
    import psutil  # as Snakemake has it; rendering does without both

    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def forward() -> None:
        while content := os.read(told, 1):
            if (number := content[0]) in WARNINGS:
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        if _is_training(process.cmdline()):
                            process.send_signal(number)

    threading.Thread(target=forward, daemon=True).start()


def _is_training(command: list[str]) -> bool:
    """Whether it is ``attngrid train`` itself, and no shell with that in its script."""
    words = [Path(word).name for word in command[:3]]
    return "attngrid" in words and "train" in words


WARNINGS = {signal.SIGUSR1, signal.SIGTERM}


def hold_signals() -> None:
    """In a Slurm job, keep warnings until the training can write a checkpoint at them."""
    if slurm_job() is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        for number in WARNINGS:  # the shell around it ignores them
            signal.signal(number, signal.SIG_DFL)


def hear_signals() -> None:
    """Take those that were held."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)


def requeue() -> bool:
    """Put this process's own Slurm job back into the queue; whether that was done."""
    job = slurm_job()
    if job is None:
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=60)
    return done.returncode == 0
