"""A dry run finds mistakes in the rules, from both entrances of the workflow."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import jobs

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dry_run_finds_a_wrong_shell_command(clone: Path, snakemake: Snakemake) -> None:
    rule = clone / "workflow/rules/collect.smk"
    rule.write_text(rule.read_text().replace("{input.study:q}", "{input.nothing:q}"))
    done = snakemake(clone, "-n")
    assert done.returncode != 0
    assert "nothing" in done.stdout + done.stderr


def test_the_workflow_is_found_in_its_folder_too(clone: Path, snakemake: Snakemake) -> None:
    done = snakemake(clone, "-n", "--snakefile", "workflow/Snakefile")
    assert jobs(done.stdout + done.stderr)["train"] == 18
