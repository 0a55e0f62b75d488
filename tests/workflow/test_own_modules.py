"""Modules that a user writes from other papers: from an empty folder to the verdicts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from statistics import NormalDist

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.layers.coord_attn import CoordAttn
from timm.layers.eca import EcaModule
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attngrid.analysis.frames import load_results, read_frame
from attngrid.study.scaffold import init
from made_up import ROOT
from workflow import own_attention

EXAMPLE = ROOT / "src/attngrid/study/study_folder"
MODULES = ("SimAM", "ECA", "CoordinateAttention", "WindowAttention")


def copied(module: nn.Module, reference: nn.Module, names: dict[str, str]) -> nn.Module:
    """The reference with the module's parameters, whose names begin otherwise."""
    state = reference.state_dict()
    for own, other in names.items():
        state |= {
            name.replace(own, other, 1): value
            for name, value in module.state_dict().items()
            if name.startswith(own)
        }
    reference.load_state_dict(state)
    return reference


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 64, 9, 14, generator=torch.Generator().manual_seed(0))


def test_the_examples_are_what_their_papers_define(x: Tensor) -> None:
    torch.manual_seed(0)
    eca = own_attention.ECA(64)
    assert torch.allclose(eca(x), copied(eca, EcaModule(64), {"": ""})(x), atol=1e-6)

    coordinate = own_attention.CoordinateAttention(64)
    names = {"shared.0": "conv1", "shared.1": "bn1"}
    names |= {"along_height": "conv_h", "along_width": "conv_w"}
    timms = copied(coordinate, CoordAttn(64, rd_channels=8, bias=True), names)
    assert torch.allclose(coordinate(x), timms(x), atol=1e-6)

    window = own_attention.WindowAttention(64)
    nn.init.normal_(window.bias)
    names = {"qkv": "qkv", "project": "proj", "bias": "relative_position_bias_table"}
    swins = copied(window, ShiftedWindowAttention(64, [7, 7], [0, 0], 4), names)
    expected = x + swins(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(window(x), expected, atol=1e-5)

    # SimAM's Eq. 5 for one position
    plane, weight = x[1, 2].double(), 1e-4
    mean, variance = plane.mean(), plane.var(correction=0)
    energy = 4 * (variance + weight) / ((plane[3, 4] - mean) ** 2 + 2 * variance + 2 * weight)
    expected = torch.sigmoid(1 / energy) * plane[3, 4]
    assert own_attention.SimAM(64)(x)[1, 2, 3, 4].item() == pytest.approx(expected.item(), rel=1e-5)


def write_photographs(folder: Path) -> None:
    """100 pieces of scikit-learn's two photographs, as PNG files of two classes."""
    random = np.random.default_rng(0)
    for picture, name in zip(load_sample_images().images, ("temple", "flower"), strict=True):
        for number in range(50):
            split = "val" if number % 5 == 4 else "train"
            side = int(random.integers(70, 120))
            top, left = (int(random.integers(0, size - side)) for size in picture.shape[:2])
            file = folder / split / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[top : top + side, left : left + side]).save(file)


def test_one_of_ten_of_the_examples_images_cannot_be_told() -> None:
    """Classes are 15 degrees apart; an image deviates from its class by 0.08 radians."""
    half = np.pi / 12 / 2
    assert 2 * NormalDist(0, 0.08).cdf(-half) == pytest.approx(0.1, abs=0.005)
    example = run_path(str(EXAMPLE / "datasets/my_dataset.py"))
    for images, labels in example["MyDataset"].load(Path()):
        assert (images.shape, images.dtype) == ((2048, 3, 16, 16), np.uint8)
        assert set(np.bincount(labels, minlength=12)) <= {170, 171}


def test_a_study_folder_says_what_it_runs_and_where_the_pages_are(tmp_path: Path) -> None:
    init(tmp_path / "mine")
    page = (tmp_path / "mine/config/README.md").read_text()
    assert page.startswith("# The configuration\n\n> This is a page of attngrid's repository.")
    assert "not the demo" in page
    assert page.endswith((ROOT / "config/README.md").read_text().partition("\n")[2])
    # every file that its own README names in the present folder is there
    readme = (tmp_path / "mine/README.md").read_text()
    named = set(re.findall(r"`((?:attention|backbones|datasets|reference|profiles)/\S+?)`", readme))
    assert {"attention/my_attention.py", "profiles/default/config.yaml"} <= named
    assert all((tmp_path / "mine" / name.partition(":")[0]).is_file() for name in named)
    assert "`docs/evidence.md`" in readme.splitlines()[-2]


@pytest.mark.slow
def test_four_modules_from_an_empty_folder_to_their_verdicts(tmp_path: Path) -> None:
    folder = tmp_path / "four"
    init(folder)
    shutil.copy(own_attention.__file__, folder / "attention/four.py")
    write_photographs(folder / "photographs")
    names = [f"attention/four.py:{module}" for module in MODULES]
    study = yaml.safe_load((folder / "study.yaml").read_text())
    block = study["grid"][0] | {"backbones": ["resnet18"], "seeds": [0]}
    block["attentions"] = ["none", *names]
    study["recipes"]["my_recipe"]["epochs"] = 1
    photographs = {"epochs": 1, "batch_size": 16, "learning_rate": 0.02}
    study["recipes"]["photographs"] = photographs | {
        "schedule": {"kind": "one_cycle"},
        "train_transforms": [{"kind": "random_resized_crop", "size": 224}, {"kind": "flip"}],
        "test_transforms": [{"kind": "resize", "size": 256}, {"kind": "crop_to", "size": 224}],
    }
    study["grid"] = [
        # windows do not divide the digits' maps
        block | {"dataset": "digits", "attentions": ["none", names[-1]]},
        block
        | {"dataset": "imagefolder:photographs:2", "recipes": ["photographs"]}
        | {"options": {"width": 0.25, "input_size": 64}},
    ]
    study |= {"tables": ["grid"], "figures": ["gains"]}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    claims = yaml.safe_load((folder / "claims.yaml").read_text())
    claims["claims"] = [
        {
            "id": f"{module.lower()}_beats_baseline",
            "kind": "better",
            "statement": f"{module} beats the baseline",
            "family": "my_attention",
            "backbones": ["resnet18"],
            "better": name,
            "than": "none",
        }
        for module, name in zip(MODULES, names, strict=True)
    ]
    (folder / "claims.yaml").write_text(yaml.safe_dump(claims))
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [snakemake, "--cores", "2"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = load_results("four", folder)
    assert (results.cells["state"] == "measured").all()
    assert len(results.cells) == 7
    counts = read_frame(folder / "results/four/complexity.csv")
    assert set(counts["input_size"]) == {16, 64}
    assert results.cells["macs"].notna().all()
    verdicts = (folder / "tables/four.claims.md").read_text()
    assert all(f"ResNet-18: {module} over baseline" in verdicts for module in MODULES)
    report = (folder / "results/four/report.html").read_text()
    assert all(module in report for module in MODULES)
