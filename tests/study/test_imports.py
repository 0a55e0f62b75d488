"""Configuration, records and rendering work without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("core", "study", "records", "analysis", "render"):
    package = importlib.import_module(f"attngrid.{name}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    assert "torch" not in sys.modules, name
"""


@pytest.mark.slow
def test_these_packages_import_no_torch() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True)
