"""Shared by the tests: a copy of the repository to run in, and a tiny study."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# `make test` tries the same few examples each time; `make fuzz` tries new ones.
settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=True, database=None
)
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent

TINY: dict[str, Any] = {
    "study": "tiny",
    "grid": [
        {
            "dataset": "digits",
            "backbones": ["resnet18"],
            "attentions": ["none", "se", "cam"],
            "recipes": ["tiny"],
            "seeds": [0, 1],
            "options": {"width": 0.0625},
        }
    ],
    "recipes": {
        "tiny": {
            "epochs": 1,
            "batch_size": 256,
            "learning_rate": 0.02,
            "schedule": {"kind": "one_cycle"},
            "train_transforms": [{"kind": "random_crop", "padding": 2}],
        }
    },
    "compute": {"device": "cpu"},
    "tables": ["cbam_table4", "csm_table1", "csm_table3", "grid"],
    "figures": ["modules", "ordering", "accuracy_macs", "maps"],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that all processes end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    longest = {"slurm": 2, "workflow": 1}
    items.sort(key=lambda i: (longest.get(i.path.parent.name, 0), slow[i.path]), reverse=True)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process changes the package's log for the next test."""
    logger = logging.getLogger("attngrid")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers = before[1]
    logging.disable(logging.NOTSET)


def environment() -> dict[str, str]:
    """The environment variables, with this Python's programs first in PATH."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def jobs(dry_run: str) -> dict[str, int]:
    """The number of jobs of each rule in a dry run's output."""
    lines = dry_run.partition("Job stats:")[2].partition("total")[0].splitlines()
    return {
        parts[0]: int(parts[1])
        for line in lines
        if len(parts := line.split()) == 2 and parts[1].isdigit()
    }


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A copy of a study that trains in seconds; a test may change it."""
    return copy.deepcopy(TINY)


def make_clone(target: Path) -> Path:
    """Copy all files that git tracks, or would track after `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not os.path.lexists(ROOT / name):
            continue  # deleted, not committed yet
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name, follow_symlinks=False)
    return target


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone."""
    return make_clone(tmp_path / "clone")


@pytest.fixture
def snakemake() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Snakemake in a folder."""

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["snakemake", *arguments],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
