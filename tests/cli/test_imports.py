"""The imports of each command: torch and matplotlib take seconds, and few commands need them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attngrid.analysis.frames import collect, write_results
from attngrid.core.validation import validate
from attngrid.records.record import read_record
from attngrid.study.schema import Study
from made_up import fake_record

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    *("torch", "torchvision", "fvcore", "captum", "timm"),
    *("torch._dynamo", "sympy"),  # torch's compiler, which takes as long as torch itself
    *("numpy", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "jinja2", "snakemake"),
)
FRAMES = {"numpy", "pandas"}
TEMPLATES = {*FRAMES, "jinja2", "scipy"}  # SciPy decides which figures are bold
REPORT = {*TEMPLATES, "snakemake"}  # whose package contains Vega-Lite
FIGURES = {*FRAMES, "jinja2", "matplotlib", "PIL"}


def imported(*arguments: str) -> set[str]:
    """The heavy packages that a command has imported when it ends."""
    code = (
        "import atexit, sys; from attngrid.cli import main;"
        "atexit.register(lambda: print('\\nimported:', *sys.modules));"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(HEAVY) & set(done.stdout.rpartition("imported:")[2].split())


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with all its records, collected, as `tiny.json` and without maps."""
    monkeypatch.chdir(tmp_path)
    for name in ("Snakefile", "reference", "workflow"):
        Path(name).symlink_to(ROOT / name)
    tiny["figures"] = ["ordering"]
    Path("tiny.json").write_text(json.dumps(tiny))
    study = validate(Study, tiny, "tiny.json")
    for cell in study.cells:
        fake_record(cell, 30.0)
    write_results(study, collect(study))
    return study


@pytest.mark.parametrize("command", ["--help", "train --help", "schema"])
def test_commands_without_a_study_import_no_heavy_package(command: str) -> None:
    assert imported(*command.split()) == set()


@pytest.mark.slow
def test_commands_that_do_not_train_import_no_torch_and_only_figures_matplotlib(
    tiny: dict[str, Any], study: Study
) -> None:
    for command, packages in {
        "prepare tiny.json": set(),
        "archive tiny.json": set(),
        "collect tiny.json": FRAMES,
        "table tiny.json grid": TEMPLATES,
        "figure tiny.json ordering": FIGURES,
        "report tiny.json": REPORT,
        "current tiny.json": REPORT | FIGURES,
    }.items():
        assert imported(*command.split()) == packages, command
    Path("tiny.json").write_text(json.dumps({**tiny, "figures": []}))
    assert imported("current", "tiny.json") == REPORT


@pytest.mark.slow
def test_counting_imports_no_matplotlib(study: Study) -> None:
    found = imported("complexity", "tiny.json", "--output", "complexity.csv")
    assert {"torch", "fvcore"} <= found
    assert not found & {"matplotlib", "pandas", "scipy", "sklearn", "torchvision"}


@pytest.mark.slow
def test_a_training_on_digits_imports_only_torch_and_numpy(study: Study, tmp_path: Path) -> None:
    cell = study.cells[0]
    found = imported("train", "tiny.json", cell.id, "--record", "record.json")
    assert found - {"torch._dynamo", "sympy"} == {"torch", "numpy"}  # torch.optim imports the two
    run = read_record(Path("record.json")).run
    # the loop over epochs takes less than the process
    assert 0 < run["loop_cpu_s"] < run["cpu_s"]
