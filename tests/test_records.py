"""What a record is good for later: its network again, its figures again, and when it is stale."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
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
from attngrid.core.validation import validate
from attngrid.models.attention import sam, statistics
from attngrid.records import staleness as stale
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.fingerprint import agrees, fingerprint, losses_of
from attngrid.training.run import run_cell
from conftest import ROOT, jobs

Edit = Callable[[str], str]


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


def fields_of(attention: str, backbone: str = "resnet18", **recipe: Any) -> dict[str, Any]:
    return {
        "study": "tiny",
        "grid": [
            {
                "dataset": "digits",
                "backbones": [backbone],
                "attentions": [attention],
                "recipes": ["tiny"],
                "seeds": [0],
                "options": {"width": 0.0625},
            }
        ],
        "recipes": {
            "tiny": {
                "epochs": 2,
                "batch_size": 256,
                "learning_rate": 0.02,
                "schedule": {"kind": "one_cycle"},
                **recipe,
            }
        },
        "compute": {"device": "cpu"},
    }


def study_of(attention: str, **recipe: Any) -> Study:
    """As it lies in the folder."""
    fields = fields_of(attention, **recipe)
    Path("study.yaml").write_text(yaml.safe_dump(fields))
    return validate(Study, fields, "study.yaml")


def cell_of(attention: str, backbone: str = "resnet18") -> Cell:
    fields = fields_of(attention, backbone=backbone)
    (cell,) = validate(Study, fields, "study.yaml").trainings.values()
    return cell


@pytest.fixture
def inside(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to be in; its record."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (record,) = Path("results/tiny/records").glob("*.json")
    return record


def test_evaluate_makes_the_records_errors_again(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(inside)]) == 0
    recorded = read_record(inside).metrics
    assert f"recorded {recorded.top1_error:.4f} %  now {recorded.top1_error:.4f} %" in (
        capsys.readouterr().out
    )


def test_evaluate_compiles_nothing_that_was_compiled_on_another_device(inside: Path) -> None:
    """Whose compiler this machine need not have, nor its graphs."""
    content = json.loads(inside.read_text())
    content["run"] |= {"device": "cuda"}
    content["run"]["performance"] |= {"compile": True, "cuda_graphs": True}
    inside.write_text(json.dumps(content))
    with patch("torch.compile", side_effect=AssertionError("compiled")):
        assert main(["evaluate", str(inside), "--device", "cpu"]) == 0


def test_evaluate_ends_non_zero_where_the_weights_do_not_make_the_errors(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(inside.read_text())
    for block in (content["metrics"], content["metrics"]["curve"][-1]):
        for name in ("top5_error", "best_top5_error", "test_top5_error"):
            if name in block:
                block[name] += 0.5
    inside.write_text(json.dumps(content))
    assert main(["evaluate", str(inside)]) == 1
    assert "these weights do not make its errors" in capsys.readouterr().err


def test_evaluate_names_the_weights_that_are_not_there(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights,) = Path("results/tiny/weights").glob("*.safetensors")
    weights.unlink()
    assert main(["evaluate", str(inside)]) == 1
    assert weights.name in capsys.readouterr().err


def test_create_model_loads_a_records_weights(inside: Path) -> None:
    model = attngrid.create_model(
        "resnet18", "cbam", num_classes=10, stem="cifar", width=0.0625, pretrained=inside
    )
    (weights,) = Path("results/tiny/weights").glob("*.safetensors")
    expected = load_file(weights)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("attention", "width", "message"),
    [
        ("se", 0.0625, "is of 'resnet18' with 'cbam', expected 'resnet18' with 'se'"),
        ("cbam", 0.125, "does not fit its network"),
    ],
)
def test_create_model_refuses_the_weights_of_another_network(
    inside: Path, attention: str, width: float, message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        attngrid.create_model(
            "resnet18", attention, num_classes=10, stem="cifar", width=width, pretrained=inside
        )


def test_a_record_carries_its_fingerprint(inside: Path) -> None:
    recorded = read_record(inside).run["fingerprint"]
    assert recorded["losses"] == fingerprint(cell_of("cbam"))["losses"]


def test_a_fingerprint_changes_no_draw_of_the_training(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    losses_of(cell_of("none"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("attention", ["none", "se", "cbam", "csm", "sam", "maf_c", "srap", "bam"])
def test_a_refactoring_keeps_the_fingerprint(
    attention: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same network in another memory layout and on two threads: other roundings only."""
    monkeypatch.chdir(tmp_path)
    cell = cell_of(attention)
    recorded = fingerprint(cell)
    create = attngrid.model.create_model
    monkeypatch.setattr(
        "attngrid.models.create.create_model",
        lambda **arguments: create(**arguments).to(memory_format=torch.channels_last),
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert agrees(recorded, losses_of(cell))


def population_deviation(patch: pytest.MonkeyPatch) -> None:
    """A standard deviation without Bessel's correction."""
    squeezed = statistics._squeezed

    def population(x: torch.Tensor, wanted: Sequence[statistics.Key]) -> Any:
        x, found = squeezed(x, wanted)
        counts = [math.prod(x.shape[dimension] for dimension in over) for _, over in wanted]
        factors = [
            math.sqrt(1 - 1 / n) if k == "std" else 1
            for (k, _), n in zip(wanted, counts, strict=True)
        ]
        return x, [factor * value for factor, value in zip(factors, found, strict=True)]

    patch.setattr(statistics, "_squeezed", population)


def scaled_product(patch: pytest.MonkeyPatch) -> None:
    """The 1/√d that CSM's attention does not have."""
    attend = sam.attend
    patch.setattr(sam, "attend", lambda q, k, v: attend(q / q.shape[-1] ** 0.5, k, v))


def other_sigmoid(patch: pytest.MonkeyPatch) -> None:
    """A piecewise linear gate."""
    patch.setattr(torch.Tensor, "sigmoid", torch.nn.functional.hardsigmoid)
    patch.setattr(torch, "sigmoid", torch.nn.functional.hardsigmoid)


def larger_classifier(patch: pytest.MonkeyPatch) -> None:
    """Another start of the classifier."""
    normal = torch.nn.init.kaiming_normal_
    patch.setattr(
        torch.nn.init,
        "kaiming_normal_",
        lambda w, **options: normal(w, **options) if w.ndim == 4 else normal(w, mode="fan_out"),
    )


@pytest.mark.parametrize(
    ("attention", "correct"),
    [
        ("maf", population_deviation),
        ("maf_c", population_deviation),
        ("srap", population_deviation),
        ("csm", scaled_product),
        ("sam", scaled_product),
        ("se", other_sigmoid),
        ("cbam", other_sigmoid),
        ("none", larger_classifier),
    ],
)
def test_a_corrected_module_changes_the_fingerprint(
    attention: str,
    correct: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = fingerprint(cell_of(attention))
    with monkeypatch.context() as patch:
        correct(patch)
        assert not agrees(recorded, losses_of(cell_of(attention)))
    assert agrees(recorded, losses_of(cell_of(attention)))


def state(study: Study) -> tuple[str, str]:
    """Of the study's one cell."""
    row = collect(study).cells.iloc[0]
    return row["state"], row["message"]


def test_a_record_of_another_configuration_is_stale_until_it_is_retired(
    inside: Path,
    snakemake: Callable[..., subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert state(study_of("cbam")) == ("measured", "")
    study = study_of("cbam", learning_rate=0.04)
    found, message = state(study)
    assert found == "stale"
    assert str(inside) in message
    assert "attngrid retire" in message

    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "study.yaml"]
    dry = snakemake(Path.cwd(), *snakefile, "-n", "--cores", "1")
    assert dry.returncode == 0
    assert "not trained" in dry.stderr
    assert "train" not in jobs(dry.stdout + dry.stderr)

    before = inside.read_text()
    assert main(["archive", "study.yaml"]) == 0
    assert Path("results/tiny/retired/records", inside.name).read_text() == before
    assert state(study)[0] == "not_run"
    dry = snakemake(Path.cwd(), *snakefile, "-n", "--cores", "1")
    assert jobs(dry.stdout + dry.stderr)["train"] == 1


def test_a_record_of_other_code_is_stale_where_the_code_computes_something_else(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(inside.read_text())
    print_of = content["run"]["fingerprint"]
    print_of["code"] = "another"
    inside.write_text(json.dumps(content))
    assert state(study_of("cbam")) == ("measured", "")

    # computed once for this code, then read
    with monkeypatch.context() as patch:
        patch.setattr(stale, "losses_of", lambda cell: pytest.fail("computed again"))
        assert state(study_of("cbam")) == ("measured", "")

    print_of["losses"][0] *= 1.01
    inside.write_text(json.dumps(content))
    found, message = state(study_of("cbam"))
    assert found == "stale"
    assert "does not compute what it did" in message
    assert main(["archive", "study.yaml"]) == 0
    assert not inside.exists()


def test_a_second_retired_record_overwrites_no_first(inside: Path) -> None:
    content = inside.read_text()
    for learning_rate in (0.04, 0.05):
        inside.write_text(content)
        study_of("cbam", learning_rate=learning_rate)
        assert main(["archive", "study.yaml"]) == 0
    assert len(list(Path("results/tiny/retired/records").iterdir())) == 2


def test_a_record_without_a_fingerprint_stays_what_it_is(inside: Path) -> None:
    content = json.loads(inside.read_text())
    del content["run"]["fingerprint"]
    inside.write_text(json.dumps(content))
    assert state(study_of("cbam")) == ("measured", "")
