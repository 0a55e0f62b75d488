"""Uses of a record: testing its network again, loading its weights, and finding stale records."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file

import attngrid
from attngrid.analysis.frames import collect
from attngrid.cli.main import main
from attngrid.core.errors import RecordError
from attngrid.core.user_code import load_user_class
from attngrid.core.validation import validate
from attngrid.records import staleness
from attngrid.records.record import headline, read_record
from attngrid.records.staleness import code_digest
from attngrid.render.tables import build_table
from attngrid.study.schema import Study
from attngrid.training.run import run_cell
from conftest import ROOT, jobs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training: its record and its weights."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = study_of("cbam")
        (cell,) = study.trainings.values()
        run_cell(study, cell, cell.record)
    return folder


def study_fields(attention: str, backbone: str = "resnet18", **recipe: Any) -> dict[str, Any]:
    return {
        "study": "tiny",
        "grid": [
            {
                "dataset": "digits",
                "backbones": [backbone],
                "attentions": [attention],
                "recipes": ["tiny"],
                "seeds": [0],
                "options": {"width": 0.0625, "classes": 2},
            }
        ],
        "recipes": {
            "tiny": {
                "epochs": 1,
                "batch_size": 100,
                "learning_rate": 0.02,
                "schedule": {"kind": "one_cycle"},
                **recipe,
            }
        },
        "compute": {"device": "cpu"},
    }


def study_of(attention: str, **recipe: Any) -> Study:
    """The study, also written to ``study.yaml``."""
    fields = study_fields(attention, **recipe)
    Path("study.yaml").write_text(yaml.safe_dump(fields))
    return validate(Study, fields, "study.yaml")


@pytest.fixture
def inside(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a copy of that folder the current one; return its record."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (record,) = Path("results/tiny/records").glob("*.json")
    return record


def test_evaluate_reproduces_the_errors_of_the_record(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(inside)]) == 0
    recorded = read_record(inside).metrics
    assert f"recorded {recorded.top1_error:.4f} %  now {recorded.top1_error:.4f} %" in (
        capsys.readouterr().out
    )


def test_evaluate_does_not_compile_a_network_of_another_device(inside: Path) -> None:
    content = json.loads(inside.read_text())
    content["run"] |= {"device": "cuda"}
    content["run"]["performance"] |= {"compile": True, "cuda_graphs": True}
    inside.write_text(json.dumps(content))
    with patch("torch.compile", side_effect=AssertionError("compiled")):
        assert main(["evaluate", str(inside), "--device", "cpu"]) == 0


def test_evaluate_fails_if_the_weights_do_not_reproduce_the_errors(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(inside.read_text())
    line = content["metrics"]["curve"][0]
    line["test_top1_error"] += 0.5
    content["metrics"] |= headline([line])
    inside.write_text(json.dumps(content))
    assert main(["evaluate", str(inside)]) == 1
    assert "these weights do not reproduce its errors" in capsys.readouterr().err


def test_evaluate_names_missing_weights(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (weights,) = Path("results/tiny/weights").glob("*.safetensors")
    weights.unlink()
    assert main(["evaluate", str(inside)]) == 1
    assert weights.name in capsys.readouterr().err


def test_create_model_loads_a_records_weights(inside: Path) -> None:
    model = attngrid.create_model(
        "resnet18", "cbam", num_classes=2, stem="cifar", width=0.0625, pretrained=inside
    )
    (weights,) = Path("results/tiny/weights").glob("*.safetensors")
    expected = load_file(weights)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("attention", "width", "message"),
    [
        ("se", 0.0625, "found 'resnet18' with 'cbam', expected 'resnet18' with 'se'"),
        ("cbam", 0.125, "does not fit its network"),
    ],
)
def test_create_model_refuses_the_weights_of_another_network(
    inside: Path, attention: str, width: float, message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        attngrid.create_model(
            "resnet18", attention, num_classes=2, stem="cifar", width=width, pretrained=inside
        )


def test_a_record_names_its_code(inside: Path) -> None:
    run = read_record(inside).run
    assert run["code"] == code_digest()
    assert {"attngrid", "commit"} <= run.keys()


def test_the_code_digest_covers_only_the_sources_that_decide_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "attngrid"
    shutil.copytree(Path(attngrid.__file__).parent, package)
    monkeypatch.setattr(staleness, "__file__", str(package / "records/staleness.py"))

    def changes(file: Path, edit: str = "\nedited: 1\n") -> bool:
        """Whether the edit, which is right in YAML and in Python, changes the digest."""
        before, content = code_digest.__wrapped__(), file.read_text("utf-8")
        file.write_text(content + edit, "utf-8")
        after = code_digest.__wrapped__()
        file.write_text(content, "utf-8")
        return before != after

    for file in staleness.OTHERS:
        assert not changes(package / "training" / file), file
    for name in ("render/tables.py", "cli/main.py", "records/status.py", "study/plan.py"):
        assert not (package / name).exists() or not changes(package / name), name
    wanted = ["study/recipe.py", "study/recipes.yaml", "training/loop.py", "data/transforms.py"]
    modules = (package / "models/attention").glob("*.py")
    for file in (*modules, *(package / name for name in wanted)):
        assert changes(file), file
    for edit in ("\n# a comment\n", '\n\n\n"""Documentation."""\n'):
        assert not changes(package / "training/loop.py", edit)
    added = package / "models/attention/new.py"
    before = code_digest.__wrapped__()
    added.write_text("")
    assert code_digest.__wrapped__() != before


def state(study: Study) -> tuple[str, str]:
    """State and message of the study's only cell."""
    row = collect(study).cells.iloc[0]
    return row["state"], row["message"]


@pytest.mark.slow
def test_a_record_of_another_configuration_is_stale_until_it_is_archived(
    inside: Path,
    snakemake: Callable[..., subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert state(study_of("cbam")) == ("measured", "")
    study = study_of("cbam", learning_rate=0.04)
    found, message = state(study)
    assert found == "stale"
    assert str(inside) in message
    assert message.endswith(
        "`attngrid archive tiny` moves it away, and the next run trains this cell again"
    )

    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "study.yaml"]
    dry = snakemake(Path.cwd(), *snakefile, "-n", "--cores", "1")
    assert dry.returncode == 0
    assert "1 cells are not trained" in dry.stderr
    assert "`attngrid archive study.yaml` moves these records away" in dry.stderr
    assert "train" not in jobs(dry.stdout + dry.stderr)

    before = inside.read_text()
    assert main(["archive", "study.yaml"]) == 0
    assert Path("results/tiny/archive/records", inside.name).read_text() == before
    assert state(study)[0] == "not_run"
    dry = snakemake(Path.cwd(), *snakefile, "-n", "--cores", "1")
    assert jobs(dry.stdout + dry.stderr)["train"] == 1


def set_code(record: Path, code: str | None) -> None:
    """Edit a record's code digest; None makes it an older record without one."""
    content = json.loads(record.read_text())
    content["run"] |= {"code": code, "commit": "0123456789abcdef"}
    if code is None:
        del content["run"]["code"]
        content["run"]["fingerprint"] = {"code": "a", "losses": [1.0], "tolerance": [0.1]}
    record.write_text(json.dumps(content))


def test_a_record_of_other_code_counts_and_is_marked(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of("cbam")
    set_code(inside, "another")
    assert state(study) == ("measured", "other code, commit 01234567")
    assert main(["status", "study.yaml"]) == 0
    output = capsys.readouterr().out
    assert "1 cells: 1 done" in output
    assert "1 records: other code, commit 01234567" in output
    results = collect(study)
    grid = ROOT / "workflow/tables/grid.yaml"
    table = build_table(study, results.summary, grid, cells=results.cells)
    assert table.provenance[-1].endswith(", of other code than this table's")
    # it is archived only with --other-code
    assert main(["archive", "study.yaml"]) == 0
    assert inside.is_file()
    assert main(["archive", "study.yaml", "--other-code"]) == 0
    assert Path("results/tiny/archive/records", inside.name).is_file()
    assert state(study)[0] == "not_run"


def test_a_record_of_this_code_is_never_archived(inside: Path) -> None:
    study_of("cbam")
    assert main(["archive", "study.yaml", "--other-code"]) == 0
    assert inside.is_file()


def test_an_older_record_without_a_digest_stays_valid(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_code(inside, None)
    assert state(study_of("cbam")) == ("measured", "")
    assert main(["status", "study.yaml"]) == 0
    assert "1 records: unknown version, commit 01234567" in capsys.readouterr().out


def test_archiving_a_second_record_keeps_the_first(inside: Path) -> None:
    content = inside.read_text()
    for learning_rate in (0.04, 0.05):
        inside.write_text(content)
        study_of("cbam", learning_rate=learning_rate)
        assert main(["archive", "study.yaml"]) == 0
    assert len(list(Path("results/tiny/archive/records").iterdir())) == 2


USER_MODULE = """
import torch
START = 1.5
class Mine(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((channels, 1, 1), START))
    def forward(self, x):
        return x * self.weight
class Neighbour: pass
"""


@pytest.mark.slow
def test_the_source_of_a_users_module_is_kept_and_an_edit_loses_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Path("modules/mine.py")
    module.parent.mkdir()
    module.write_text(USER_MODULE)
    study = study_of("modules/mine.py:Mine")
    (cell,) = study.cells
    run_cell(study, cell, cell.record)
    folder = f"results/tiny/sources/Mine-{cell.sha256['attention'][:8]}"
    kept = Path(folder, "mine.py")
    assert [file for file in Path("results/tiny/sources").rglob("*") if file.is_file()] == [kept]
    assert kept.read_text() == USER_MODULE
    assert json.loads(cell.record.read_text())["config"]["sha256"] == cell.sha256

    # a comment and a neighbour change nothing, and the source is kept once
    module.write_text(USER_MODULE.replace("Neighbour: pass", "Neighbour: start = 2  # better"))
    study = study_of("modules/mine.py:Mine")
    assert study.cells[0].id == cell.id
    assert study.superseded == {}
    cell.record.unlink()
    run_cell(study, study.cells[0], cell.record)
    assert kept.read_text() == USER_MODULE

    # an edit makes another cell; the old record, its weights and its code still belong together
    module.write_text(USER_MODULE.replace("1.5", "2.5"))
    edited = study_of("modules/mine.py:Mine")
    assert list(edited.superseded.values()) == [cell.record]
    assert main(["evaluate", str(cell.record)]) == 0
    assert attngrid.load_model(cell.record).model is not None
    mine = load_user_class(f"{kept}:Mine", cell.sha256["attention"])
    shape = {"num_classes": 2, "stem": "cifar", "width": 0.0625}
    model = attngrid.create_model("resnet18", mine, **shape, pretrained=cell.record)
    weights = load_file(cell.weights)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    with pytest.raises(RecordError, match=r"found 'resnet18' with 'modules/mine\.py:Mine'"):
        attngrid.create_model("resnet18", torch.nn.Identity, **shape, pretrained=cell.record)
    assert main(["archive", "tiny"]) == 0
    assert kept.is_file()
    capsys.readouterr()
    module.write_text(USER_MODULE)
    archived = Path("results/tiny/archive/records") / cell.record.name
    # the archived network has its weights and its own code beside it
    assert attngrid.load_model(archived).cell.id == cell.id
    assert not cell.weights.exists()
    archived.rename(cell.record)
    Path("study.yaml").write_text(
        Path("study.yaml").read_text() + f"tables: ['{ROOT}/workflow/tables/grid.yaml']\n"
    )
    assert main(["collect", "tiny"]) == 0
    assert main(["explain", "tables/tiny.grid.tex:1"]) == 0
    assert f"attention modules/mine.py:Mine, kept in {kept}" in capsys.readouterr().out
    # an import keeps the source, too
    shutil.rmtree("results/tiny/sources")
    Path("results/tiny/records").rename("incoming")
    assert main(["import", "incoming", "--study", "tiny"]) == 0
    assert kept.read_text() == USER_MODULE
