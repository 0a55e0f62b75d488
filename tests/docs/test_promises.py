"""The page of promises names tests that exist."""

from __future__ import annotations

import re

from conftest import ROOT


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs/promises.md").read_text("utf-8")
    sources = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 30
    assert named <= there, sorted(named - there)
