"""The examples in docstrings, and short texts for what a notebook shows."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest

import attngrid
from attngrid.measure.maps_file import CellMaps, Maps
from attngrid.records.record import read_cell
from conftest import ROOT

SOURCES = ROOT / "src"
WITH_EXAMPLES = [
    ".".join(file.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted(SOURCES.rglob("*.py"))
    if ">>> " in file.read_text("utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_print_what_their_docstrings_say(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_every_public_function_has_an_example() -> None:
    without = [name for name in attngrid.__all__ if ">>> " not in getattr(attngrid, name).__doc__]
    assert without == []
    assert sorted(dir(attngrid)) == sorted(["__version__", *attngrid.__all__])


def test_what_a_notebook_prints_of_a_result_is_short() -> None:
    file = next((ROOT / "results/cifar20/records").glob("*-se-*.json"))
    cell, record = read_cell(file)
    cell_maps = CellMaps([0], [0], np.zeros((1, 16, 16), np.float32))
    maps = Maps({"digits": np.zeros((9, 16, 16, 3), np.uint8)}, {cell.id: cell_maps})
    results = attngrid.load_results("cifar20", ROOT)
    for shown in (cell, record, cell_maps, maps, results):
        assert len(repr(shown)) < 300
    assert repr(maps) == "Maps(1 cells, images of digits)"
    assert "top1_error=" in repr(record)
