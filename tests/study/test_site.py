"""A site's folders of data and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.study.paths import data_folder, results_folder
from attngrid.study.schema import Study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNGRID_SITE", raising=False)
    return tmp_path


def test_without_site_yaml_the_folders_are_in_the_working_folder(here: Path) -> None:
    assert (data_folder(), results_folder()) == (Path("data"), Path("results"))


def test_site_yaml_sets_the_folders_of_every_study(
    here: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    monkeypatch.setenv("WHERE", "/fast")
    Path("site.yaml").write_text("data: /sets\nresults: $WHERE/results\n")
    study = validate(Study, tiny, "tiny.yaml")
    assert study.data_folder == Path("/sets")
    assert study.cells[0].record.parent == Path("/fast/results/tiny/records")
    assert study.results == Path("/fast/results/tiny")
    named = validate(Study, tiny | {"data": {"folder": "mine"}}, "tiny.yaml")
    assert named.data_folder == Path("mine")


def test_the_environment_names_another_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("site.yaml").write_text("data: /here\n")
    Path("other.yaml").write_text("data: /there\n")
    monkeypatch.setenv("ATTNGRID_SITE", "other.yaml")
    assert data_folder() == Path("/there")
    monkeypatch.setenv("ATTNGRID_SITE", "gone.yaml")
    with pytest.raises(ConfigError, match=r"ATTNGRID_SITE: found 'gone\.yaml'"):
        data_folder()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataa: /sets\n", r"site\.yaml: unknown key 'dataa': did you mean data"),
        ("data: $NOT_SET_ANYWHERE/x\n", r"site\.yaml: data: found '\$NOT_SET_ANYWHERE/x'"),
        ("data: [a]\n", r"site\.yaml: data: "),
    ],
)
def test_a_wrong_site_yaml_is_one_error(here: Path, text: str, message: str) -> None:
    Path("site.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        data_folder()
