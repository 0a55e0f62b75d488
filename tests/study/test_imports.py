"""Configuration, records and rendering work without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import importlib, pkgutil, sys
room = importlib.import_module("attngrid.{room}")
for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
    importlib.import_module(module.name)
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize("room", ["core", "study", "records", "analysis", "render"])
def test_a_room_loads_no_torch(room: str) -> None:
    subprocess.run([sys.executable, "-c", LOADED.format(room=room)], check=True)
