"""Faults on a real Slurm: none hangs, none loses or doubles a cell, and the bits stay the same."""

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

from slurm.conftest import TOLD, Outcomes, Place, Sandbox, await_true

Scenario = Callable[[Sandbox, Path, dict[str, Any]], str]
full = pytest.mark.slurm


def run_and_disturb(
    place: Place, undisturbed: dict[str, Any], disturb: Callable[[str], object]
) -> str:
    """One cell, disturbed once in its second epoch."""
    study = place.study([0])
    process = place.start()
    job = place.await_epoch(study)
    disturb(job)
    place.finish(process)
    (attempts,) = place.attempts(study)
    assert len(attempts) > 1, place.told()
    return place.equal_to(undisturbed, study)


def nothing_happens(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """In a folder whose name a shell would take apart, on a GPU each."""
    place = Place(sandbox, folder / "a b;'(c) & d", STEP_S="0")
    place.cluster(partition="main", constraint="gpu&n1", gpu_request="gres", gpu_model="a100")
    study = place.study([0, 1])
    place.finish(place.start())
    told = place.equal_to(undisturbed, study)
    for attempts in place.attempts(study):
        (only,) = attempts
        assert (only["node"], only["gpus"]) == ("n1", 1)
    first, second = (one for (one,) in place.attempts(study))
    assert {first["devices"], second["devices"]} <= {"0", "1"}
    if beside(first, second):
        assert first["devices"] != second["devices"]
    return told


def cancelled_from_outside(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    place = Place(sandbox, folder)
    return run_and_disturb(place, undisturbed, lambda job: sandbox("scancel", job))


def warned_by_usr1(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The same job goes on."""
    place = Place(sandbox, folder)
    told = run_and_disturb(place, undisturbed, lambda job: sandbox("scancel", "--signal=USR1", job))
    assert "in 1 jobs and 2 attempts, 1 times from a checkpoint" in told
    return told


def longer_than_the_limit(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Two minutes at most, of which Slurm leaves more than one; the cell takes almost three."""
    place = Place(sandbox, folder, STEP_S="7")
    place.cluster(time_limit="00:02:00", warning_s=30)
    study = place.study([0])
    place.finish(place.start("--retries", "0"))
    (attempts,) = place.attempts(study)
    assert len(attempts) > 1
    assert len({one["job"] for one in attempts}) == 1
    return place.equal_to(undisturbed, study)


def warned_within_the_last_step(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """A second before the limit, says the site; Slurm may warn a minute earlier, or only end it."""
    place = Place(sandbox, folder, STEP_S="3")
    place.cluster(time_limit="00:01:00", warning_s=1)
    study = place.study([0])
    place.finish(place.start())
    (attempts,) = place.attempts(study)
    assert len(attempts) > 1
    return place.equal_to(undisturbed, study)


def preempted(sandbox: Sandbox, job: str) -> None:
    """By a job that wants the whole node, for some seconds."""
    node = sandbox("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()
    command = ("sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1")
    sandbox(*command, "--output=/dev/null", "--wrap=sleep 10")


def preempted_at_once(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    place = Place(sandbox, folder)
    place.cluster(partition="scavenge")
    return run_and_disturb(place, undisturbed, lambda job: preempted(sandbox, job))


def preempted_with_a_grace_period(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    place = Place(sandbox, folder)
    place.cluster(partition="graceful")
    return run_and_disturb(place, undisturbed, lambda job: preempted(sandbox, job))


def requeued_from_outside(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    place = Place(sandbox, folder)
    return run_and_disturb(place, undisturbed, lambda job: sandbox("scontrol", "requeue", job))


def its_node_goes_down(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    place = Place(sandbox, folder)
    place.cluster(partition="spare")

    def down(job: str) -> None:
        node = sandbox("squeue", "--noheader", "--format=%N", f"--jobs={job}").strip()
        sandbox("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    return run_and_disturb(place, undisturbed, down)


def slurmctld_restarts(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Under every other scenario, too."""
    place = Place(sandbox, folder, STEP_S="2")
    study = place.study([0])
    process = place.start()
    place.await_epoch(study)
    sandbox.restart_controller()
    place.finish(process)
    return place.equal_to(undisturbed, study)


def snakemake_interrupted(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Ctrl-C takes the jobs with it; the next run goes on."""
    place = Place(sandbox, folder)
    study = place.study([0])
    process = place.start()
    job = place.await_epoch(study)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    await_true(lambda: "R" not in states(sandbox, job), 60)
    place.finish(place.start())
    return place.equal_to(undisturbed, study)


def snakemake_terminated(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """It waits for what runs; the next run does the rest."""
    place = Place(sandbox, folder)
    study = place.study([0, 1])
    process = place.start("--jobs", "1")
    place.await_epoch(study)
    process.send_signal(signal.SIGTERM)
    assert process.wait(180) != 0
    place.finish(place.start())
    return place.equal_to(undisturbed, study)


def snakemake_killed_and_started_again(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    """While its jobs run on: they are waited for, and nothing is trained twice."""
    place = Place(sandbox, folder, STEP_S="3")
    study = place.study([0, 1])
    process = place.start()
    place.await_epoch(study)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert place.start("--unlock").wait(60) == 0
    place.finish(place.start())
    for attempts in place.attempts(study):
        assert len(attempts) == 1, attempts
    return place.equal_to(undisturbed, study)


def killed_for_memory(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Some 4.5 GB of 3.6; the second job has 7.2."""
    place = Place(sandbox, folder, HUNGRY_MB="4200")
    study = place.study([0])
    place.finish(place.start())
    (attempts,) = place.attempts(study)
    assert len({one["job"] for one in attempts}) == 2
    return place.equal_to(undisturbed, study)


def files_show_late(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """Where Snakemake runs, a record shows ten seconds after a node has written it."""
    place = Place(sandbox, folder / "clone", STEP_S="0")
    study = place.study([0])
    written, shown = place.file(study.results / "records"), folder / "shown"
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
        place.finish(
            place.start(prefix=("unshare", "--mount", "sh", "-c", mount, str(shown), str(written)))
        )
    finally:
        over.set()
        thread.join()
    return place.equal_to(undisturbed, study)


def packed_into_one_job(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """As the profile does with small cells: one after the other, on the GPU of the job."""
    place = Place(sandbox, folder, STEP_S="0")
    study = place.counted([0, 1])
    place.finish(place.start())
    told = place.equal_to(undisturbed, study)
    assert "2 cells in 1 jobs and 2 attempts" in told
    (first,), (second,) = place.attempts(study)
    assert first["devices"] == second["devices"] in ("0", "1")
    assert not beside(first, second)
    return told


def packed_and_cancelled(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """The second job goes on with what the first one left."""
    place = Place(sandbox, folder)
    study = place.counted([0, 1])
    process = place.start()
    job = place.await_epoch(study)
    sandbox("scancel", job)
    place.finish(process)
    told = place.equal_to(undisturbed, study)
    assert "2 cells in 2 jobs and 3 attempts, 1 times from a checkpoint" in told
    return told


def packed_with_one_that_diverges(
    sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]
) -> str:
    """Its fellow has its turn in the job's second try."""
    place = Place(sandbox, folder, STEP_S="0")
    study = place.counted([0], wild=True)
    wild, tame = study.trainings.values()
    assert place.start("--retries", "1").wait(300) != 0
    made = [[one["state"] for one in attempts] for attempts in place.attempts(study)]
    assert made == [["DivergedError"], ["done"]], place.told()
    assert not place.file(wild.record).exists()
    metrics = json.loads(place.file(tame.record).read_text())["metrics"]
    assert metrics == undisturbed[tame.id]["metrics"]
    return "its fellow is equal to the bit"


def beside(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two attempts ran at the same time."""
    return bool(max(first["began"], second["began"]) < min(first["heard"], second["heard"]))


def two_gpus_a_cell(sandbox: Sandbox, folder: Path, undisturbed: dict[str, Any]) -> str:
    """By torchrun, a process each (gloo here); warned in its second epoch, it goes on."""
    alone = Place(sandbox, folder / "alone", STEP_S="0")
    (cell,) = alone.study([0], gpus=2).trainings.values()
    alone.train(cell)
    place = Place(sandbox, folder / "slurm")
    study = place.study([0], gpus=2)
    process = place.start("--retries", "0")
    job = place.await_epoch(study)
    sandbox("scancel", "--signal=USR1", job)
    place.finish(process)
    (attempts,) = place.attempts(study)
    assert [(one["gpus"], one["devices"]) for one in attempts] == [(2, "0,1")] * 2
    expected = json.loads(alone.file(cell.record).read_text())
    return place.equal_to({cell.id: expected}, study)


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
    TOLD[scenario.__name__] = "failed"
    TOLD[scenario.__name__] = outcomes[scenario.__name__].result(timeout=800)
