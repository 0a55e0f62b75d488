"""Ways to install and to deploy: make with pip or uv, the image, the catalogue, GitHub's CI."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from attngrid.core.files import read_yaml
from conftest import ROOT

# A program that records its name, its arguments and, for "-r -", its standard input
FAKE = """#!/bin/sh
echo "${0##*/} $*" >> "$RECORDED"
case "$*" in *"-r -") cat >> "$RECORDED" ;; esac
case "$*" in *"venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""
Install = Callable[..., list[str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Run `make venv` with fake programs; return what these recorded, by line."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs, recorded = tmp_path / "programs", tmp_path / "recorded"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("RECORDED", str(recorded))
    monkeypatch.delenv("MAKEFLAGS", raising=False)

    def run(*arguments: str, fakes: tuple[str, ...]) -> list[str]:
        for name in fakes:
            (programs / name).write_text(FAKE)
            (programs / name).chmod(0o755)
        command = ["make", "venv", "PYTHON=fake", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return recorded.read_text().splitlines()[1:]  # the first asks for Python's version

    return run


LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def test_make_uses_uv_if_it_is_on_the_path(install: Install) -> None:
    venv, pip, *lock, package = install(fakes=("fake", "uv"))
    assert venv.startswith("uv venv ")
    assert venv.endswith("--python fake .venv")
    assert pip == "uv pip install --quiet --python .venv/bin/python -r -"
    assert lock == LOCK
    assert package.endswith("--no-deps --editable .")


def test_make_uses_pip_without_uv(install: Install) -> None:
    venv, *pip = install(fakes=("fake",))
    assert venv == "fake -m venv .venv"
    assert [line.partition(" --quiet ")[2] for line in pip] == [
        "-r requirements.lock",
        "--no-deps --editable .",
    ]


def test_without_cuda_the_same_versions_are_installed(install: Install) -> None:
    """These packages are dependencies of PyPI's torch, and of no other package."""
    _, _, *lock, _ = install("DEVICE=cpu", fakes=("fake", "uv"))
    left_out = {re.split("[-=]", line)[0] for line in set(LOCK) - set(lock)}
    assert left_out == {"cuda", "nvidia", "triton"}
    assert any(line.startswith("torch==") for line in lock)
    page = (ROOT / "docs/installation.md").read_text("utf-8")
    (documented,) = re.findall("grep -Ev '(.*)' requirements", page)
    assert [line for line in LOCK if not re.search(documented, line)] == lock


def test_githubs_ci_runs_the_same_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    *_, last = job["steps"]
    assert last == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_the_catalogue_finds_what_its_standardised_usage_needs() -> None:
    usage = read_yaml(ROOT / ".snakemake-workflow-catalog.yml")["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    for file in ("workflow/Snakefile", "config/README.md", "config/config.yaml"):
        assert (ROOT / file).is_file()
    assert list((ROOT / "workflow/rules").glob("*.smk"))
    readme = (ROOT / "README.md").read_text("utf-8").lower()
    assert "snakemake" in readme
    assert "workflow" in readme


def test_the_image_is_built_by_make_and_documented() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    page = (ROOT / "docs/installation.md").read_text("utf-8")
    for argument in re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE):
        assert argument == "BASE" or f"--build-arg {argument}=" in page, argument
    assert 'make venv PYTHON=python3.11 UV=/opt/uv/bin/uv DEVICE="${DEVICE}"' in dockerfile
    python = re.search(r"^ARG BASE=\S+/python:(\S+?)-", dockerfile, re.MULTILINE)
    assert python is not None
    assert python[1] == "3.11"
