"""Where a site keeps things, and the copies on a node's own disk."""

from __future__ import annotations

import logging.handlers
import os
from pathlib import Path
from typing import Any

import pytest

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.data import staging
from attngrid.data.registry import DATASETS, Dataset
from attngrid.study.paths import data_folder, results_folder, scratch_folder
from attngrid.study.schema import Study

SET = {"label": "set", "num_classes": 2, "input_size": 8, "stem": "cifar", "target": "x:y"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNGRID_SITE", raising=False)
    return tmp_path


def test_without_a_site_everything_is_in_the_working_folder(here: Path) -> None:
    assert (data_folder(), results_folder(), scratch_folder()) == (
        Path("data"),
        Path("results"),
        None,
    )


def test_a_site_says_where_every_study_keeps_things(
    here: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    monkeypatch.setenv("WHERE", "/fast")
    Path("site.yaml").write_text("data: /sets\nresults: $WHERE/results\nscratch: ${WHERE}/tmp\n")
    study = validate(Study, tiny, "tiny.yaml")
    assert study.data_folder == Path("/sets")
    assert study.cells[0].record.parent == Path("/fast/results/tiny/records")
    assert study.results == Path("/fast/results/tiny")
    assert scratch_folder() == Path("/fast/tmp")
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
        ("dataa: /sets\n", r"site\.yaml: dataa: unknown key"),
        ("data: $NOT_SET_ANYWHERE/x\n", r"site\.yaml: data: found '\$NOT_SET_ANYWHERE/x'"),
        ("data: [a]\n", r"site\.yaml: data: "),
    ],
)
def test_a_wrong_site_is_one_clear_error(here: Path, text: str, message: str) -> None:
    Path("site.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        data_folder()


@pytest.fixture
def dataset(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of a file and a folder of files."""
    known = Dataset(**SET, files=("set/list", "set/images"))  # type: ignore[arg-type]
    monkeypatch.setitem(DATASETS, "set", known)
    images = Path("data/set/images/a")
    images.mkdir(parents=True)
    (images / "1.jpg").write_bytes(b"one")
    Path("data/set/list").write_bytes(b"1")
    return "set"


def stage(name: str) -> tuple[Path, list[str]]:
    """Stage a dataset; the warnings that this logs."""
    warnings = logging.handlers.BufferingHandler(100)
    staging.log.addHandler(warnings)
    try:
        folder = staging.stage(name, Path("data"), Path("scratch"))
    finally:
        staging.log.removeHandler(warnings)
    return folder, [record.getMessage() for record in warnings.buffer]


def test_a_dataset_is_copied_once_with_its_times(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = stage(dataset)
    assert (folder, said) == (Path("scratch/attngrid"), [])
    assert (folder / "set/images/a/1.jpg").read_bytes() == b"one"
    original, copy = Path("data/set/list").stat(), (folder / "set/list").stat()
    assert copy.st_mtime_ns == original.st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_copy", lambda *files: pytest.fail("copied again"))
        assert stage(dataset) == (folder, [])


def test_what_has_changed_is_copied_again(dataset: str) -> None:
    folder, _ = stage(dataset)
    Path("data/set/list").write_bytes(b"12")
    stage(dataset)
    assert (folder / "set/list").read_bytes() == b"12"


def test_half_a_copy_is_made_again(dataset: str) -> None:
    part = Path("scratch/attngrid/set/.images.part/a")
    part.mkdir(parents=True)
    (part / "1.jpg").write_bytes(b"o")
    folder, _ = stage(dataset)
    assert (folder / "set/images/a/1.jpg").read_bytes() == b"one"


def test_without_room_the_original_is_read_and_that_is_said(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 3})
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: full)
    folder, said = stage(dataset)
    assert folder == Path("data")
    assert said == ["set: not copied to scratch/attngrid: 4 bytes, and 3 are free"]
    Path("scratch").rename("away")
    Path("scratch").write_text("no folder")
    folder, (message,) = stage(dataset)
    assert folder == Path("data")
    assert "not copied" in message


def test_a_dataset_without_files_stays_where_it_is(here: Path) -> None:
    assert stage("digits") == (Path("data"), [])
    assert not Path("scratch").exists()


def test_staged_cifar_is_read_where_it_is_staged(here: Path) -> None:
    """Its report goes along, and vouches for the copy."""
    if (archive := os.environ.get("ATTNGRID_CIFAR100")) is None:
        pytest.skip("ATTNGRID_CIFAR100 names no folder with cifar-100-python/")
    Path("data").symlink_to(archive)
    from attngrid.data.loading import load

    load("cifar100", Path("data"), download=False, classes=None)
    folder, said = stage("cifar100")
    assert (folder, said) == (Path("scratch/attngrid"), [])
    train, test = load("cifar100", folder, download=False, classes=None)
    assert (len(train), len(test)) == (50_000, 10_000)
