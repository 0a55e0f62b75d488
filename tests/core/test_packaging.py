"""Versions agree, rendering needs no torch, and no file names this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import attngrid
from attngrid.core.validation import validate
from attngrid.study.schema import Study

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_the_lock_pins_every_dependency_within_its_range() -> None:
    pinned: dict[str, list[str]] = {}
    for requirement in LOCK:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert requirement.url is None
        pinned.setdefault(requirement.name, []).append(specifier.version)
    declared = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        declared += extra
    for text in declared:
        wanted = Requirement(text)
        assert wanted.name in pinned, text
        assert all(wanted.specifier.contains(v) for v in pinned[wanted.name]), text


def test_the_conda_environment_takes_its_versions_from_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *conda, pip = environment["dependencies"]
    assert [re.split("[=<>]", name)[0] for name in conda] == ["python", "cxx-compiler", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    rules = yaml.safe_load((ROOT / "workflow/envs/attngrid.yaml").read_text("utf-8"))
    assert rules["dependencies"] == [*conda, {"pip": ["-r ../../requirements.lock", "-e ../.."]}]
    (python,) = [Requirement(name) for name in conda if name.startswith("python")]
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert attngrid.__version__ == PROJECT["version"] == citation["version"]


def test_the_package_lists_its_names() -> None:
    """Each name is one that a study accepts; timm's and a user's names come on top."""
    assert {"create_model", "list_datasets", "list_recipes", "load_results"} <= set(dir(attngrid))
    grid = {
        "dataset": "cifar100",
        "backbones": attngrid.list_backbones(),
        "attentions": attngrid.list_attentions(),
        "recipes": ["cifar_30ep"],
        "seeds": [0],
    }
    blocks = [grid, grid | {"dataset": "imagenet", "recipes": ["imagenet_100ep"]}]
    study = validate(Study, {"study": "all", "grid": blocks}, "test")
    assert {cell.dataset for cell in study.cells} < set(attngrid.list_datasets())
    assert {cell.recipe_name for cell in study.cells} < set(attngrid.list_recipes())


def tracked_texts() -> dict[str, str]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    texts = {}
    for name in filter(None, names.split("\0")):
        file = ROOT / name
        if file.is_file() and not file.is_symlink():
            texts[name] = file.read_bytes().decode("utf-8", errors="ignore")
    return texts


def test_the_repository_contains_no_path_of_this_machine_and_no_package_index() -> None:
    home = str(Path.home())
    for name, text in tracked_texts().items():
        assert str(ROOT) not in text, name
        assert f"{home}/" not in text, name
        assert not re.search(r"--(extra-)?index-url|files\.pythonhosted", text) or name == str(
            Path(__file__).relative_to(ROOT)
        ), name


def test_help_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attngrid.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("train", "complexity", "collect", "table", "figure", "report", "current"):
        assert command in done.stdout


def installed_by_default() -> dict[str, Distribution]:
    """What `pip install .` installs, with all dependencies, by normalised name."""
    found: dict[str, Distribution] = {}
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name not in found and (not requirement.marker or requirement.marker.evaluate()):
            found[name] = distribution(name)
            wanted += map(Requirement, found[name].requires or ())
    return found


@pytest.mark.slow
def test_rendering_needs_an_environment_of_less_than_250_mb(
    tmp_path: Path, clone: Path, tiny: dict[str, Any]
) -> None:
    """`attngrid current` renders with the packages of the README's `pip install --no-compile .`.

    The bytecode of all packages and their tests would take 90 MB more.
    """
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-compile", "--quiet", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*install, *options, clone], check=True, timeout=600)
    packages = installed_by_default()
    assert "torch" not in packages
    size = 0
    for package in packages.values():
        for file in package.files or ():
            located, top = Path(str(package.locate_file(file))), file.parts[0]
            if file.suffix != ".pyc" and located.is_file():
                size += located.stat().st_size
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    assert size < 250e6
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from attngrid.cli.main import main; "
        "sys.exit(main(['current', 'tiny.yaml']))"
    )
    # without this environment's packages, and without PYTHONPATH
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # the report alone needs one more package
    assert 'no report, whose charts come with Snakemake: pip install "attngrid[workflow]"' in (
        done.stderr
    )
    assert not (clone / "results/tiny/report.html").exists()
    assert (clone / "tables/tiny.cbam_table4.tex").is_file()
    assert (clone / "figures/tiny.modules.pdf").is_file()
