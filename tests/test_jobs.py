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


def test_snakemake_finds_the_parameters_that_python_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(wildcards, attempt):  # type: ignore[no-untyped-def]
        return attempt

    parameters = inspect.signature(asked).parameters
    function = quick(asked)
    monkeypatch.setattr("inspect.signature", None)  # it need not look again
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


def test_a_quiet_dry_run_describes_the_first_job_of_a_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described: list[str] = []
    monkeypatch.setattr(snakemake.jobs.Job, "log_info", lambda job, **_: described.append(job.rule))
    log_info = snakemake.jobs.Job.log_info
    for output in (
        SimpleNamespace(quiet={Quietness.HOST}, log_handler_settings={}),
        SimpleNamespace(quiet=None, log_handler_settings={}),
        SimpleNamespace(quiet={Quietness.RULES}, log_handler_settings={"plugin": None}),
    ):
        plan_quickly(output)
        assert snakemake.jobs.Job.log_info is log_info
    plan_quickly(SimpleNamespace(quiet={Quietness.RULES}, log_handler_settings={}))
    for dryrun in (True, False):
        dag = SimpleNamespace(workflow=SimpleNamespace(dryrun=dryrun))
        for rule in ("train", "train", "collect"):
            snakemake.jobs.Job.log_info(SimpleNamespace(rule=rule, dag=dag), indent=True)
    assert described == ["train", "collect", "train", "train", "collect"]


def test_a_dry_run_finds_a_wrong_shell_command(clone: Path, snakemake: Snakemake) -> None:
    rule = clone / "workflow/rules/collect.smk"
    rule.write_text(rule.read_text().replace("{input.study:q}", "{input.nothing:q}"))
    done = snakemake(clone, "-n")
    assert done.returncode != 0
    assert "nothing" in done.stdout + done.stderr


def test_another_snakemake_takes_longer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(snakemake.common, "overwrite_function_params")
    monkeypatch.delattr(snakemake.resources, "Resource")
    monkeypatch.delattr(snakemake.jobs, "Job")
    plan_quickly(SimpleNamespace(quiet={Quietness.RULES}, log_handler_settings={}))
    assert quick(len) is len
