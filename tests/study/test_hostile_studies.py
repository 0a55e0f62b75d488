"""Configurations with any content: a study that can be planned, or one error that names the key."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.study.schema import Study
from conftest import ROOT
from made_up import spoil

STUDIES = [
    yaml.safe_load(file.read_text("utf-8")) for file in sorted((ROOT / "config").glob("*.yaml"))
]
STUDIES = [content for content in STUDIES if "grid" in content]


def require_plannable(study: Study) -> None:
    assert validate(Study, yaml.safe_load(study.resolved()), "study.yaml").digest == study.digest
    files = {file for cell in study.trainings.values() for file in (cell.record, cell.weights)}
    assert len(files) == 2 * len(study.trainings)
    for file in files:
        assert re.fullmatch(r"[\w.+-]+", file.name)
        assert len(file.name.encode()) <= 200  # a file system takes 255, a temporary name has more


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.sampled_from(STUDIES), data=st.data())
def test_a_wrong_study_is_one_error_or_can_be_planned(
    content: dict[str, Any], data: st.DataObject
) -> None:
    content = copy.deepcopy(content)
    spoil(content, data)
    try:
        study = validate(Study, content, "study.yaml")
    except ConfigError as error:
        message = str(error)
    else:
        require_plannable(study)
        return
    assert message.startswith("study.yaml")
