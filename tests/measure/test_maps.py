"""Kept weights, their attention maps, and the figure of the maps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import attngrid
from attngrid.analysis.frames import Results, collect, load_results
from attngrid.cli.main import main
from attngrid.core.errors import ConfigError, RecordError
from attngrid.core.validation import validate
from attngrid.data.images import Batches, channel_statistics
from attngrid.data.loading import load
from attngrid.measure.attention_maps import grad_cam, own_map
from attngrid.measure.maps_file import CellMaps, Maps, pictured, read_maps, write_maps
from attngrid.records.record import read_record
from attngrid.render.figures import FIGURES, NO_MAPS, NO_WEIGHTS
from attngrid.render.maps import between, overlay
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.run import run_cell
from attngrid.training.weights import create_network, write_weights
from made_up import fake_record

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    for folder in ("reference", "workflow"):
        Path(folder).symlink_to(ROOT / folder)
    tiny["grid"][0] |= {"attentions": ["none", "csm", "cbam"], "seeds": [0, 1]}
    (tmp_path / "results").mkdir()
    study = validate(Study, tiny, "tiny.yaml")
    study.write_snapshot()
    return study


def network(backbone: str, attention: str = "none", **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = attngrid.create_model(backbone, attention, num_classes=10, stem="cifar", **options)
    for module in model.modules():  # BatchNorms that are not at their initial values
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def fake_training(study: Study, *cells: int) -> None:
    """Write a record and initial weights for some of the study's cells."""
    for index in cells:
        cell = study.cells[index]
        torch.manual_seed(index)
        fake_record(cell, 12.0)
        write_weights(cell.weights, cell, attngrid.create_model(**cell.model_arguments()), [])


def visualize(study: Study) -> Maps:
    assert main(["visualize", str(study.snapshot)]) == 0
    return read_maps(study.maps)


# Weights


@pytest.mark.slow
def test_the_loaded_network_equals_the_trained_one_bit_for_bit(study: Study) -> None:
    cell = study.cells[1]
    *_, trained = loop.train(cell, CPU, Path("data"))
    write_weights(cell.weights, cell, trained, [])
    x = torch.randn(3, 3, 16, 16)
    models = [
        model.to(memory_format=torch.channels_last).eval()
        for model in (trained, create_network(cell))
    ]
    assert torch.equal(models[0](x), models[1](x))


@pytest.mark.slow
def test_the_kept_weights_reproduce_the_record(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    cell = study.cells[0]
    run_cell(study, cell, Path("trial.json"))  # a record outside the study
    assert not cell.weights.parent.exists()
    # if the weights cannot be written, the record still is
    caplog.set_level("INFO")
    cell.weights.parent.parent.mkdir(parents=True, exist_ok=True)
    cell.weights.parent.write_text("in the way")
    run_cell(study, cell, cell.record)
    assert read_record(cell.record, cell)
    assert "weights not kept: FileExistsError" in caplog.text
    cell.weights.parent.unlink()
    cell.record.unlink()
    run_cell(study, cell, cell.record)
    train, test = load("digits", Path("unused"), download=False, classes=None)
    mean_C, std_C = channel_statistics(train)
    found = loop.evaluate(create_network(cell).eval(), Batches(test, 500, mean_C, std_C))
    metrics = read_record(cell.record).metrics
    assert found["test_top1_error"] == metrics.top1_error
    assert found["test_loss"] == pytest.approx(metrics.curve[-1].test_loss, rel=1e-5)
    with safe_open(cell.weights, framework="np") as stream:
        assert stream.metadata()["digest"] == cell.digest
        assert '"learning_rate": 0.02' in stream.metadata()["config"]


@pytest.mark.slow
def test_keeping_weights_is_optional_and_changes_no_cell(
    tiny: dict[str, Any], study: Study
) -> None:
    without = validate(Study, tiny | {"keep": {"weights": "none"}}, "t")
    assert list(without.trainings) == list(study.trainings)
    cell = without.cells[0]
    run_cell(without, cell, cell.record)
    assert cell.record.is_file()
    assert not cell.weights.parent.exists()


def test_damaged_weights_and_those_of_another_cell_or_network_are_refused(study: Study) -> None:
    fake_training(study, 0, 3)
    ours, others = study.cells[0], study.cells[3]
    whole = ours.weights.read_bytes()
    ours.weights.unlink()
    with pytest.raises(RecordError, match=f"{ours.id}.*: cannot be read: No such file"):
        create_network(ours)
    ours.weights.write_bytes(others.weights.read_bytes())
    expected = (
        f"{ours.id}.*: belongs to another cell: found .* {others.digest}, expected {ours.digest}"
    )
    with pytest.raises(RecordError, match=expected):
        create_network(ours)
    ours.weights.write_bytes(whole[:-1000])
    with pytest.raises(RecordError, match=f"{ours.id}.*: cannot be read"):
        create_network(ours)
    save_file(load_file(others.weights), ours.weights)
    with pytest.raises(RecordError, match="found the digest None"):
        create_network(ours)
    part = dict(list(load_file(others.weights).items())[:-1])
    save_file(part, ours.weights, {"digest": ours.digest})
    with pytest.raises(RecordError, match=f"{ours.id}.*: does not fit .*Missing key"):
        create_network(ours)


def test_a_shared_parameter_is_kept_for_each_layer(study: Study) -> None:
    cell, layer = study.cells[0], torch.nn.Linear(3, 3)
    write_weights(cell.weights, cell, torch.nn.Sequential(layer, torch.nn.ReLU(), layer), [])
    kept = load_file(cell.weights)
    assert torch.equal(kept["0.weight"], kept["2.weight"])


# Grad-CAM and the modules' own maps


@pytest.mark.parametrize(("backbone", "attention"), [("resnet18", "csm"), ("mobilenet_v2", "srap")])
def test_grad_cam_equals_the_papers_equations(backbone: str, attention: str) -> None:
    """α_c = mean over positions of ∂y/∂A_c; ReLU(Σ_c α_c A_c), for each image and channel."""
    model = network(backbone, attention, width=0.125).double()
    x, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([7, 0, 7])
    found = grad_cam(model, x, labels).numpy()
    A_NCHW: list[torch.Tensor] = []
    model.stages.register_forward_hook(lambda *call: A_NCHW.append(call[2]))
    for n, label in enumerate(labels.tolist()):
        A_NCHW.clear()
        y = model(x[n : n + 1])[0, label]
        (gradient,) = torch.autograd.grad(y, A_NCHW)
        total = np.zeros(found.shape[1:])
        for gradient_HW, A_HW in zip(
            gradient[0].numpy(), A_NCHW[0][0].detach().numpy(), strict=True
        ):
            total += gradient_HW.sum() / gradient_HW.size * A_HW
        np.testing.assert_allclose(found[n], np.maximum(total, 0), rtol=1e-8, atol=1e-12)
    assert found.shape == (3, 4, 4)
    assert (found > 0).any()


@pytest.mark.parametrize(
    ("size", "site", "positions"),
    # the sides of the stages are 32, 16, 8, 4; then 16, 8, 4, 2; then 4, 2, 1, 1
    [(32, "stages.2.1.attention.1", 8), (16, "stages.1.1.attention.1", 8), (4, "stages.0.1.a", 4)],
)
def test_the_spatial_map_is_of_the_last_site_with_7x7_positions_or_the_largest(
    size: int, site: str, positions: int
) -> None:
    model = network("resnet18", "cbam", width=0.125)
    gates: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith("attention.1.bn"):
            name = name.removesuffix(".bn")
            module.register_forward_hook(
                lambda *call, name=name: gates.update({name: call[2].detach().sigmoid()})
            )
    x = torch.randn(2, 3, size, size)
    logits, own = own_map(model, x)
    assert own is not None
    assert torch.equal(logits, model(x).detach())
    assert own[0].startswith(site)
    assert own[1].shape == (2, positions, positions)
    torch.testing.assert_close(own[1], gates[own[0]][:, 0])


def test_channel_attention_has_no_spatial_map_and_a_wrong_shape_is_an_error() -> None:
    model = network("resnet18", "se", width=0.125)
    assert own_map(model, torch.randn(1, 3, 16, 16))[1] is None
    model.stages[1][0].attention.spatial_map = lambda x: x  # type: ignore[index, union-attr]
    expected = r"SqueezeExcitation.spatial_map gives \(1, 16, 8, 8\) .*expected \(1, 1, 8, 8\)"
    with pytest.raises(ConfigError, match=expected):
        own_map(model, torch.randn(1, 3, 16, 16))


# maps.npz


def test_maps_are_read_as_written_and_equal_maps_give_equal_bytes(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(0).random((2, 3, 3), dtype=np.float32) for _ in range(2)]
    maps = Maps(
        {"digits": np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)},
        {"a": CellMaps([0, 1], [0, 7], *arrays, site="s"), "b": CellMaps([0], [0], arrays[0][:1])},
    )
    files = [tmp_path / "1.npz", tmp_path / "2.npz"]
    for file in files:
        write_maps(file, maps)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = read_maps(files[0])
    np.testing.assert_array_equal(again.images["digits"], maps.images["digits"])
    assert list(again.cells) == ["a", "b"]
    for name, cell in again.cells.items():
        for field, value in vars(maps.cells[name]).items():
            np.testing.assert_array_equal(getattr(cell, field), value)
    files[0].write_bytes(files[1].read_bytes()[:-50])
    with pytest.raises(RecordError, match=r"1\.npz: cannot be read"):
        read_maps(files[0])
    np.savez(files[0], cells=np.array([{"a": 1}], dtype=object))  # a pickle
    with pytest.raises(RecordError, match="allow_pickle=False"):
        read_maps(files[0])


def test_maps_show_the_first_seed_and_the_first_held_out_image_of_each_class(
    study: Study,
) -> None:
    assert [(cell.attention, cell.seed) for cell in pictured(study)] == [
        ("none", 0),
        ("csm", 0),
        ("cbam", 0),
    ]
    fake_training(study, 0, 1, 2, 3)  # cell 3 has seed 1
    maps = visualize(study)
    none, csm, cbam = study.cells[:3]
    assert list(maps.cells) == [none.id, csm.id, cbam.id]
    bunch = load_digits()
    fifths = [bunch.images[np.flatnonzero(bunch.target == digit)[4]] for digit in range(4)]
    shown = maps.images["digits"][..., 0].reshape(4, 8, 2, 8, 2).mean(axis=(2, 4))
    for small, image in zip(fifths, shown, strict=True):
        assert np.corrcoef(small.flatten(), image.flatten())[0, 1] > 0.95
    for cell, maps_of_cell in ((none, maps.cells[none.id]), (csm, maps.cells[csm.id])):
        train, test = load("digits", Path("unused"), download=False, classes=None)
        batch = next(iter(Batches(test, 500, *channel_statistics(train))))[0]
        first = [int(np.flatnonzero(test.labels_N == digit)[0]) for digit in range(4)]
        logits = create_network(cell).eval()(batch[first])
        assert maps_of_cell.predicted == logits.argmax(1).tolist()
        assert maps_of_cell.labels == [0, 1, 2, 3]
        assert maps_of_cell.grad_cam_KHW.shape == (4, 2, 2)
    assert maps.cells[none.id].own_KHW is None
    received = maps.cells[csm.id].own_KHW
    assert received is not None
    np.testing.assert_allclose(received.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert maps.cells[csm.id].site == "stages.1.1.attention.1"
    assert study.maps.stat().st_size < 100_000
    before = study.maps.read_bytes()
    visualize(study)
    assert study.maps.read_bytes() == before


def test_maps_are_kept_after_their_weights_are_deleted(study: Study) -> None:
    fake_training(study, 0, 1)
    before = visualize(study)
    study.cells[1].weights.unlink()
    fake_training(study, 2)
    after = visualize(study)
    assert list(after.cells) == [cell.id for cell in study.cells[:3]]
    np.testing.assert_array_equal(
        after.cells[study.cells[1].id].grad_cam_KHW, before.cells[study.cells[1].id].grad_cam_KHW
    )
    kept = study.maps.read_bytes()
    for cell in study.cells:
        cell.weights.unlink(missing_ok=True)
    visualize(study)
    assert study.maps.read_bytes() == kept


def test_a_cell_of_two_classes_has_two_images(tiny: dict[str, Any], study: Study) -> None:
    tiny["grid"].append(tiny["grid"][0] | {"options": {"width": 0.0625, "classes": 2}})
    both = validate(Study, tiny, "t")
    both.write_snapshot()
    fake_training(both, 0, 6)
    maps = visualize(both)
    assert [len(maps.cells[both.cells[index].id].labels) for index in (0, 6)] == [4, 2]
    assert len(maps.images["digits"]) == 4


@pytest.mark.slow
def test_without_captum_current_renders_and_visualize_says_what_to_install(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_training(study, 0)
    known = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "captum" else known(name, package)

    monkeypatch.setattr("attngrid.study.resources.find_spec", without)
    assert main(["visualize", str(study.snapshot)]) == 1
    assert 'pip install "attngrid[maps]"' in capsys.readouterr().err
    assert main(["current", str(study.snapshot)]) == 0
    assert "no new attention maps: study tiny: " in capsys.readouterr().err
    assert all(file.is_file() for file in study.figure_files("maps"))


# The figure


def drawn(figure: Figure) -> list[str]:
    under = [axis.get_xlabel() for axis in figure.axes]
    over = [axis.get_title() for axis in figure.axes]
    inside = [text.get_text() for axis in figure.axes for text in axis.texts]
    return [*(text.get_text() for text in figure.texts), *under, *over, *inside]


def fake_results(study: Study, *cells: int, own: bool = True) -> Results:
    """Results with maps of some cells: two images each, of which the second is seen as a 7."""
    maps = {
        study.cells[index].id: CellMaps(
            [0, 1],
            [0, 7],
            np.ones((2, 2, 2), np.float32),
            np.linspace(0.02, 0.5, 18, dtype=np.float32).reshape(2, 3, 3) if own else None,
        )
        for index in cells
    }
    results = collect(study)
    images = {"digits": np.zeros((4, 16, 16, 3), np.uint8)}
    return Results(results.cells, results.epochs, results.summary, Maps(images, maps))


def test_the_figure_shows_predictions_ranges_and_why_a_column_is_empty(study: Study) -> None:
    fake_record(study.cells[0], 12.0)
    fake_record(study.cells[1], 12.0)
    figure = FIGURES["maps"](fake_results(study, 0))
    texts = drawn(figure)
    assert texts[0].startswith("ResNet-18, digits, 16×16")
    assert texts[0].endswith("seed 0")
    for expected in ("baseline", "CSM", "CBAM", NO_WEIGHTS, "not run", "class 1", "seen as 7"):
        assert expected in texts
    heads = {"Grad-CAM\n2×2\n0.0…1.0", "own map\n3×3\n0.00…0.50"}
    assert heads | {"0.02…0.25", "0.27…0.50"} <= set(texts)
    labels = {axis.get_xlabel(): axis.xaxis.label.get_color() for axis in figure.axes}
    assert labels["seen as 7"] != labels["seen as 0"]
    # for both images: image, Grad-CAM, own map
    assert [len(axis.images) for axis in figure.axes] == [1] * 6
    # a column has one scale, and it starts at 0, so a nearly constant map looks constant
    assert [axis.images[0].get_clim() for axis in figure.axes[4:]] == [(0, 0.5)] * 2


def test_an_overlay_shows_each_value_as_a_rectangle_over_the_grey_image() -> None:
    image = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    cam = np.random.default_rng(1).random((2, 3), dtype=np.float32) * 9
    found = overlay(image, cam, 18.0)
    heat = torch.nn.functional.interpolate(
        torch.from_numpy(cam / 18)[None, None], size=(64, 64), mode="nearest"
    )[0, 0]
    colours = matplotlib.colormaps["viridis"](heat.numpy())[..., :3]
    grey = np.kron(image.mean(2), np.ones((4, 4)))[..., None] / 255
    np.testing.assert_allclose(found, 0.4 * grey + 0.6 * colours, atol=1e-6)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 6
    nothing = np.zeros((64, 64, 3)) + matplotlib.colormaps["viridis"](0.0)[:3]
    blank = overlay(image, np.zeros((2, 2), np.float32), 0.0)
    np.testing.assert_allclose(blank, 0.4 * grey + 0.6 * nothing, atol=1e-6)


def test_a_network_without_stages_leaves_the_others_their_maps(
    tiny: dict[str, Any], study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    Path("flat.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self, sites, *, num_classes, stem, width):\n"
        "        super().__init__(nn.Conv2d(3, 8, 3, 2), sites.any_block(8, 1, stages=1),\n"
        "            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    tiny["grid"][0] |= {"backbones": ["flat.py:Flat", "resnet18"], "attentions": ["none"]}
    both = validate(Study, tiny, "t")
    both.write_snapshot()
    fake_training(both, 0, 2)
    assert list(visualize(both).cells) == [both.cells[2].id]
    assert "no attention maps of Flat, seed 0: backbone 'flat.py:Flat' has no" in caplog.text


@pytest.mark.slow
def test_aliases_share_a_column_and_many_modules_fit_the_page(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0] |= {"attentions": attngrid.list_attentions(), "seeds": [0]}
    tiny["grid"].append(tiny["grid"][0] | {"backbones": ["mobilenet_v2"]})
    every = validate(Study, tiny, "t")
    results = fake_results(every, *range(len(attngrid.list_attentions())))
    figure = FIGURES["maps"](results)
    texts = drawn(figure)
    assert "SE = CAM" in texts
    assert texts[0].endswith("(one of 2 combinations of backbone and condition)")
    boxes = [axis.get_position() for axis in figure.axes]
    assert len(boxes) > 2 * 2 * (len(attngrid.list_attentions()) - 1)
    assert min(box.x0 for box in boxes) > 0
    assert max(box.x1 for box in boxes) < 1
    assert min(box.y0 for box in boxes) > 0
    assert max(box.y1 for box in boxes) < 1
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_without_maps_the_figure_says_which_step_is_missing(study: Study) -> None:
    fake_record(study.cells[0], 12.0)
    results = collect(study)
    assert drawn(FIGURES["maps"](results))[-1] == NO_MAPS
    empty = fake_results(study)
    assert drawn(FIGURES["maps"](empty))[-1] == NO_WEIGHTS


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5312, 0.5399], "0.53…0.54"), ([-12.3, 4], "−12…4"), ([1e-5, 0.0123], "0.000…0.012")],
)
def test_a_range_has_two_digits_of_its_larger_end(values: list[float], expected: str) -> None:
    assert between(np.array(values, np.float32)) == expected
    assert between(np.zeros(2, np.float32)) == "0…0"


@pytest.mark.slow
def test_load_results_includes_the_maps(study: Study) -> None:
    fake_training(study, 0)
    assert main(["current", str(study.snapshot)]) == 0
    maps = load_results("tiny").maps
    assert maps is not None
    assert list(maps.cells) == [study.cells[0].id]
    assert all(file.is_file() for file in study.figure_files("maps"))
