"""Records with any content: reading, collecting and importing them ends in a result or one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.analysis.frames import collect, load_results, write_results
from attngrid.analysis.progress import status
from attngrid.core.validation import validate
from attngrid.records.importing import import_folder
from attngrid.study.schema import Study
from made_up import fake_record, spoil


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none", "se"], "seeds": [0]}
    return validate(Study, tiny, "tiny.yaml")


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_record_breaks_its_readers(study: Study, data: st.DataObject) -> None:
    hostile, sound = study.trainings.values()
    for cell in (hostile, sound):
        fake_record(cell, 30.0)
    content = json.loads(hostile.record.read_text())
    content["run"] |= {"started": "2026-11-30T10:00:00+00:00", "resumed": 0, "torch": "2.14"}
    content["run"] |= {"performance": {"compile": True}, "commit": None, "code": None}
    spoil(content, data)
    hostile.record.write_text(json.dumps(content))
    assert list(status(study))
    write_results(study, collect(study))
    cells = load_results(study.study).cells.set_index("id")
    assert cells.loc[sound.id, "state"] == "measured"
    sent = Path("sent")
    sent.mkdir(exist_ok=True)
    hostile.record.rename(sent / hostile.record.name)
    found = import_folder(sent, [study])
    assert len(found.filed) + len(found.refused) == 1
    assert list(status(study))
