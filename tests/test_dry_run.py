"""What is left out for each job of a large grid is missed by nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import environment, jobs

Snakemake = Callable[..., subprocess.CompletedProcess[str]]

# Snakemake, and how many jobs of each rule it describes.
DESCRIBES = """
import json, sys
from collections import Counter
from snakemake.cli import main
from snakemake.jobs import Job

described, log_info = Counter(), Job.log_info

def counted(job, *args, **how):
    described[job.rule.name] += 1
    log_info(job, *args, **how)

Job.log_info = counted
try:
    main(sys.argv[1:])
finally:
    print("described", json.dumps(described))
"""
# A Snakemake that has other names for what it promises to nobody.
RENAMED = """
import sys
import snakemake.common
from snakemake.cli import main

del snakemake.common.overwrite_function_params
main(sys.argv[1:])
"""


def run(clone: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, "-n", "--cores", "1", *arguments]
    done = subprocess.run(command, cwd=clone, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def described(said: str) -> dict[str, int]:
    counts: dict[str, int] = json.loads(said.partition("\ndescribed ")[2].splitlines()[0])
    return counts


def test_a_quiet_dry_run_describes_the_first_job_of_a_rule(clone: Path) -> None:
    said = run(clone, DESCRIBES)
    assert jobs(said)["train"] == 18
    assert "rule train:" not in said
    assert described(said) == dict.fromkeys(jobs(said), 1)


def test_a_dry_run_describes_and_prints_the_jobs_where_it_is_asked_for_them(clone: Path) -> None:
    said = run(clone, DESCRIBES, "--quiet", "host")
    assert said.count("rule train:") == 18
    assert described(said) == jobs(said)


def test_a_dry_run_finds_a_wrong_shell_command(clone: Path, snakemake: Snakemake) -> None:
    rule = clone / "workflow/rules/collect.smk"
    rule.write_text(rule.read_text().replace("{input.study:q}", "{input.nothing:q}"))
    done = snakemake(clone, "-n")
    assert done.returncode != 0
    assert "nothing" in done.stdout + done.stderr


def test_another_snakemake_takes_longer_and_nothing_else(clone: Path) -> None:
    assert jobs(run(clone, RENAMED))["train"] == 18
