"""A record's network as a user loads it: one image in, names and probabilities out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import v2

import attngrid
from attngrid.cli.main import main
from attngrid.core.errors import DataError, RecordError
from attngrid.core.validation import validate
from attngrid.data.digits import digits
from attngrid.study.schema import Study, load_study
from attngrid.training.run import run_cell
from data.test_images import write_pictures
from training.test_image_files import birds


def train_only_cell(study: Study) -> Path:
    (cell,) = study.trainings.values()
    run_cell(study, cell, cell.record)
    return cell.record


@pytest.mark.slow
def test_one_scan_at_a_time_gives_the_records_error(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn's scans, enlarged as the dataset is, as a user's pictures."""
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["cbam"], "seeds": [0], "options": {"width": 0.25}}
    tiny["recipes"]["tiny"] |= {"epochs": 2, "batch_size": 64}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    record = train_only_cell(load_study("study.yaml"))
    trained = attngrid.load_model(record)
    _, scans = digits(Path())
    wrong = 0
    for pixels_CHW, label in zip(scans.pixels_NCHW, scans.labels_N.tolist(), strict=True):
        found = trained.predict(Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()))
        assert len(found) == 5
        assert sum(p for _, p in found) <= 1 + 1e-6
        wrong += found[0][0] != str(label)
    error = json.loads(record.read_text())["metrics"]["top1_error"]
    assert 100 * wrong / len(scans) == pytest.approx(error)
    assert error < 50
    with pytest.raises(DataError, match="found an array of float64; needs uint8"):
        trained.predict(np.zeros((16, 16)))
    # an array is an image, too, and a picture of another size is resized
    grey = scans.pixels_NCHW[0, 0].numpy()
    assert torch.equal(trained.transform(grey), trained.transform(Image.fromarray(grey)))
    assert trained.transform(np.zeros((90, 60, 3), np.uint8)).shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_an_exported_network_runs_in_torch_alone(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = """
        import torch
        class Scale(torch.nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.rand(channels, 1, 1))
            def forward(self, x):
                return x * self.scale
    """
    Path("mine.py").write_text(dedent(module))
    tiny["grid"][0] |= {"attentions": ["mine.py:Scale"], "seeds": [0], "options": {"width": 0.25}}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    record = train_only_cell(load_study("study.yaml"))
    assert main(["export", "study.yaml", "--torch", "networks"]) == 0
    _, scans = digits(Path())
    np.save("pixels.npy", scans.pixels_NCHW[:3].numpy())
    Path("mine.py").unlink()
    alone = """
        import json, sys
        sys.modules["attngrid"] = None
        import numpy, torch
        files = {"classes.json": ""}
        network = torch.export.load(sys.argv[1], extra_files=files).module()
        logits = network(torch.from_numpy(numpy.load("pixels.npy")))
        print(json.dumps([json.loads(files["classes.json"]), logits.tolist()]))
    """
    command = [sys.executable, "-c", dedent(alone), f"networks/{record.stem}.pt2"]
    classes, logits = json.loads(subprocess.check_output(command, text=True))
    Path("mine.py").write_text(dedent(module))
    trained = attngrid.load_model(record)
    inputs = [trained.transform(scan.permute(1, 2, 0).numpy()) for scan in scans.pixels_NCHW[:3]]
    assert classes == trained.classes
    assert torch.allclose(torch.tensor(logits), trained.model(torch.cat(inputs)), atol=1e-5)


@pytest.mark.slow
def test_a_photograph_is_transformed_as_by_torchvision(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("birds"))
    trained = attngrid.load_model(train_only_cell(birds(tiny, workers=0, epochs=1)))
    assert trained.classes == sorted(folder.name for folder in Path("birds/train").iterdir())
    file = next(Path("birds/val").rglob("*.*"))
    reference = v2.Compose(
        [
            *(v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32)),
            v2.Normalize([0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 57.12, 57.375]),
        ]
    )
    expected = reference(Image.open(file).convert("RGB"))[None]
    assert torch.allclose(trained.transform(Image.open(file)), expected, atol=1e-5)
    assert set(trained.classes) >= {name for name, _ in trained.predict(Image.open(file))}
    assert trained.predict(file) == trained.predict(str(file)) == trained.predict(Image.open(file))
    with pytest.raises(DataError, match=r"none\.png: .*No such file"):
        trained.predict("none.png")
    Path("text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: cannot identify image file"):
        trained.predict("text.png")
    with pytest.raises(DataError, match=r"grey values of mode I;16"):
        trained.predict(Image.new("I;16", (90, 60)))


@pytest.mark.slow
def test_a_record_without_normalisation_is_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0]}
    record = train_only_cell(validate(Study, tiny, "t"))
    content = json.loads(record.read_text())
    del content["run"]["normalisation"]
    record.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="normalisation is missing: an older version"):
        attngrid.load_model(record)
