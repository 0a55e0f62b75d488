"""Records with invented numbers, and a folder with the project's files, for tests of evidence."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from attngrid.core.validation import validate
from attngrid.records.record import headline, write_record
from attngrid.study.cell import Cell
from attngrid.study.schema import Study

ROOT = Path(__file__).resolve().parent.parent
needs_latex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="no LaTeX here: on Debian, apt-get install texlive-latex-recommended "
    "texlive-science lmodern poppler-utils",
)


def enter_study_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder that has the files of the checkout that tables and claims read."""
    monkeypatch.chdir(folder)
    for name in ("reference", "workflow"):
        Path(name).symlink_to(ROOT / name)
    Path("results").mkdir()
    shutil.copy(ROOT / "results/complexity.csv", "results")


def enter_study(
    configuration: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Study:
    """The same, with a configuration in ``config/tiny.yaml``; return its study."""
    enter_study_folder(folder, monkeypatch)
    Path("config").mkdir()
    Path("config/tiny.yaml").write_text(json.dumps(configuration))
    return validate(Study, configuration, "tiny.yaml")


def cells_with(study: Study, attention: str, backbone: str | None = None) -> list[Cell]:
    """A study's cells with an attention, and with a backbone if one is given."""
    own = [cell for cell in study.cells if cell.attention == attention]
    return [cell for cell in own if backbone in (None, cell.backbone)]


def fake_record(cell: Cell, *errors: float) -> None:
    """Write a record with these top-1 errors, one an epoch; top-5 errors are half as large."""
    curve = [
        {
            "epoch": epoch,
            "learning_rate": 0.1,
            "train_loss": 1.0,
            "train_top1_error": error,
            "test_loss": 1.0,
            "test_top1_error": error,
            "test_top5_error": error / 2,
        }
        for epoch, error in enumerate(errors, 1)
    ]
    metrics = {
        **headline(curve),
        "train_images": 1442,
        "test_images": 355,
        "params": 1000,
        "curve": curve,
    }
    run = {"wall_s": 1.5, "images_per_s": 100.0, "device": "cpu", "device_name": "a processor"}
    write_record(cell.record, cell, metrics, run)


def compile_latex(folder: Path, body: str, options: str = "") -> str:
    """Run pdflatex on an article with this body; return its text. An overfull box is a failure."""
    document = (
        f"\\documentclass[{options}]{{article}}\n\\usepackage[T1]{{fontenc}}\n"
        "\\usepackage{lmodern}\n\\input{glyphtounicode}\\pdfgentounicode=1\n"
        "\\usepackage{booktabs,graphicx,siunitx}\n"
        f"\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    (folder / "page.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120
    )
    errors = "\n".join(re.findall(r"^!.*\n.*\n.*", done.stdout, re.MULTILINE))
    assert done.returncode == 0, errors
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout
    command = ["pdftotext", "-layout", "page.pdf", "-"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


# Any value that a YAML or JSON file can have, and some that broke programs before.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**9, 10**400, -(10**400), 1e-300, 1e300])
    | st.floats()
    | st.text(st.characters(codec=None))  # with halves of characters
)
VALUES = st.recursive(SCALARS, lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside))
REMOVED = object()


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested lists and dictionaries."""
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from leaves(content[key], (*path, key))


def spoil(content: Any, data: st.DataObject) -> None:
    """Replace or remove up to three of the values in nested lists and dictionaries."""
    for path in data.draw(
        st.lists(st.sampled_from([*leaves(content)][1:]), min_size=1, max_size=3)
    ):
        value, inside = data.draw(VALUES | st.just(REMOVED)), content
        with suppress(KeyError, IndexError, TypeError):  # an earlier change removed it
            for key in path[:-1]:
                inside = inside[key]
            if value is REMOVED:
                del inside[path[-1]]
            else:
                inside[path[-1]] = copy.deepcopy(value)
