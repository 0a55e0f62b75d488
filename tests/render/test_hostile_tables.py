"""Table descriptions with any content: a table, or one error that names the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.analysis.frames import collect
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.render.layout import write_table
from attngrid.render.tables import build_table
from attngrid.study.schema import Study
from conftest import ROOT
from made_up import fake_record, spoil

TABLES = [
    yaml.safe_load(file.read_text("utf-8"))
    for file in sorted((ROOT / "workflow/tables").glob("*.yaml"))
]


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with two seeds of each model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference").symlink_to(ROOT / "reference")
    study = validate(Study, tiny, "tiny.yaml")
    for number, cell in enumerate(study.trainings.values()):
        fake_record(cell, 30.0 + number)
    return study


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.sampled_from(TABLES), data=st.data())
def test_a_wrong_description_is_one_error_or_a_table(
    study: Study, content: dict[str, Any], data: st.DataObject
) -> None:
    content = copy.deepcopy(content)
    spoil(content, data)
    file = Path("mine.yaml")
    file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    message = str(file)
    try:
        write_table(build_table(study, collect(study).summary, file))
    except ConfigError as error:
        message = str(error)
    assert str(file) in message
