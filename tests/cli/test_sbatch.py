"""`workflow/slurm/sbatch`, with a program in the place of Slurm's own, and what squeue answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from attngrid.cli.slurm import stuck_jobs
from conftest import ROOT

AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller"
LIMIT = "sbatch: error: AssocMaxSubmitJobLimit"


def submit(folder: Path, answers: str) -> subprocess.CompletedProcess[str]:
    """Submit by the script; its sbatch gives these answers of a ``case``, by its call's number."""
    real = folder / "real/sbatch"
    real.parent.mkdir()
    real.write_text(
        f'#!/bin/bash\necho x >>"{folder}/calls"\necho "$@" >"{folder}/given"\n'
        f'case $(wc -l <"{folder}/calls") in {answers} esac\n'
    )
    real.chmod(0o755)
    ours = ROOT / "workflow/slurm"
    environment = {
        "PATH": f"{ours}:{real.parent}:/usr/bin:/bin",
        "ATTNGRID_SBATCH_LOG": str(folder / "logs/sbatch.log"),
        "ATTNGRID_SBATCH_PAUSE_S": "0",
    }
    return subprocess.run(
        ["bash", "-c", "sbatch --parsable --wrap 'a \"b\" c'"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("reason", [AWAY, LIMIT])
def test_a_job_that_slurm_cannot_take_now_is_submitted_again(tmp_path: Path, reason: str) -> None:
    answers = f'1|2) echo "{reason}" >&2; exit 1;; *) echo 77; echo note >&2;;'
    done = submit(tmp_path, answers)
    # Snakemake's plugin takes "submission failed" on stderr for a failure
    assert (done.returncode, done.stdout, done.stderr) == (0, "77\n", "note\n")
    assert (tmp_path / "calls").read_text().count("x") == 3
    assert (tmp_path / "given").read_text() == '--parsable --wrap a "b" c\n'
    assert (tmp_path / "logs/sbatch.log").read_text().count(reason) == 2


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("Invalid partition name specified", "partition"),
        ("Invalid feature specification", "constraint"),
        ("Invalid qos specification", "qos"),
        ("Requested node configuration is not available", "gpu_model"),
        (
            "Invalid account or account/partition combination",
            "account",
        ),
    ],
)
def test_a_refusal_is_logged_with_the_key_that_it_is_about(
    tmp_path: Path, reason: str, key: str
) -> None:
    done = submit(
        tmp_path, f'*) echo "sbatch: error: Batch job submission failed: {reason}" >&2; exit 1;;'
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    (line,) = (tmp_path / "logs/sbatch.log").read_text().splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert key in line.partition("config/cluster.yaml: ")[2]
    assert (tmp_path / "calls").read_text().count("x") == 1


# The reasons are those of Slurm's documentation, https://slurm.schedmd.com/job_reason_codes.html.
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("PartitionTimeLimit", "config/cluster.yaml: time_limit"),
        ("QOSMaxWallDurationPerJobLimit", "config/cluster.yaml: time_limit"),
        ("BadConstraints", "config/cluster.yaml: constraint"),
        ("InvalidAccount", "config/cluster.yaml: account"),
        ("QOSMaxGRESPerJob", "config/cluster.yaml: qos"),
        ("launch failed requeued held", "scontrol release 7"),
        ("JobHeldUser", "scontrol release 7"),
        ("job requeued in held state", "scontrol release 7"),
        *((reason, "") for reason in ("Priority", "Resources", "QOSMaxJobsPerUserLimit", "None")),
    ],
)
def test_a_pending_job_that_never_starts_is_named(
    tmp_path: Path, reason: str, expected: str
) -> None:
    line = f"7|{reason}|rule_train_wildcards_digits-resnet18-se-s0-1a2b|"
    found = stuck_jobs(tmp_path, f"{line}{tmp_path}\n{line}/another/study\n")
    assert len(found) == bool(expected)
    for message in found.values():
        assert f"job 7 (train digits-resnet18-se-s0-1a2b) waits for ever: {reason}" in message
        assert expected in message
