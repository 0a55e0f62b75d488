"""Each wrong input is one error with file, key, found value and accepted values."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import attngrid
from attngrid.core.errors import ConfigError
from attngrid.core.files import read_yaml
from attngrid.core.validation import validate
from attngrid.render.description import Description, check_descriptions
from attngrid.study.cell import Cell
from attngrid.study.options import Options
from attngrid.study.recipe import Recipe, Schedule, shipped_recipes
from attngrid.study.schema import Study, json_schema, load_study

ROOT = Path(__file__).resolve().parents[2]


def change(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    section: Any = content
    *parents, last = path.split(".")
    for key in parents:
        section = section[int(key)] if key.isdigit() else section[key]
    section[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("sutdy", "x", ["unknown key 'sutdy': did you mean study?", "grid"]),
        ("grid.0.seed", [1], ["grid.0: unknown key 'seed': did you mean seeds"]),
        ("grid.0.backbones", ["resnet19"], ["grid.0.backbones", "'resnet19'", "resnet18"]),
        ("grid.0.attentions", ["cbma"], ["grid.0.attentions", "'cbma'", "did you mean cbam"]),
        ("grid.0.recipes", ["tinny"], ["grid.0.recipes", "'tinny'", "tiny", "cifar_200ep"]),
        ("grid.0.seeds", [-1], ["grid.0.seeds.0", "found -1", "greater than or equal to 0"]),
        ("grid.0.seeds", [0.5], ["grid.0.seeds.0", "found 0.5", "integer"]),
        ("grid.0.seeds", [], ["grid.0.seeds", "at least 1 item"]),
        ("grid.0.dataset", "cifar10O", ["grid.0.dataset", "'cifar10O'", "cifar100"]),
        ("grid.0.options", {"width": "wide"}, ["grid.0.options.width", "'wide'", "number"]),
        (
            "grid.0.options",
            {"width": 0},
            ["grid.0.options.width", "found 0", "equal to 0.001"],
        ),
        ("grid.0.options", {"reduction": 0}, ["grid.0.options.reduction", "found 0"]),
        ("grid.0.options", {"depth": 2}, ["grid.0.options: unknown key 'depth'", "width"]),
        ("compute.device", "tpu", ["compute.device", "'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ("compute.precision", "float16", ["compute.precision", "'float16'", "'bfloat16'"]),
        ("recipes.tiny.epochs", "ten", ["recipes.tiny.epochs", "'ten'", "integer"]),
        ("recipes.tiny.lr", 0.1, ["recipes.tiny: unknown key 'lr'", "learning_rate"]),
        ("recipes.tiny.schedule.kind", "cos", ["recipes.tiny.schedule.kind", "'one_cycle'"]),
        (
            "recipes.tiny.train_transforms",
            [{"kind": "random_crop", "padding": 2, "pading": 2}],
            ["train_transforms.0", "pading", "unknown key", "padding"],
        ),
        (
            "recipes.tiny.train_transforms",
            [{"kind": "random_resized_crop", "size": 16}],
            ["grid.0.recipes", "random_resized_crop", "digits", "flip, random_crop"],
        ),
        (
            "recipes.tiny.train_transforms",
            [{"kind": "flip"}, {"kind": "flip"}],
            ["grid.0.recipes", "flip", "each once"],
        ),
        (
            "recipes.tiny.test_transforms",
            [{"kind": "flip"}],
            ["flip", "test images of digits can have resize, crop_to"],
        ),
        ("recipes.tiny.learning_rate", float("inf"), ["recipes.tiny.learning_rate", "inf"]),
        ("recipes.tiny.nesterov", "yes", ["recipes.tiny.nesterov", "'yes'", "true or false"]),
        ("grid.0.options", {"width": True}, ["grid.0.options.width", "True", "number"]),
        ("grid.0.options", {"width": "0.5"}, ["grid.0.options.width", "'0.5'", "number"]),
        ("grid.0.options", {"classes": 10}, ["options.classes", "found 10", "digits has 10"]),
        (
            "grid.0.options",
            {"input_size": 10},
            ["options.input_size: found 10; images of digits", "from 16×16, so it must divide 16"],
        ),
        ("grid.0.attentions", "se", ["grid.0.attentions", "'se'", "needs a list, such as [se]"]),
        ("tables", ["grid", "mine/grid.yaml"], ["tables", "a file name of its own"]),
        ("recipes.tiny.schedule", {}, ["recipes.tiny.schedule.kind", "is required"]),
        ("study", "../up", ["study", "'../up'", "needs lowercase letters, digits, _ and -"]),
        ("figures", ["modles"], ["figures.0", "'modles'", "'modules'"]),
        ("keep", {"weights": "best"}, ["keep.weights", "'best'", "'none' or 'last'"]),
        (
            "compute.performance",
            {"compile": "yess"},
            ["compute.performance.compile: found 'yess'; needs to be true or false or 'auto' or "],
        ),
        (
            "recipes.tiny.train_transforms",
            [{"kind": "cutout"}],
            ["recipes.tiny.train_transforms.0.kind: found 'cutout'; needs one of 'random_crop', "],
        ),
        (
            "recipes.tiny.train_transforms",
            [{"padding": 4}],
            ["recipes.tiny.train_transforms.0.kind: is required and not there"],
        ),
        (
            "recipes.tiny.train_transforms",
            [{"kind": "random_crop", "padding": "4"}],
            ["recipes.tiny.train_transforms.0.padding: found '4'; needs to be a valid integer"],
        ),
        ("grid.0.attentions", ["gone.py:A"], ["grid.0.attentions.0: attention 'gone.py:A': there"]),
        ("grid.0.dataset", "imagefolder:nowhere", ["grid.0.dataset: dataset 'imagefolder:now"]),
    ],
)
def test_the_error_names_the_mistake(
    tiny: dict[str, Any], path: str, value: Any, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Study, change(tiny, path, value), "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    for words in expected:
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("attention", "rates", "count"),
    [("srap", [0.5, 0.4], 2), ("srap", [0.2, 0.3, 0.5], 2), ("srap_avg_max_std", [0.5, 0.5], 3)],
)
def test_rates_are_checked_before_any_job(
    tiny: dict[str, Any], attention: str, rates: list[float], count: int
) -> None:
    tiny["grid"][0] |= {"attentions": ["none", attention], "options": {"rates": rates}}
    with pytest.raises(ConfigError) as caught:
        validate(Study, tiny, "my.yaml")
    expected = f"my.yaml: grid.0: options.rates: found {rates}; {attention} needs {count} that"
    assert str(caught.value).startswith(expected)
    tiny["grid"][0]["options"]["rates"] = [1 / count] * count
    assert validate(Study, tiny, "my.yaml").cells


def test_rates_are_checked_for_a_control_and_not_for_a_users_module(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control has the statistics of its module; a user's module may have any number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class A:\n    def __init__(self, channels, rates): pass\n")
    names = ["srap_avg_max_std", "none_wide:srap_avg_max_std", "mine.py:A"]
    tiny["grid"][0] |= {"attentions": names, "options": {"rates": [0.2, 0.3, 0.5]}}
    assert validate(Study, tiny, "my.yaml").cells
    tiny["grid"][0] |= {"attentions": names[1:], "options": {"rates": [0.5, 0.5]}}
    with pytest.raises(ConfigError, match="none_wide:srap_avg_max_std needs 3 that sum to 1"):
        validate(Study, tiny, "my.yaml")


def test_mistakes_in_neighbouring_keys_have_separate_lines(tiny: dict[str, Any]) -> None:
    tiny["recipes"] |= {"a": 3, "b": 3, 2024: tiny["recipes"]["tiny"]}
    with pytest.raises(ConfigError) as caught:
        validate(Study, tiny, "my.yaml")
    assert str(caught.value).splitlines()[:2] == [
        "my.yaml: recipes.a: found 3; needs keys and values",
        "my.yaml: recipes.b: found 3; needs keys and values",
    ]
    assert "recipes.2024: found 2024; needs text, in quotes" in str(caught.value)


def test_two_mistakes_give_two_lines(tiny: dict[str, Any]) -> None:
    tiny["grid"][0]["backbones"] = ["resnet1"]
    tiny["compute"]["threads"] = 0
    with pytest.raises(ConfigError) as caught:
        validate(Study, tiny, "my.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_invalid_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("study: x\ngrid: [1, 2\ntables: }\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml, line 3: not valid YAML"):
        load_study(file)
    with pytest.raises(ConfigError, match="No such file"):
        load_study(tmp_path / "missing.yaml")
    file.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_study(file)


def test_wrong_table_descriptions_are_named_in_the_error(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = validate(Study, {**tiny, "tables": ["csm_tabel1"]}, "my.yaml")
    expected = r"my\.yaml: tables: found 'csm_tabel1', but there is no file .*csm_table1"
    with pytest.raises(ConfigError, match=expected):
        check_descriptions(study, "my.yaml")
    mine = tmp_path / "mine.yaml"
    study = validate(Study, {**tiny, "tables": [str(mine)]}, "my.yaml")
    good = {"caption": "x", "columns": [{"title": "A", "measured": "top1_error"}]}
    printed = good | {"columns": [{"title": "A", "published": "accuracy"}]}
    for content, message in {
        r"published: found 'nope\.csv', .*cbam_table4\.csv": good | {"published": "nope.csv"},
        r"columns\.0\.published: needs a column 'accuracy'; .*top1_error": printed
        | {"published": "csm_table1.csv"},
        "published: is missing, and a column names": printed,
        "attentions.*unknown attention 'cssm': did you mean": good | {"attentions": ["cssm"]},
        "columns: is required": {"caption": "x"},
        "columns.0.counted: 'torch_macs' needs counted_at": good
        | {"columns": [{"title": "A", "counted": "torch_macs"}]},
        "models.0.backbones.*unknown backbone 'resnet19': did you mean": good
        | {"models": [{"backbones": ["resnet19"], "attentions": ["none"]}]},
    }.items():
        mine.write_text(yaml.safe_dump(message))
        with pytest.raises(ConfigError, match=content):
            check_descriptions(study, "my.yaml")


def test_a_recipe_cannot_have_the_name_of_a_shipped_recipe(tiny: dict[str, Any]) -> None:
    tiny["recipes"]["cifar_200ep"] = tiny["recipes"]["tiny"]
    with pytest.raises(ConfigError, match=r"recipes\.cifar_200ep: is a shipped recipe's name"):
        validate(Study, tiny, "my.yaml")


def test_a_users_file_is_checked_without_running_it(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit\nimport torch\nclass A: pass\n")
    (tmp_path / "other.py").write_text("class A: pass\n")
    (tmp_path / "bad.py").write_text("class A:\n  def\n")
    for attentions, message in {
        ("mine.py:B",): "has no class 'B'; it has A",
        ("mine.py:torch",): "has no class 'torch'; it has A",
        ("bad.py:A",): r"bad\.py, line 2: invalid syntax",
        ("gone.py:A",): r"there is no file gone\.py",
        ("mine.py:A", "other.py:A"): "would both be 'A' in the tables; rename a class",
    }.items():
        tiny["grid"][0]["attentions"] = list(attentions)
        with pytest.raises(ConfigError, match=message):
            validate(Study, tiny, "my.yaml")
    tiny["grid"][0]["attentions"] = ["mine.py:A"]
    assert validate(Study, tiny, "my.yaml").cells[0].label == "ResNet-18 + A, seed 0"


USERS_DEFAULTS = """
class Base:
    def __init__(self, channels, *, reduction=32): self.reduction = reduction
class A(Base): pass
class B: pass
class Usual:
    def __init__(self, channels, reduction=16): pass
class Named:
    def __init__(self, channels, reduction=2 * 8): pass
"""


def test_a_users_module_has_its_own_reduction_unless_the_study_sets_one(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USERS_DEFAULTS)
    tiny["grid"][0] |= {"attentions": ["se", "mine.py:A"], "seeds": [0]}
    for options, expected, shown in (({}, {}, ""), ({"reduction": 16}, {"reduction": 16}, "16")):
        tiny["grid"][0]["options"] = options
        se, mine = validate(Study, tiny, "my.yaml").cells[:2]
        # what a study trains, what it counts, and what it shows
        assert {k: v for k, v in mine.model_arguments().items() if k == "reduction"} == expected
        assert mine.model_key[-1] == (f"reduction={shown}" if shown else "")
        assert (
            f"reduction {shown}" in mine.condition if shown else "reduction" not in mine.condition
        )
        assert se.condition == mine.condition
        assert se.digest == cell_of(se).digest
    assert "reduction" not in cell(attention="mine.py:B").model_arguments()


def test_a_users_backbone_gets_an_option_that_differs_from_its_own_default(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``residual: true`` is the default of MobileNetV1, and not of this class."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("class Net:\n    def __init__(self, sites, residual=False): pass\n")
    tiny["grid"][0] |= {"backbones": ["mobilenet_v1", "net.py:Net"], "attentions": ["none"]}
    tiny["grid"][0]["options"] = {"residual": True}
    found = {
        one.backbone: one.model_options.get("residual")
        for one in validate(Study, tiny, "my.yaml").cells
    }
    assert found == {"mobilenet_v1": None, "net.py:Net": True}


def cell_of(one: Cell) -> Cell:
    """The same cell without options."""
    return replace(one, options=Options())


def test_a_digest_omits_an_option_at_a_users_own_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("class A:\n    def __init__(self, channels, reduction=32): pass\n")
    plain, same, other = (
        cell(attention="mine.py:A", options=Options(reduction=r)) for r in (None, 32, 16)
    )
    assert plain.digest == same.digest != other.digest


def test_digests_keep_their_meaning_when_a_default_changes() -> None:
    """Earlier versions trained MobileNetV3 without the first expansion, and JPEGs shrunk. Their
    digests were computed with such a version.
    """
    v3 = {"backbone": "mobilenet_v3_large"}
    small = {"backbone": "mobilenet_v3_small", "attention": "cbam"}
    imagenet = shipped_recipes()["imagenet_100ep"]
    crop, flip = imagenet.train_transforms
    shrunk = (crop.model_copy(update={"shrink_on_load": True}), flip)
    earlier = imagenet.model_copy(update={"initialisation": "family", "train_transforms": shrunk})
    plain = imagenet.model_copy(update={"initialisation": "family"})
    for old, now, digest in (
        (cell(**v3, options=Options(expand_first=False)), cell(**v3), "ff797feb"),
        (
            cell(**small, options=Options(expand_first=False, head_attention=False)),
            cell(**small, options=Options(expand_first=False)),
            "183a29e6",
        ),
        (
            cell(dataset="imagenet", recipe=earlier),
            cell(dataset="imagenet", recipe=plain),
            "ac85cf72",
        ),
    ):
        assert old.digest[:8] == digest
        assert now.digest != old.digest


def test_a_record_reads_back_as_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of earlier versions spell out the defaults, those of unused options, too."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(USERS_DEFAULTS)
    for attention in ("none", "se", "mine.py:A", "mine.py:Usual", "mine.py:Named"):
        for options in (Options(), Options(reduction=8)):
            one = cell(attention=attention, options=options)
            found = json.loads(json.dumps(one.config()))
            assert one.matches(found)
            assert Cell.from_config(found, "s").digest == one.digest
    config = json.loads(json.dumps(cell().config()))
    assert config["options"]["reduction"] == 16
    spelled = {"reduction": 16, "residual": True, "expand_first": True, "conv_head": True}
    config["options"] |= spelled
    assert cell().matches(config)
    assert Cell.from_config(config, "s").condition == cell().condition


@pytest.mark.parametrize("file", sorted((ROOT / "workflow/tables").glob("*.yaml")), ids=str)
def test_shipped_table_descriptions_are_valid(file: Path) -> None:
    validate(Description, read_yaml(file), file)


NO_STUDIES = ("cluster", "complexity", "cost")
STUDIES = [file.stem for file in (ROOT / "config").glob("*.yaml") if file.stem not in NO_STUDIES]


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_shipped_studies_are_valid(name: str) -> None:
    study = load_study(ROOT / f"config/{name}.yaml")
    assert len({cell.id for cell in study.trainings.values()}) == len(study.trainings)


def test_the_laptop_studies_differ_in_precision_only() -> None:
    one, other = (read_yaml(ROOT / f"config/{name}.yaml") for name in ("laptop", "laptop_float32"))
    assert one["compute"].pop("precision") == "bfloat16"
    assert other["compute"].pop("precision") == "float32"
    for key in ("study", "title"):
        assert one.pop(key) != other.pop(key)
    assert one == other


def test_the_demo_covers_the_csm_study() -> None:
    study = load_study(ROOT / "config/config.yaml")
    attentions: dict[str, set[str]] = {}
    for cell in study.cells:
        attentions.setdefault(cell.backbone, set()).add(cell.attention)
    assert attentions == {
        "resnet18": {"none", "se", "cbam", "cam", "sam", "csm", "csm_sam_first"},
        "mobilenet_v2": {"none", "maf_c", "srap"},
    }
    assert {cell.seed for cell in study.cells} == {0, 1}
    assert {cell.options.width for cell in study.cells} == {0.25}


def test_the_papers_study_has_every_backbone_with_every_module() -> None:
    pairs = {(c.backbone, c.attention) for c in load_study(ROOT / "config/imagenet.yaml").cells}
    names = set(attngrid.list_backbones()) - {"resnet50_v1.5", "mobilenet_v3_small"}
    modules = ("none", "se", "cbam", "bam", "csm", "maf", "maf_c", "srap")
    assert len(names) == 11
    assert {(name, module) for name in names for module in modules} <= pairs


def test_the_papers_grids_cover_the_published_rows() -> None:
    import csv

    for name, tables in {
        "imagenet": ("cbam_table4", "csm_table1", "csm_table2"),
        "cifar100": ("csm_table3",),
    }.items():
        ours = {(c.backbone, c.attention) for c in load_study(ROOT / f"config/{name}.yaml").cells}
        for table in tables:
            with (ROOT / f"reference/{table}.csv").open(encoding="utf-8") as stream:
                printed = {(row["backbone"], row["attention"]) for row in csv.DictReader(stream)}
            assert printed <= ours, table


def test_the_json_schema_file_is_up_to_date() -> None:
    """`attngrid schema > config/schema.json` updates it."""
    assert (ROOT / "config/schema.json").read_text("utf-8") == json_schema()


def test_every_key_is_explained() -> None:
    text = (ROOT / "config/README.md").read_text("utf-8")
    schema = json.loads(json_schema())
    sections = [schema, *schema["$defs"].values()]
    keys = {key for section in sections for key in section.get("properties", {})}
    assert {key for key in keys if f"`{key}`" not in text} == set()


# Recipes


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_all_notations_of_a_number_are_accepted(tiny: dict[str, Any], written: str) -> None:
    tiny["recipes"]["tiny"]["weight_decay"] = yaml.safe_load(written)
    assert validate(Study, tiny, "my.yaml").recipe("tiny").weight_decay == 1e-4


def test_step_schedule_equals_the_authors() -> None:
    """CBAM and MAF: 0.1, divided by 10 at epochs 30, 60 and 90; CSM's readers divide by 5."""
    imagenet, cifar = (shipped_recipes()[name] for name in ("imagenet_100ep", "cifar_200ep"))
    for epoch, expected in {0: 0.1, 29.9: 0.1, 30: 0.01, 60: 0.001, 99: 0.0001}.items():
        assert imagenet.learning_rate_at(epoch) == pytest.approx(expected)
    for epoch, expected in {59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}.items():
        assert cifar.learning_rate_at(epoch) == pytest.approx(expected)


def test_one_cycle_rises_and_falls_linearly() -> None:
    schedule = Schedule(kind="one_cycle", warmup=0.25)
    for epoch, expected in {0: 0, 1: 0.5, 2: 1, 5: 0.5, 8: 0}.items():
        assert schedule.factor(epoch, 8) == pytest.approx(expected)


def test_pytorch_cifar100s_schedule_equals_torchs_with_its_warm_up() -> None:
    """Its code steps MultiStepLR before each epoch, from 1 on; in the first, WarmUpLR is
    0.1 × iteration / iterations.
    """
    recipe = shipped_recipes()["pytorch_cifar100"]
    for done in (0, 1 / 391, 200 / 391, 390 / 391):
        assert recipe.learning_rate_at(done) == pytest.approx(0.1 * done)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 120, 160], gamma=0.2)
    for epoch in range(1, 201):
        optimizer.step()
        scheduler.step()
        if epoch > 1:
            for done in (0, 0.5, 390 / 391):
                found = recipe.learning_rate_at(epoch - 1 + done)
                assert found == pytest.approx(scheduler.get_last_lr()[0])


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("one_cycle", "milestones", (3,)),
        ("one_cycle", "gamma", 0.5),
        ("one_cycle", "warmup_epochs", 1),
        ("step", "warmup", 0.5),
    ],
)
def test_a_schedule_takes_no_keys_of_the_other(kind: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key}: found .*; {kind} has only"):
        Schedule.model_validate({"kind": kind, key: value})


def test_milestones_must_rise_within_the_epochs() -> None:
    fields = {"epochs": 50, "batch_size": 8, "learning_rate": 0.1}
    for milestones in ([30, 20], [30, 60]):
        with pytest.raises(ValueError, match="needs rising epochs below 50"):
            Recipe.model_validate(
                {**fields, "schedule": {"kind": "step", "milestones": milestones}}
            )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet_100ep", (100, 256, 0.1, 0.9, False, 1e-4, (30, 60, 90), 0.1)),
        ("dogs_200ep", (200, 64, 0.1, 0.9, False, 1e-4, (100, 150, 180), 0.1)),
        ("cifar_200ep", (200, 128, 0.1, 0.9, True, 5e-4, (60, 120, 160), 0.2)),
        ("pytorch_cifar100", (200, 128, 0.1, 0.9, False, 5e-4, (59, 119, 159), 0.2)),
    ],
)
def test_recipes_equal_the_authors(name: str, expected: tuple[Any, ...]) -> None:
    r = shipped_recipes()[name]
    assert expected == (
        r.epochs,
        r.batch_size,
        r.learning_rate,
        r.momentum,
        r.nesterov,
        r.weight_decay,
        r.schedule.milestones,
        r.schedule.gamma,
    )


# Cells


def cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "study": "s",
        "dataset": "cifar100",
        "backbone": "resnet18",
        "attention": "se",
        "recipe_name": "cifar_200ep",
        "recipe": shipped_recipes()["cifar_200ep"],
        "seed": 0,
    }
    return Cell(**(fields | changes))


def test_the_digest_of_a_cell_does_not_change() -> None:
    """A change of digests makes every committed record stale, so it must be intended."""
    assert cell().id == "cifar100-resnet18-se-cifar_200ep-s0-645420d6"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"backbone": "resnet34"},
        {"attention": "csm"},
        {"options": Options(width=0.5)},
        {"options": Options(classes=20)},
        {"options": Options(input_size=16)},
        {"precision": "bfloat16"},
        {"threads": 2},
        {"recipe": shipped_recipes()["cifar_200ep"].model_copy(update={"weight_decay": 1e-4})},
    ],
)
def test_settings_that_change_the_numbers_change_the_digest(changes: dict[str, Any]) -> None:
    assert cell(**changes).digest != cell().digest


def test_the_digest_omits_options_that_the_model_does_not_use() -> None:
    """In a grid at r = 8 the baseline keeps its id, and all cells have the same condition."""
    options = Options(reduction=8, placement="stage_end")
    for attention, changes in {"none": False, "sam": True, "csm": True}.items():
        plain, changed = cell(attention=attention), cell(attention=attention, options=options)
        assert (plain.digest != changed.digest) == changes
    assert "reduction" not in cell(attention="sam", options=options).model_arguments()
    assert len({cell(attention=a, options=options).condition for a in ("none", "sam", "csm")}) == 1


def test_settings_that_do_not_change_the_numbers_do_not_change_the_digest() -> None:
    recipe = shipped_recipes()["cifar_200ep"].model_copy(update={"source": "elsewhere"})
    assert cell(study="other", recipe=recipe).digest == cell().digest
    assert cell(options=Options(width=1.0, reduction=16)).digest == cell().digest
    assert cell(options=Options(input_size=32)).digest == cell().digest


def test_a_smaller_input_size_is_in_condition_and_model_key() -> None:
    small = Options(input_size=16)
    assert cell(options=small).condition.startswith("CIFAR-100, 16×16, cifar_200ep")
    assert cell(options=small).model_key[3:] == (100, 16, "")
    assert cell(options=small).model_arguments()["input_size"] == 16


def test_cam_reads_the_record_of_se() -> None:
    assert cell(attention="cam").id == cell(attention="se").id
    assert cell(attention="cam").model_arguments()["attention"] == "se"


def test_the_digest_covers_the_content_of_a_users_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class A: pass\n")
    first = cell(attention="mine.py:A")
    assert first.id.startswith("cifar100-resnet18-mine.A-cifar_200ep-s0-")
    (tmp_path / "elsewhere.py").write_text("class A: pass\n")
    assert cell(attention="elsewhere.py:A").digest == first.digest
    (tmp_path / "mine.py").write_text("class A: x = 1\n")
    assert cell(attention="mine.py:A").digest != first.digest


@pytest.mark.parametrize("attention", ["odd name;rm -rf.py:A", "../up/x y.py:B"])
def test_ids_are_safe_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "up").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path(attention.rpartition(":")[0]).write_text("class A: pass\nclass B: pass\n")
    assert all(c.isalnum() or c in "._-" for c in cell(attention=attention).id)


def test_loading_a_configuration_imports_no_torch_and_no_pandas() -> None:
    code = (
        "import sys; from attngrid.study.schema import load_study;"
        "import attngrid.render.description;"
        f"load_study({str(ROOT / 'config/config.yaml')!r}).cells[0].id;"
        "sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_priorities_follow_the_configuration_with_trials_before_their_cells() -> None:
    for name in ("tuning", "cifar100"):
        study = load_study(ROOT / f"config/{name}.yaml")
        ids = [*study.trainings, *study.trials]
        priorities = {id: study.priority(id) for id in ids}
        assert len(set(priorities.values())) == len(ids)
        assert 0 < min(priorities.values()) < max(priorities.values()) < 1
        in_order = [priorities[id] for id in study.trainings]
        assert in_order == sorted(in_order, reverse=True)
        for cell in study.choices.values():
            assert min(priorities[trial.id] for trial in cell.trials) > priorities[cell.id]


def test_a_study_is_the_same_after_saving_and_loading(tiny: dict[str, Any], tmp_path: Path) -> None:
    study = validate(Study, tiny, "my.yaml")
    file = tmp_path / "study.json"
    file.write_text(json.dumps(study.model_dump(mode="json")))
    assert load_study(file) == study
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tiny))
    assert [c.id for c in load_study(file).cells] == [c.id for c in study.cells]


def test_every_shipped_recipe_has_a_source_and_expected_results() -> None:
    for recipe in shipped_recipes().values():
        assert recipe.source
        assert recipe.expected


def test_expected_results_of_recipes_equal_the_reference_tables() -> None:
    public = pd.read_csv(ROOT / "reference/public_cifar100.csv", keep_default_na=False)
    table4 = pd.read_csv(ROOT / "reference/cbam_table4.csv", keep_default_na=False)
    authors = pd.read_csv(ROOT / "reference/author_checkpoints.csv", keep_default_na=False)
    recipes = shipped_recipes()
    for backbone in ("resnet18", "resnet34", "resnet50"):
        (row,) = public.query(f"backbone == '{backbone}' and attention == 'none'").itertuples()
        for error in (row.top1_error, row.top5_error):
            quoting = [n for n, r in recipes.items() if f"{error:.2f}" in r.expected]
            assert quoting == ["pytorch_cifar100"]
    (row,) = table4.query("backbone == 'resnet18' and attention == 'none'").itertuples()
    (maf,) = authors.query("attention == 'maf_c'").itertuples()
    for error in (row.top1_error, row.top5_error, 100 - maf.top1_accuracy, 100 - maf.top5_accuracy):
        assert f"{error:.2f}" in recipes["imagenet_100ep"].expected
