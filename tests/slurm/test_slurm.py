"""Faults on a real Slurm: no run hangs, each cell has one record, and its bits are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copy
from typing import Any

import pytest

from slurm.conftest import SUMMARIES, Clone, Outcomes, Sandbox, await_true

Scenario = Callable[[Sandbox, Path, dict[str, Any]], str]
full = pytest.mark.slurm
# The scenarios that stop slurmctld do so one after the other.
CONTROLLER = threading.Lock()


def run_and_disturb(
    clone: Clone, undisturbed: dict[str, Any], disturb: Callable[[str], object]
) -> str:
    """Run one cell and disturb it once, in its second epoch."""
    study = clone.study([0])
    process = clone.start()
    job = clone.await_epoch(study)
    disturb(job)
    clone.finish(process)
    (attempts,) = clone.attempts(study)
    assert len(attempts) > 1, clone.output()
    return clone.equal_to(undisturbed, study)


def nothing_happens(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Two cells, each with a GPU, in a folder whose name has special characters of the shell."""
    clone = Clone(sandbox, folder / "a b;'(c) & d", STEP_S="0")
    clone.cluster(partition="main", constraint="gpu&n1", gpu_request="gres", gpu_model="a100")
    study = clone.study([0, 1])
    clone.finish(clone.start())
    summary = clone.equal_to(undisturbed, study)
    for attempts in clone.attempts(study):
        (only,) = attempts
        assert (only["node"], only["gpus"]) == ("n1", 1)
    first, second = (one for (one,) in clone.attempts(study))
    assert {first["devices"], second["devices"]} <= {"0", "1"}
    if overlap(first, second):
        assert first["devices"] != second["devices"]
    return summary


def cancelled_from_outside(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    clone = Clone(sandbox, folder)
    return run_and_disturb(clone, undisturbed, lambda job: sandbox("scancel", job))


def warned_by_usr1(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The same job continues from its checkpoint."""
    clone = Clone(sandbox, folder)
    summary = run_and_disturb(
        clone, undisturbed, lambda job: sandbox("scancel", "--signal=USR1", job)
    )
    assert "in 1 jobs and 2 attempts, 1 times from a checkpoint" in summary
    return summary


def longer_than_the_limit(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The cell takes almost three minutes, the limit is two; Slurm may send USR1 a minute early."""
    clone = Clone(sandbox, folder, STEP_S="7")
    clone.cluster(time_limit="00:02:00", warning_s=30)
    study = clone.study([0])
    clone.finish(clone.start("--retries", "0"))
    (attempts,) = clone.attempts(study)
    assert len(attempts) > 1
    assert len({one["job"] for one in attempts}) == 1
    return clone.equal_to(undisturbed, study)


def warned_within_the_last_step(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """``warning_s`` is one second; Slurm may send USR1 a minute earlier, or only end the job."""
    clone = Clone(sandbox, folder, STEP_S="3")
    clone.cluster(time_limit="00:01:00", warning_s=1)
    study = clone.study([0])
    clone.finish(clone.start())
    (attempts,) = clone.attempts(study)
    assert len(attempts) > 1
    return clone.equal_to(undisturbed, study)


def preempt(sandbox: Sandbox, job: str) -> None:
    """Submit an urgent job that takes the whole node for some seconds."""
    node = sandbox("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()
    command = ("sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1")
    sandbox(*command, "--output=/dev/null", "--wrap=sleep 10")


def preempted_at_once(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    clone = Clone(sandbox, folder)
    clone.cluster(partition="scavenge")
    return run_and_disturb(clone, undisturbed, lambda job: preempt(sandbox, job))


def preempted_with_a_grace_period(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    clone = Clone(sandbox, folder)
    clone.cluster(partition="graceful")
    return run_and_disturb(clone, undisturbed, lambda job: preempt(sandbox, job))


def requeued_from_outside(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    clone = Clone(sandbox, folder)
    return run_and_disturb(clone, undisturbed, lambda job: sandbox("scontrol", "requeue", job))


def its_node_goes_down(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    clone = Clone(sandbox, folder)
    clone.cluster(partition="spare")

    def down(job: str) -> None:
        node = sandbox("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()
        sandbox("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    return run_and_disturb(clone, undisturbed, down)


def slurmctld_is_away(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any], away_s: float
) -> str:
    """The cell's job ends meanwhile. The other scenarios run at the same time, and see it, too."""
    clone = Clone(sandbox, folder, STEP_S="2")
    study = clone.study([0])
    process = clone.start()
    clone.await_epoch(study)
    with CONTROLLER:
        sandbox.restart_controller(away_s)
    clone.finish(process)
    return clone.equal_to(undisturbed, study)


def slurmctld_restarts(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    return slurmctld_is_away(sandbox, folder, undisturbed, 8)


def slurmctld_is_away_for_30_s(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    return slurmctld_is_away(sandbox, folder, undisturbed, 30)


def slurmctld_is_away_for_90_s(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    return slurmctld_is_away(sandbox, folder, undisturbed, 90)


def slurmctld_is_away_at_the_submission(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    """The job is submitted when slurmctld is back; it does not cost a retry."""
    clone = Clone(sandbox, folder, STEP_S="0")
    clone.cluster(time_limit="00:10:00")  # without it, sinfo would be asked
    study = clone.study([0])
    with CONTROLLER:
        stopped = threading.Thread(target=sandbox.restart_controller, args=(60,))
        stopped.start()
        time.sleep(2)
        process = clone.start("--retries", "0")
        stopped.join()
    clone.finish(process)
    assert "waiting 5 s" in clone.file(Path(f"logs/{study.study}/sbatch.log")).read_text()
    return clone.equal_to(undisturbed, study)


def refused_by_slurm(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The end of the run has Slurm's reason and the key of config/cluster.yaml."""
    clone = Clone(sandbox, folder)
    clone.cluster(partition="nowhere", time_limit="00:10:00")
    clone.study([0])
    assert clone.start("--retries", "0").wait(300) != 0
    assert "invalid partition" in clone.output().lower()
    assert "(config/cluster.yaml: partition)" in clone.output()
    return "the reason and its key are shown"


def can_never_start(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Slurm takes a job with a longer limit than its partition's, but never starts it."""
    clone = Clone(sandbox, folder)
    clone.cluster(partition="main", time_limit="9-00:00:00")
    clone.study([0])
    process = clone.start()
    expected = "PartitionTimeLimit (config/cluster.yaml: time_limit)"
    await_true(lambda: expected in clone.output(), 400, clone.output)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    return "the reason and its key are shown while the job is pending"


def held(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """A job that is held is named, with the command that releases it."""

    def hold(job: str) -> None:
        sandbox("scontrol", "requeuehold", job)
        await_true(lambda: f"scontrol release {job}`" in clone.output(), 400, clone.output)
        sandbox("scontrol", "release", job)

    clone = Clone(sandbox, folder)
    return run_and_disturb(clone, undisturbed, hold)


def snakemake_interrupted(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Ctrl-C cancels the jobs; the next run continues."""
    clone = Clone(sandbox, folder)
    study = clone.study([0])
    process = clone.start()
    job = clone.await_epoch(study)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    await_true(lambda: "R" not in states(sandbox, job), 60)
    clone.finish(clone.start())
    return clone.equal_to(undisturbed, study)


def snakemake_terminated(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Snakemake waits for the running job; the next run trains the other cell."""
    clone = Clone(sandbox, folder)
    study = clone.study([0, 1])
    process = clone.start("--jobs", "1")
    clone.await_epoch(study)
    process.send_signal(signal.SIGTERM)
    assert process.wait(180) != 0
    clone.finish(clone.start())
    return clone.equal_to(undisturbed, study)


def snakemake_killed_and_started_again(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    """The jobs keep running; the next run waits for them, and no cell is trained twice."""
    clone = Clone(sandbox, folder, STEP_S="3")
    study = clone.study([0, 1])
    process = clone.start()
    clone.await_epoch(study)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert clone.start("--unlock").wait(60) == 0
    clone.finish(clone.start())
    for attempts in clone.attempts(study):
        assert len(attempts) == 1, attempts
    return clone.equal_to(undisturbed, study)


def killed_for_memory(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The cell needs 4.5 GB; its first job has 3.6 GB, the second 7.2 GB."""
    clone = Clone(sandbox, folder, EXTRA_MB="4200")
    study = clone.study([0])
    clone.finish(clone.start())
    (attempts,) = clone.attempts(study)
    assert len({one["job"] for one in attempts}) == 2
    return clone.equal_to(undisturbed, study)


def files_show_late(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Snakemake sees a record ten seconds after a node has written it."""
    clone = Clone(sandbox, folder / "clone", STEP_S="0")
    study = clone.study([0])
    written, shown = clone.file(study.results / "records"), folder / "shown"
    written.mkdir(parents=True)
    shown.mkdir()
    over = threading.Event()

    def show() -> None:
        while not over.wait(0.5):
            for file in written.glob("*.json"):
                if time.time() - file.stat().st_mtime > 10:
                    copy(file, shown)

    thread = threading.Thread(target=show)
    thread.start()
    mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
    try:
        clone.finish(
            clone.start(prefix=("unshare", "--mount", "sh", "-c", mount, str(shown), str(written)))
        )
    finally:
        over.set()
        thread.join()
    return clone.equal_to(undisturbed, study)


def packed_into_one_job(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Two small cells share a job and run one after the other on its GPU."""
    clone = Clone(sandbox, folder, STEP_S="0")
    study = clone.counted_study([0, 1])
    clone.finish(clone.start())
    summary = clone.equal_to(undisturbed, study)
    assert "2 cells in 1 jobs and 2 attempts" in summary
    (first,), (second,) = clone.attempts(study)
    assert first["devices"] == second["devices"] in ("0", "1")
    assert not overlap(first, second)
    return summary


def packed_and_cancelled(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The second job continues from the checkpoint of the first."""
    clone = Clone(sandbox, folder)
    study = clone.counted_study([0, 1])
    process = clone.start()
    job = clone.await_epoch(study)
    sandbox("scancel", job)
    clone.finish(process)
    summary = clone.equal_to(undisturbed, study)
    assert "2 cells in 2 jobs and 3 attempts, 1 times from a checkpoint" in summary
    return summary


def packed_with_one_that_diverges(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    """The other cell is trained in the second try of the job."""
    clone = Clone(sandbox, folder, STEP_S="0")
    study = clone.counted_study([0], diverging=True)
    diverging, normal = study.trainings.values()
    assert clone.start("--retries", "1").wait(300) != 0
    made = [[one["state"] for one in attempts] for attempts in clone.attempts(study)]
    assert made == [["DivergedError"], ["done"]], clone.output()
    assert not clone.file(diverging.record).exists()
    metrics = json.loads(clone.file(normal.record).read_text())["metrics"]
    assert metrics == undisturbed[normal.id]["metrics"]
    return "the other cell is equal to the bit"


def overlap(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two attempts ran at the same time."""
    return bool(max(first["began"], second["began"]) < min(first["heard"], second["heard"]))


def two_gpus_a_cell(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """torchrun starts a process for each GPU (gloo here); after USR1 the job continues."""
    alone = Clone(sandbox, folder / "alone", STEP_S="0")
    (cell,) = alone.study([0], gpus=2).trainings.values()
    alone.train(cell)
    clone = Clone(sandbox, folder / "slurm")
    study = clone.study([0], gpus=2)
    process = clone.start("--retries", "0")
    job = clone.await_epoch(study)
    sandbox("scancel", "--signal=USR1", job)
    clone.finish(process)
    (attempts,) = clone.attempts(study)
    assert [(one["gpus"], one["devices"]) for one in attempts] == [(2, "0,1")] * 2
    expected = json.loads(alone.file(cell.record).read_text())
    return clone.equal_to({cell.id: expected}, study)


def states(sandbox: Sandbox, job: str) -> str:
    command = ["squeue", "--noheader", "--states=all", "--format=%t", f"--jobs={job}"]
    return subprocess.run(
        command, env=sandbox.environment, capture_output=True, text=True, timeout=30
    ).stdout


QUICK: list[Scenario] = [nothing_happens, cancelled_from_outside, warned_by_usr1]
FULL: list[Scenario] = [
    longer_than_the_limit,
    warned_within_the_last_step,
    preempted_at_once,
    preempted_with_a_grace_period,
    requeued_from_outside,
    its_node_goes_down,
    slurmctld_restarts,
    slurmctld_is_away_for_30_s,
    slurmctld_is_away_for_90_s,
    slurmctld_is_away_at_the_submission,
    refused_by_slurm,
    can_never_start,
    held,
    snakemake_interrupted,
    snakemake_terminated,
    snakemake_killed_and_started_again,
    killed_for_memory,
    files_show_late,
    packed_into_one_job,
    packed_and_cancelled,
    packed_with_one_that_diverges,
    two_gpus_a_cell,
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [*QUICK, *(pytest.param(scenario, marks=full) for scenario in FULL)],
    ids=lambda scenario: scenario.__name__,
)
def test_on_slurm(scenario: Scenario, outcomes: Outcomes) -> None:
    SUMMARIES[scenario.__name__] = "failed"
    SUMMARIES[scenario.__name__] = outcomes[scenario.__name__].result(timeout=800)
