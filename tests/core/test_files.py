"""YAML that is not what it looks like is refused, and paths are expanded everywhere alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.core.errors import ConfigError
from attngrid.core.files import expand, home, read_yaml, shipped
from attngrid.core.validation import validate
from attngrid.study.schema import Study, find_study_file
from made_up import ROOT


def written(folder: Path, text: str, name: str = "my.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: [1]\nstudy: x\ngrid: [2]\n", "line 3: grid is there twice, also in line 1; remove"),
        (
            "a:\n- seeds: [0]\n  b: 1\n  seeds: [1]\n",
            "line 4: seeds is there twice, also in line 2",
        ),
        ("compute: {gpus: 1,\n gpus: 2}\n", "line 2: gpus is there twice, also in line 1"),
        ("recipes:\n  no: {}\n", 'line 2: no is no text to YAML; write the key as "no"'),
        ("recipes:\n  3.5: {}\n", 'line 2: 3.5 is no text to YAML; write the key as "3.5"'),
        ("study: 007\n", 'line 1: 007 is 7 to YAML; write 7 or "007"'),
        ("seeds: [0,\n 010]\n", 'line 2: 010 is 8 to YAML; write 8 or "010"'),
        ("time_limit: 12:00:00\n", 'line 1: 12:00:00 is 43200 to YAML; write 43200 or "12:00:00"'),
        ("title: 2026-01-31\n", 'line 1: 2026-01-31 is a date to YAML; write "2026-01-31"'),
    ],
)
def test_yaml_that_reads_otherwise_than_it_looks_is_refused_with_the_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    """YAML 1.2 asks for unique keys and reads 010 as ten; PyYAML reads YAML 1.1."""
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_yaml(file)
    assert str(raised.value).startswith(f"{file}, {message}")


def test_a_key_twice_in_json_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, '{"study": "a", "study": "b"}', "study.json")
    with pytest.raises(ConfigError, match=r"study\.json: study is there twice"):
        read_yaml(file)


def test_other_yaml_is_read_as_by_pyyaml(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 0x10}\nb: {<<: *a, x: 2}\nc: [yes, 0, -1, 0.10, 1e-4, ~, '010', \"no\"]"
    assert read_yaml(written(tmp_path, text)) == yaml.safe_load(text)
    for file in (ROOT / "config").glob("*.yaml"):
        assert read_yaml(file) == yaml.safe_load(file.read_text("utf-8"))


@pytest.mark.parametrize(("key", "found"), [("study", 30), ("title", False), ("title", 1.5)])
def test_a_value_that_yaml_reads_as_no_text_names_the_quotes(
    tiny: dict[str, Any], key: str, found: object
) -> None:
    with pytest.raises(ConfigError, match=f"{key}: found {found}; needs text, in quotes"):
        validate(Study, tiny | {key: found}, "my.yaml")


def test_a_name_of_a_study_does_not_hide_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results folder may have an older configuration of the study."""
    monkeypatch.chdir(tmp_path)
    for folder in ("config", "results/mine"):
        Path(folder).mkdir(parents=True)
    Path("results/mine/study.json").write_text("{}")
    written(Path("config"), "study: other\n", "other.yaml")
    assert find_study_file("mine") == Path("results/mine/study.json")
    written(Path("config"), "study: mine\ngrid: [1\n", "mine.yaml")
    with pytest.raises(
        ConfigError, match=r"'mine': may be in .*: config/mine\.yaml, line 3: not valid"
    ):
        find_study_file("mine")
    assert find_study_file("other") == Path("config/other.yaml")


# Paths


def test_home_and_variables_are_expanded_in_every_path_of_a_study(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "~/sets")
    for split in ("train/a", "train/b"):
        (tmp_path / "sets/birds" / split).mkdir(parents=True)
    (tmp_path / "mine.py").write_text("class A:\n    def __init__(self, channels): pass\n")
    names = []
    for written_home in ("~", "$HOME", str(tmp_path)):
        tiny["grid"][0]["attentions"] = [f"{written_home}/mine.py:A"]
        own = [f"{written_home}/mine.yaml"]
        tiny |= {"data": {"folder": f"{written_home}/sets"}, "tables": own}
        study = validate(Study, tiny, "my.yaml")
        assert study.data_folder == tmp_path / "sets"
        assert study.user_files == [tmp_path / "mine.py"]
        assert study.descriptions == {"mine": tmp_path / "mine.yaml"}
        names.append(study.cells[0].id)
    assert len(set(names)) == 1
    monkeypatch.setenv("ATTNGRID_SITE", "~/site.yaml")
    (tmp_path / "site.yaml").write_text("data: $SETS\n")
    assert validate(Study, tiny | {"data": {}}, "my.yaml").data_folder == tmp_path / "sets"


@pytest.mark.parametrize("path", ["$NOT_SET/birds", "~/${NOT_SET}"])
def test_a_variable_that_is_not_set_is_named(tiny: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: found '.*NOT_SET.*', but a variable in it"):
        expand(path, "here: ")
    for change in (
        {"tables": [f"{path}/mine.yaml"]},
        {"grid": [tiny["grid"][0] | {"dataset": f"imagefolder:{path}"}]},
        {"grid": [tiny["grid"][0] | {"attentions": [f"{path}/mine.py:A"]}]},
    ):
        with pytest.raises(ConfigError, match="NOT_SET"):
            validate(Study, tiny | change, "my.yaml")
    with pytest.raises(ConfigError, match=r"^data\.folder: found"):
        _ = validate(Study, tiny | {"data": {"folder": path}}, "my.yaml").data_folder


def test_a_users_own_workflow_folder_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake's standard layout has workflow/rules, too."""
    (tmp_path / "workflow/rules").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (home() / "workflow/rules/train.smk").is_file()
    assert shipped("reference/claims.yaml").is_file()
