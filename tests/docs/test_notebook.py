"""The example notebook, run cell by cell, without Jupyter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT, environment

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def test_a_notebook_is_valid_and_small() -> None:
    assert NOTEBOOKS
    for file in NOTEBOOKS:
        nbformat.validate(nbformat.read(file, as_version=4))
        assert file.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_classifies_the_image_without_a_network(file: Path) -> None:
    cells = nbformat.read(file, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    # the notebook's image is a zero
    code += "\nassert trained.predict(image, k=1)[0][0] == '0', trained.predict(image)"
    nowhere = dict.fromkeys(["http_proxy", "https_proxy", "all_proxy"], "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=file.parent,
        env=environment() | nowhere | {"MPLBACKEND": "agg", "PWD": os.fspath(file.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
