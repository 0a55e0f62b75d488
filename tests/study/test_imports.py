"""Configuration, records and rendering work without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import importlib, pkgutil, sys
for name in ("core", "study", "records", "analysis", "render"):
    room = importlib.import_module(f"attngrid.{name}")
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
    assert "torch" not in sys.modules, name
"""


@pytest.mark.slow
def test_these_rooms_load_no_torch() -> None:
    subprocess.run([sys.executable, "-c", LOADED], check=True)
