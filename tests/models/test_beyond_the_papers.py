"""timm's attention layers, widened baselines, and users' classes and study folders."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from attngrid import create_model, load_results
from attngrid.cli.workflow import before_jobs
from attngrid.core.errors import AttngridError, ConfigError, DataError
from attngrid.core.validation import validate
from attngrid.data.loading import load
from attngrid.data.registry import find_dataset
from attngrid.measure.complexity import count
from attngrid.models.backbones.resnet import Block
from attngrid.models.registry import TIMM_ATTENTIONS, find_attention
from attngrid.study.cell import Cell
from attngrid.study.labels import attention_label, model_label
from attngrid.study.options import Options
from attngrid.study.recipe import shipped_recipes
from attngrid.study.resources import require_runnable
from attngrid.study.scaffold import init
from attngrid.study.schema import Study
from conftest import ROOT, jobs

SMALL: dict[str, Any] = {"num_classes": 10, "stem": "cifar", "width": 0.25, "input_size": 32}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def cell(attention: str, **changes: Any) -> Cell:
    recipe = shipped_recipes()["demo_6ep"]
    fields = {"backbone": "resnet18", "dataset": "digits", "seed": 0} | changes
    return Cell("s", attention=attention, recipe_name="demo_6ep", recipe=recipe, **fields)


def test_every_layer_of_timms_create_attn_has_a_name() -> None:
    from timm.layers.create_attn import get_attn

    names = {
        comparison.comparators[0].value
        for comparison in ast.walk(ast.parse(inspect.getsource(get_attn)))
        if isinstance(comparison, ast.Compare)
        and isinstance(comparison.comparators[0], ast.Constant)
    }
    assert {f"timm:{name}" for name in names} == set(TIMM_ATTENTIONS)


@cache
def baseline_counts() -> dict[str, int]:
    return count(create_model("resnet18", **SMALL), 32)


# one layer that needs channels only, and one that needs the feature map's size
FAST = ("timm:eca", "timm:bottleneck")


@pytest.mark.parametrize(
    "attention",
    [pytest.param(a, marks=[] if a in FAST else pytest.mark.slow) for a in TIMM_ATTENTIONS],
)
def test_timms_layer_trains_and_is_counted(attention: str) -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", attention, placement="stage_end", **SMALL)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    counts = count(model, 32)
    assert counts["params"] == parameters(model) > baseline_counts()["params"]
    assert counts["macs"] >= baseline_counts()["macs"]


@pytest.mark.parametrize("attention", ["timm:eca", "timm:gc", "timm:nl", "timm:bottleneck"])
def test_timms_layer_keeps_timms_initialisation(attention: str) -> None:
    from timm.layers.create_attn import create_attn

    # the backbone initialises all convolutions; timm's non-local layer starts as the identity
    torch.manual_seed(0)
    model = create_model("resnet18", attention, **SMALL)
    ours = next(block for block in model.modules() if isinstance(block, Block)).attention
    torch.manual_seed(0)
    theirs = create_attn(
        attention.removeprefix("timm:"),
        16,
        **({"feat_size": (32, 32)} if "bott" in attention else {}),
    )
    zeros = {name for name, value in theirs.state_dict().items() if not value.any()}
    assert zeros == {name for name, value in ours.state_dict().items() if not value.any()}
    theirs.load_state_dict(ours.state_dict())
    x_NCHW = torch.randn(2, 16, 32, 32)
    torch.testing.assert_close(ours.eval()(x_NCHW), theirs.eval()(x_NCHW))


def test_timms_gather_excite_equals_its_equation() -> None:
    model = create_model("resnet18", "timm:ge", **SMALL).double()
    ge = next(block for block in model.modules() if isinstance(block, Block)).attention.eval()
    x_NCHW = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    (w1, b1), (w2, b2) = ((fc.weight[:, :, 0, 0], fc.bias) for fc in (ge.mlp.fc1, ge.mlp.fc2))
    assert w1.shape == (1, 16)
    hidden = (x_NCHW.mean((2, 3)) @ w1.T + b1).clamp(min=0)
    expected = x_NCHW / (1 + torch.exp(-(hidden @ w2.T + b2)))[:, :, None, None]
    torch.testing.assert_close(ge(x_NCHW), expected)


def test_missing_timm_is_an_error_before_the_first_job(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["grid"][0]["attentions"] = ["none", "timm:eca"]
    study = validate(Study, tiny, "study.yaml")
    require_runnable(study)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    with pytest.raises(ConfigError, match=r'ECA \(timm\) .*pip install "attngrid\[timm\]"'):
        require_runnable(study)


@pytest.mark.parametrize(
    ("backbone", "module"),
    [
        ("resnet18", "se"),
        ("wrn18_1.5", "csm"),
        pytest.param("resnet50", "csm", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "maf_c", marks=pytest.mark.slow),
    ],
)
def test_the_widened_baseline_has_as_many_parameters(backbone: str, module: str) -> None:
    with torch.device("meta"):
        goal = parameters(create_model(backbone, module))
        control = create_model(backbone, f"none_wide:{module}")
        plain = parameters(create_model(backbone))
    assert type(control) is type(create_model("resnet18")) or backbone == "mobilenet_v2"
    # numbers of channels are integers, and multiples of 8 in a MobileNet
    assert abs(parameters(control) - goal) < 0.011 * goal
    assert abs(parameters(control) - goal) < abs(plain - goal)


@pytest.mark.slow
def test_the_widened_baseline_has_as_many_macs() -> None:
    arguments: dict[str, Any] = {"num_classes": 100, "stem": "cifar"}
    goal = count(create_model("resnet18", "csm", **arguments), 32)
    control = count(create_model("resnet18", "none_wide:csm:macs", **arguments), 32)
    by_params = count(create_model("resnet18", "none_wide:csm", **arguments), 32)
    assert control["macs"] == pytest.approx(goal["macs"], rel=0.005)
    assert by_params["params"] == pytest.approx(goal["params"], rel=0.005)
    assert control["params"] > by_params["params"]


def test_no_neighbouring_width_matches_better() -> None:
    goal = parameters(create_model("resnet18", "csm", **SMALL))
    control = parameters(create_model("resnet18", "none_wide:csm", **SMALL))
    sizes = [
        parameters(create_model("resnet18", **(SMALL | {"width": step / 512})))
        for step in range(134, 148)
    ]
    assert sizes[0] < goal < sizes[-1]
    assert control == min(sizes, key=lambda size: abs(size - goal))


def test_the_control_for_a_smaller_reduction_is_wider() -> None:
    wide, wider = (
        parameters(create_model("resnet18", "none_wide:se", reduction=r, **SMALL)) for r in (16, 4)
    )
    assert wide < wider


def test_a_control_that_is_the_baseline_itself_is_refused() -> None:
    """ECA adds some weights to a network whose next width has thousands more."""
    with pytest.raises(ConfigError, match=r"adds \d+ params to .* is the baseline itself"):
        create_model("resnet18", "none_wide:timm:eca", num_classes=10, stem="cifar", width=0.125)


def test_the_label_of_a_control_names_what_it_matches() -> None:
    assert model_label("resnet18", "none_wide:csm") == "ResNet-18, wide (CSM's params)"
    assert attention_label("none_wide:my.py:Mine:macs") == "wide (Mine's MACs)"
    assert find_attention("none_wide:cam:macs").alias_of == "none_wide:se:macs"
    for name, message in {
        "none_wide": "names no module to match",
        "none_wide:cbma": "did you mean cbam",
        "none_wide:none": "adds nothing",
    }.items():
        with pytest.raises(AttngridError, match=message):
            find_attention(name)


def test_each_control_is_another_cell() -> None:
    names = ["none", "se", "none_wide:se", "none_wide:se:macs", "none_wide:csm", "timm:eca"]
    cells = [cell(name) for name in names]
    assert len({c.digest for c in cells}) == len(names)
    assert "none_wide_se_macs" in cells[3].id
    assert "timm_eca" in cells[5].id
    assert cell("none_wide:cam").id == cells[2].id
    assert cells[3].model_arguments()["input_size"] == 16


def test_a_baseline_keeps_its_backbones_options() -> None:
    options = Options(input_bn=False, placement="last_stage", reduction=8)
    baseline = cell("none", backbone="mobilenet_v2", options=options)
    assert baseline.model_options == {"input_bn": False}
    assert baseline.digest != cell("none", backbone="mobilenet_v2").digest


USER_MODULE = """
import torch
class Mine(torch.nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 1)
        torch.nn.init.constant_(self.conv.weight, 0.125)
    def forward(self, x):
        return x + self.conv(x)
"""


def test_a_users_module_keeps_its_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(USER_MODULE)
    for backbone in ("resnet18", "mobilenet_v1"):
        model = create_model(backbone, "mine.py:Mine", **SMALL)
        weights = [m.conv.weight for m in model.modules() if type(m).__name__ == "Mine"]
        assert weights
        assert all((weight == 0.125).all() for weight in weights)


USER_BACKBONE = """
import torch
class Net(torch.nn.Module):
    def __init__(self, sites, *, num_classes, stem, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.attention = sites.any_block(8, 1, stages=1)
        self.out = torch.nn.Linear(8, {outputs})
    def forward(self, x):
        return self.out(self.attention(self.conv(x)).mean((2, 3)))
"""


def test_a_users_backbone_takes_every_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(USER_BACKBONE.format(outputs="num_classes"))
    for attention in ("none", "cbam", "csm", "srap", "timm:eca"):
        model = create_model("net.py:Net", attention, num_classes=7, stem="cifar")
        logits = model(torch.randn(2, 3, 32, 32))
        assert logits.shape == (2, 7)
    with pytest.raises(ConfigError, match="takes no option input_bn; it takes placement"):
        create_model("net.py:Net", input_bn=False)


NO_SITE = USER_BACKBONE.format(outputs="num_classes").replace(
    "self.attention = sites.any_block(8, 1, stages=1)", "self.attention = torch.nn.Identity()"
)
IDLE = USER_BACKBONE.format(outputs="num_classes").replace(
    "self.attention(self.conv(x))", "self.conv(x)"
)
IN_A_LIST = (
    USER_BACKBONE.format(outputs="num_classes")
    .replace("sites.any_block(8, 1, stages=1)", "[sites.any_block(8, 1, stages=1)]")
    .replace("self.attention(", "self.attention[0](")
)


@pytest.mark.parametrize(
    ("source", "attention", "placement", "message"),
    [
        (NO_SITE, "se", "default", "must call sites.any_block or sites.block$"),
        (NO_SITE, "srap", "every_block", "must call sites.any_block or sites.expanded$"),
        (NO_SITE, "timm:eca", "last_stage", "sites.any_block or sites.block in the last stage$"),
        # its only site is in a block
        (USER_BACKBONE, "bam", "default", "must call sites.after_stage for a stage up to 3$"),
        (USER_BACKBONE, "se", "stage_end", "must call sites.after_stage$"),
        (IDLE, "se", "default", "its forward never calls attention 'se' in stage 1"),
        (
            IN_A_LIST,
            "se",
            "default",
            "a module of attention 'se', .* is not part of the network; assign",
        ),
    ],
)
def test_a_backbone_without_the_attention_of_its_name_is_refused(
    source: str,
    attention: str,
    placement: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(source.format(outputs="num_classes"))
    create_model("net.py:Net", placement=placement, **SMALL)  # the baseline needs none
    with pytest.raises(ConfigError, match=f"^backbone 'net.py:Net': .*{message}"):
        create_model("net.py:Net", attention, placement=placement, **SMALL)


WINDOWS = """
import torch
class Windows(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        n, c, h, w = x.shape
        windows = x.reshape(n, c, h // 7, 7, w // 7, 7)
        return (windows * windows.mean((3, 5), keepdim=True).sigmoid()).reshape(x.shape)
"""


def test_a_users_module_is_tried_at_the_true_sizes_of_its_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 7 fit the maps of 224×224 images, 56, 28, 14 and 7, and not those of 32×32."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(WINDOWS)
    create_model("resnet18", "mine.py:Windows", width=0.125)
    expected = r"^attention 'mine.py:Windows' in stage 1, at 8 channels: RuntimeError: shape .*"
    with pytest.raises(ConfigError, match=expected):
        create_model("resnet18", "mine.py:Windows", stem="cifar", width=0.125)


def test_the_try_changes_no_random_number_and_no_statistic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(USER_MODULE.replace("x + ", "x + torch.rand(1) + "))
    torch.manual_seed(0)
    monkeypatch.setattr("attngrid.models.create.try_once", lambda *arguments: None)
    expected = create_model("resnet18", "mine.py:Mine", **SMALL).state_dict()
    following = torch.rand(1)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = create_model("resnet18", "mine.py:Mine", **SMALL)
    assert torch.equal(torch.rand(1), following)
    assert model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_users_models_are_tried_once_before_the_first_job(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(WINDOWS)
    tiny["grid"][0] |= {"attentions": ["se", "mine.py:Windows"], "seeds": [0, 1]}
    study = validate(Study, tiny, "tiny.yaml")
    trainings = [
        SimpleNamespace(rule=SimpleNamespace(name="train"), wildcards=SimpleNamespace(cell=id))
        for id in study.trainings
    ]
    dag = SimpleNamespace(needrun_jobs=lambda: trainings)
    settings = SimpleNamespace(deployment_method=())
    workflow = SimpleNamespace(dag=dag, non_local_exec=False, deployment_settings=settings)
    with pytest.raises(SystemExit):
        before_jobs(workflow, study)
    expected = r"attngrid: error: attention 'mine\.py:Windows' in stage 1, .*Runtime.*"
    assert re.fullmatch(expected, caplog.messages[-1])
    tried: list[Any] = []
    monkeypatch.setattr("attngrid.models.create.create_model", lambda **given: tried.append(given))
    before_jobs(workflow, study)
    assert [given["attention"] for given in tried] == ["mine.py:Windows"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (USER_BACKBONE.format(outputs="5"), r"returns shape \(2, 5\) for .* needs \(2, 10\)"),
        (USER_BACKBONE.format(outputs="nothing"), "NameError.*nothing"),
        (USER_BACKBONE.replace("Net", "Other").format(outputs=5), "has no class 'Net'; it has"),
    ],
)
def test_a_wrong_backbone_is_named_in_the_error(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(source)
    with pytest.raises(ConfigError, match=f"net.py.*{message}"):
        create_model("net.py:Net", num_classes=10)


USER_DATASET = """
import numpy as np
class Set:
    num_classes = 3
    input_size = 8
    @staticmethod
    def load(folder):
        labels = np.arange(12) % 3
        return [(np.zeros((12, 3, 8, 8), np.uint8), labels)] * 2
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes = 3", "num_classes = 1", "set.py: Set: num_classes: found 1; .*equal to 2"),
        ("num_classes = 3", "", "Set: num_classes: is required"),
        (
            "num_classes = 3",
            "num_classes = len('abc')",
            r"set\.py, line 4: Set\.num_classes: found len\('abc'\); needs a literal",
        ),
        (
            "num_classes = 3",
            "num_classes = 1 // 0",
            r"Set\.num_classes: found 1 // 0; needs a literal",
        ),
        ("input_size = 8", "input_size = 8\n    stem = 'mnist'", "Set: stem: found 'mnist'"),
        (
            "np.uint8",
            "np.float32",
            r"training images are \(torch.float32, 12, 3, 8, 8\); needs \(torch.uint8, 12,",
        ),
        ("input_size = 8", "input_size = 9", r"needs \(torch.uint8, 12, 3, 9, 9\) for 12 labels"),
        ("% 3", "% 4", r"labels must be 0 to 2, found \[0, 1, 2, 3\]"),
        (
            "% 3",
            "% 3 + 0.5",
            r"training labels are torch.float64 of shape \(12,\); needs N integers",
        ),
        ("% 3", "% 3 > 0", r"labels are torch.bool of shape \(12,\); needs N integers from 0 to 2"),
        (
            "% 3\n",
            "% 3\n        labels = labels[:, None]\n",
            r"int64 of shape \(12, 1\), a column: ",
        ),
        ("% 3\n", "% 3\n        labels = np.eye(3)[labels]\n", r"\(12, 3\), one-hot .*argmax"),
        ("load(folder)", "read(folder)", "AttributeError"),
        ("np.arange(12)", "np.arrange(12)", "load: AttributeError.*arrange"),
    ],
)
def test_a_wrong_dataset_is_named_in_the_error(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.py").write_text(USER_DATASET)
    train, _ = load("set.py:Set", tmp_path, download=False, classes=None)
    np.testing.assert_array_equal(train.labels_N, np.arange(12) % 3)
    Path("set.py").write_text(USER_DATASET.replace(old, new))
    with pytest.raises((ConfigError, DataError), match=message):
        load("set.py:Set", tmp_path, download=False, classes=None)


def test_the_files_of_a_users_dataset_may_be_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for files in ("('a.npy', 'b.npy')", "['a.npy', 'b.npy']"):
        text = USER_DATASET.replace("input_size = 8", f"input_size = 8\n    files = {files}")
        Path("set.py").write_text(text)
        assert find_dataset("set.py:Set").files == ("a.npy", "b.npy")


def test_the_digest_covers_the_code_of_users_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"set.py": USER_DATASET, "net.py": USER_BACKBONE, "mine.py": USER_MODULE}
    for name, source in files.items():
        Path(name).write_text(source)

    def user_cell() -> Cell:
        return cell("none_wide:mine.py:Mine", dataset="set.py:Set", backbone="net.py:Net")

    before = user_cell()
    assert set(before.sha256) == {"dataset", "backbone", "attention"}
    assert before.matches(json.loads(json.dumps(before.config())))
    assert before.id.startswith("set.Set-net.Net-none_wide_mine.Mine-demo_6ep-s0-")
    for name, source in files.items():
        Path(name).write_text(source + "# edited\nclass Unused: pass\n")
        assert user_cell().digest == before.digest
        Path(name).write_text(source + "print('on import')\n")
        assert user_cell().digest != before.digest
        assert not user_cell().matches(before.config())
        Path(name).write_text(source)
    assert user_cell().digest == before.digest


def test_init_does_not_write_into_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/paper.tex").write_text("two years of work")
    with pytest.raises(ConfigError, match="is not empty; nothing was written"):
        init(tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["paper.tex"]
    with pytest.raises(ConfigError, match="its name is the study's"):
        init(tmp_path / "…")


@pytest.mark.slow
def test_a_new_study_folder_runs_unchanged_where_only_the_wheel_is(tmp_path: Path) -> None:
    """No checkout is in sight, and the environment is not activated."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--target", tmp_path / "site", wheel], check=True)
    installed = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "site")}
    folder = tmp_path / "My study, 2"

    def run(program: str, *arguments: str, cwd: Path = folder) -> str:
        command = [Path(sys.executable).with_name(program), *arguments]
        environment = os.environ | installed
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert f"cd '{folder}' && snakemake --cores all" in run(
        "attngrid", "init", str(folder), cwd=tmp_path
    )
    # a co-author's clone runs, too
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not any(str(tmp_path) in file.read_text() for file in files)
    workflow = run("python", "-c", "from attngrid.core import files; print(files.home())")
    assert workflow.strip() == str(tmp_path / "site/attngrid/shipped")
    assert jobs(run("snakemake", "-n", "--cores", "2"))["train"] == 15
    # to save time, one of its three seeds is trained
    file = folder / "study.yaml"
    file.write_text(file.read_text().replace("seeds: [0, 1, 2]", "seeds: [0]"))
    run("snakemake", "--cores", "2")
    results = load_results("my-study-2", folder)
    assert (results.cells["state"] == "measured").all()
    assert results.cells["macs"].notna().all()
    # the study uses each example
    configured = yaml.safe_load((folder / "study.yaml").read_text())["grid"][0]
    assert set(results.cells["attention"]) == set(configured["attentions"])
    assert set(results.cells["backbone"]) == set(configured["backbones"])
    # the published figures are from the user's file
    table = (folder / "tables/my-study-2.my_table.md").read_text()
    for line in (folder / "reference/my_paper.csv").read_text().splitlines()[1:]:
        assert f" {line.rpartition(',')[2]} |" in table
    assert (folder / "figures/my-study-2.gains.pdf").is_file()
    # the verdicts are on the study's own claims; nothing there is about the papers
    verdicts = (folder / "tables/my-study-2.claims.md").read_text()
    for other in ("baseline", "SE", "CBAM", "wide (MyAttention's params)"):
        assert f"MyBackbone: MyAttention over {other}, top-1 error" in verdicts
    assert {file.name.partition(".")[0] for file in (folder / "tables").iterdir()} == {"my-study-2"}
    assert "Nothing to be done" in run("snakemake", "--cores", "2")

    # once the records are archived, only the edited module is trained and counted again
    module = folder / "attention/my_attention.py"
    module.write_text(module.read_text() + "MyAttention.edited = True\n")
    assert "not trained" in run("snakemake", "-n", "--cores", "2")
    run("attngrid", "archive", "study.yaml")
    planned = run("snakemake", "-n", "--cores", "2")
    assert jobs(planned)["train"] == 2
    assert jobs(planned)["count_study"] == 1
