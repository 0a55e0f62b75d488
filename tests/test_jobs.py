"""What is left out for each job of a large grid is missed by nobody."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake.common
import snakemake.jobs
import snakemake.resources
from snakemake.settings.enums import Quietness

from attngrid.jobs import plan_quickly, quick
from conftest import jobs

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def test_snakemake_finds_the_parameters_that_python_finds() -> None:
    def asked(wildcards, attempt):  # type: ignore[no-untyped-def]
        return attempt

    parameters = inspect.signature(asked).parameters
    function = quick(asked)
    assert snakemake.common.get_function_params(function) == parameters
    given = {"attempt": 2, "threads": 1}
    aux = snakemake.common.get_input_function_aux_params(function, given)
    assert function(None, **aux) == 2


def test_a_dry_run_prints_the_jobs_where_it_is_asked_for_them(
    clone: Path, snakemake: Snakemake
) -> None:
    said = {}
    for name, options in {"profile": (), "all": ("--quiet", "host")}.items():
        done = snakemake(clone, "-n", *options)
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout + done.stderr
        assert jobs(said[name])["train"] == 18
    assert "rule train:" not in said["profile"]
    assert said["all"].count("rule train:") == 18


def test_another_snakemake_takes_longer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    log_info = snakemake.jobs.Job.log_info
    output = SimpleNamespace(dryrun=False, quiet={Quietness.RULES}, log_handler_settings={})
    plan_quickly(output)
    assert snakemake.jobs.Job.log_info is log_info  # a run that is not dry logs its jobs
    monkeypatch.delattr(snakemake.common, "overwrite_function_params")
    monkeypatch.delattr(snakemake.resources, "Resource")
    monkeypatch.delattr(snakemake.jobs, "Job")
    output.dryrun = True
    plan_quickly(output)
    assert quick(len) is len
