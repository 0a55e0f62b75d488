"""Forward Slurm's warning signals, and hold them until a training can write a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from attngrid.study.cluster import slurm_job

# After one of these signals, a training writes a checkpoint and ends.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Slurm sends these before its time limit and at a preemption.
WARNINGS = {signal.SIGUSR1, signal.SIGTERM}


def forward_signals() -> None:
    """Forward Slurm's warnings to the trainings that this Snakemake process has started.

    Slurm signals only Snakemake. On SIGTERM, Snakemake still waits for its jobs; SIGUSR1 no
    longer ends it.
    """
    import psutil  # installed with Snakemake

    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def forward() -> None:
        while content := os.read(read_end, 1):
            if (number := content[0]) in WARNINGS:
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        if _is_training(process.cmdline()):
                            process.send_signal(number)

    threading.Thread(target=forward, daemon=True).start()


def _is_training(command: list[str]) -> bool:
    """Whether a process is ``attngrid train``, and not a shell that runs it."""
    names = [Path(word).name for word in command[:2]]  # the script may follow its interpreter
    if "attngrid" not in names:
        return False
    # no option before the command takes a value
    arguments = [w for w in command[names.index("attngrid") + 1 :] if not w.startswith("-")]
    return arguments[:1] == ["train"]


def hold_signals() -> None:
    """In a Slurm job, block warnings until the training can write a checkpoint."""
    if slurm_job() is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        for number in WARNINGS:  # the shell that started this process may have ignored them
            signal.signal(number, signal.SIG_DFL)


def hear_signals() -> None:
    """Unblock the warnings that ``hold_signals`` blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)


def requeue() -> bool:
    """Put the Slurm job of this process back into the queue; return whether that worked."""
    if (job := slurm_job()) is None:
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=60)
    return done.returncode == 0
