"""The paper: its text has no typed number and no undefined macro, and it compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from attngrid.analysis.audit import audit
from attngrid.analysis.claims import load_claims
from attngrid.analysis.frames import CELL_COLUMNS
from attngrid.analysis.selection import selection
from attngrid.analysis.verdicts import judge_claims
from attngrid.render.verdicts import numbers, write_numbers
from made_up import ROOT

SOURCES = sorted((ROOT / "paper").glob("*.tex"))
# Names with a digit in them. Every other number in the text must be a macro.
NAMES = (
    r"ResNe[Xx]?t-\d+|ImageNet(-1K)?|CIFAR-100?|MobileNetV\d|WRN-\d+|top-[15]|Tables?~\d|Figs?\.~\d"
)


def prose(source: str) -> str:
    """The text between title and bibliography without names, comments and file arguments."""
    text = source.partition(r"\title")[2].partition(r"\begin{thebibliography}")[0]
    text = re.sub(r"(?<!\\)%.*", "", text)
    text = re.sub(
        r"\\(input|includegraphics|label|ref|cite|shown|study)(\[[^]]*\])?\{[^}]*\}", "", text
    )
    text = re.sub(r"(?m)^\{0?\.\d+\}", "", text)  # the width argument of \shown
    return re.sub(NAMES, "", text)


def bare_numbers(source: str) -> list[str]:
    return re.findall(r"[^\s{}]*\d[^\s{}]*", prose(source))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_prose_has_no_typed_number(file: Path) -> None:
    assert bare_numbers(file.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "The error falls by 0.3 points.",
        "It adds 62.93 million parameters to ResNet-50.",
        r"It has $3.46$ times the parameters, 17\,\% more.",
        "On CIFAR-100 we reach 78.",
    ],
)
def test_a_typed_number_is_found(sentence: str) -> None:
    assert bare_numbers(rf"\title{{x}} {sentence} \begin{{thebibliography}}")


def test_every_macro_of_the_prose_is_defined() -> None:
    defined = set(re.findall(r"\\newcommand\{\\(\w+)\}", (ROOT / "tables/numbers.tex").read_text()))
    for file in SOURCES:
        used = set(re.findall(r"\\([A-Z][A-Za-z]+)\b", prose(file.read_text("utf-8"))))
        assert used
        assert used <= defined, used - defined


def test_the_macros_have_the_computed_values(tmp_path: Path) -> None:
    """Without records, counts have values and every accuracy is a dash."""
    claims, found = load_claims()
    cells = pd.DataFrame(columns=CELL_COLUMNS)
    answers = judge_claims(claims, found, cells)
    lines = audit()
    macros = numbers(claims, answers, selection(cells), lines)
    assert macros["PrintedClaimsConfirmed"][0] == "48"
    assert macros["TestedClaimsNotRun"][0] == macros["TestedClaims"][0]
    assert macros["SelectionMeanTopOne"][0] == "--"
    assert macros["AuditStrideMiddle"][0] == "4.089"
    assert all(name.isalpha() for name in macros)
    write_numbers(macros, tmp_path / "numbers.tex")
    assert "\\newcommand{\\SelectionMeanTopOne}{--}%" in (tmp_path / "numbers.tex").read_text()
    committed = (ROOT / "tables/numbers.tex").read_text("utf-8")
    same = [
        line
        for line in (tmp_path / "numbers.tex").read_text("utf-8").splitlines()
        if "Audit" in line
    ]
    assert all(line in committed for line in same)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("latexmk") and shutil.which("pdftotext")),
    reason="no latexmk here: on Debian, apt-get install latexmk texlive-latex-recommended "
    "texlive-science lmodern poppler-utils",
)
def test_the_paper_builds_and_prints_its_numbers(clone: Path) -> None:
    command = ["latexmk", "-pdf", "-cd", "-halt-on-error", "-interaction=nonstopmode"]
    done = subprocess.run(
        [*command, "paper/main.tex"], cwd=clone, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:]
    log = (clone / "paper/main.log").read_text("utf-8", errors="replace")
    assert not re.findall(r"Overfull|undefined|multiply defined", log)
    printed = subprocess.run(
        ["pdftotext", clone / "paper/main.pdf", "-"], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(printed.split())
    assert "62.93 million parameters" in text
    assert "48 of 48" in text
    assert "??" not in text
