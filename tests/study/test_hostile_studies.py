"""Configurations with any content: a study that can be planned, or one error that names the key."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.study.schema import Study
from attngrid.training.batches import make_batches
from attngrid.training.loop import make_deterministic
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


def put(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a configuration with another value at ``grid.0.options.width``."""
    content = copy.deepcopy(content)
    inside: Any = content
    *parents, last = path.split(".")
    for key in parents:
        inside = inside[int(key)] if isinstance(inside, list) else inside.setdefault(key, {})
    inside[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipes.tiny.epochs", 2**63),
        ("recipes.tiny.batch_size", 10**9),
        ("recipes.tiny.learning_rate", 1e300),
        ("recipes.tiny.train_transforms", [{"kind": "random_crop", "padding": 10**40}]),
        ("grid.0.options.width", 1e-9),
        ("grid.0.options.width", 1e300),
        ("grid.0.options.statistics", ["mode"]),
        ("grid.0.options.input_size", 10**9),
        ("grid.0.seeds", [2**40]),
        ("compute.threads", 100_000),
        ("compute.workers", 100_000),
        ("compute.gpus", 10**6),
        ("recipes.tiny.epochs", 10**400),
    ],
)
def test_a_number_that_no_study_has_is_refused(tiny: dict[str, Any], path: str, value: Any) -> None:
    tiny["grid"][0]["attentions"] = ["maf"]
    with pytest.raises(ConfigError, match=r"study\.yaml: .*found .*needs") as raised:
        validate(Study, put(tiny, path, value), "study.yaml")
    assert len(str(raised.value)) < 400


def test_more_threads_than_openmp_gives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP waits for the missing ones for ever."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    with pytest.raises(ConfigError, match="threads: found 3; OMP_THREAD_LIMIT is 2"):
        make_deterministic(0, 3, strict=True)


def test_a_batch_of_more_images_than_there_are_is_refused(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["recipes"]["tiny"]["batch_size"] = 1500
    cell = next(iter(validate(Study, tiny, "study.yaml").trainings.values()))
    with pytest.raises(ConfigError, match="batch_size: found 1500; it trains 1442 images"):
        make_batches(cell, tmp_path, torch.device("cpu"))
