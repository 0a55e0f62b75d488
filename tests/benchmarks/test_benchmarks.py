"""The sides of each benchmark do the same work. Their speed is not tested here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attngrid

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEVICES, IMAGES = ("cpu", "cuda"), ("cifar", "imagenet")
BATCH, STEPS, SAMPLES = 2, 1, 2


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of ``benchmarks/`` again; some test packages have the same names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for file in BENCHMARKS.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    return importlib.import_module


class Recorded:
    """Replaces ``Side``: it starts no process and keeps the arguments."""

    def __init__(self, name: str, work: Any, *arguments: Any, **options: Any):
        self.name, self.work, self.arguments, self.options = name, work, arguments, options
        self.seconds: list[float] = []
        self.ended = False


class EnoughError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_of_each_side_trains_the_same_number_of_images(
    device: str,
    images: str,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The sides for a GPU are run on a CPU, all with ResNet-18 in float32."""
    training, setting = module("training"), module("setting")
    monkeypatch.setattr(setting, "usual_precision", lambda device: "bfloat16")
    monkeypatch.setattr(training, "Side", Recorded)
    monkeypatch.setattr(training, "product", lambda setting: (8, 1))
    monkeypatch.setattr(torch, "compile", lambda called, **_: called)
    monkeypatch.setattr("attngrid.training.performance.compiler_problem", lambda *_, **__: None)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    (one,) = (s for s in setting.SETTINGS if (s.device, s.images) == (device, images))
    sides, compared = training.make_sides(one, switches=True)
    assert training.BOUNDS[device, images].keys() | {"ours"} <= sides.keys()
    assert compared.keys() | set(compared.values()) <= sides.keys()
    few = module("synthetic").Cifar
    monkeypatch.setattr(few, "TRAIN", 8)
    monkeypatch.setattr(few, "stem", one.data.stem)
    small = replace(one, data=few, backbone="resnet18", device="cpu", batch=BATCH, steps=STEPS)
    trained = 0

    def count(layer: nn.Module, _: Any, out: Any) -> None:
        nonlocal trained
        if isinstance(layer, nn.Linear) and layer.out_features == few.num_classes:
            trained += len(out) * torch.is_grad_enabled()

    hook = nn.modules.module.register_module_forward_hook(count)
    request.addfinalizer(hook.remove)
    for name, side in sides.items():
        first, *others = side.arguments
        assert first is one
        others = ["float32" if other == "bfloat16" else other for other in others]
        found: list[int] = []

        def wait() -> None:
            found.append(trained)  # noqa: B023
            if len(found) == SAMPLES:  # noqa: B023
                raise EnoughError

        trained = 0
        with pytest.raises(EnoughError):
            side.work(wait, small, *others, **side.options)
        expected = 0 if name.endswith("product") else BATCH * STEPS
        assert found == [expected, SAMPLES * expected], name


@pytest.mark.parametrize("images", ["cifar", pytest.param("imagenet", marks=pytest.mark.slow)])
def test_the_peers_networks_are_ours(
    images: str, module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters and multiply-accumulates are equal; another stride would change the latter."""
    setting, feed = module("setting"), module("peers.feed")
    one = next(s for s in setting.SETTINGS if s.images == images)
    on_meta = replace(one, device="meta", batch=1, steps=1)
    with torch.device("meta"):
        timms = timm.create_model(one.usual_name, num_classes=one.data.num_classes)
        others = feed.network(on_meta), feed.with_stem(timms, on_meta)
        image = torch.empty(1, 3, one.data.input_size, one.data.input_size)
        model = attngrid.create_model(
            one.backbone, "none", num_classes=one.data.num_classes, stem=one.data.stem
        )
    for other in others:
        assert parameters(other) == parameters(model)
        with FlopCounterMode(display=False) as counter:
            other(image).sum().backward()
        assert counter.get_total_flops() == on_meta.sample_flops()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_added_time_is_relative_to_the_baseline_just_before(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is right on a machine that becomes slower before each baseline."""
    attention, setting = module("attention"), module("setting")
    seconds = {"none": 1.0, "maf": 1.5, "se": 1.1}

    def interleave(order: list[Recorded], rounds: int, *, one_by_one: bool) -> None:
        assert not one_by_one  # only on a GPU
        slowness = 1.0
        for side in order * rounds:
            slowness *= 1.7 if side.name.startswith("none") else 1.0
            side.seconds.append(slowness * seconds[side.arguments[1]])

    monkeypatch.setattr(attention, "Side", Recorded)
    monkeypatch.setattr(attention, "interleave", interleave)
    monkeypatch.setattr(setting, "usual_precision", lambda device: "float32")
    cpu = setting.SETTINGS[0]
    fast = attention.performance_options("cpu", uncompiled=False)
    rows = attention.measure(cpu, ["maf", "se"], fast, starts=2, rounds=3)
    for row, adds in zip(rows, (50, 10), strict=True):
        assert row["ours_adds_percent"] == pytest.approx([adds] * 3)


@pytest.mark.slow
def test_time_to_accuracy_is_the_end_of_the_first_epoch_that_reaches_it(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    benchmark = module("time_to_accuracy")
    file = tmp_path / "found.json"
    backbone = tmp_path / "small.py"
    backbone.write_text(
        "from torch import nn\n"
        "class Small(nn.Sequential):\n"
        "    def __init__(self, sites, *, num_classes, stem, width):\n"
        "        conv = nn.Conv2d(3, 64, 5, 2, padding=2, bias=False)\n"
        "        layers = [conv, nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]\n"
        "        super().__init__(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, num_classes))\n"
    )
    arguments = ["--dataset", "digits", "--backbone", f"{backbone}:Small"]
    arguments += ["--recipe", "demo_6ep", "--seeds", "1", "--device", "cpu"]
    arguments += ["--target", "87", "--within", "0.1", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["time_to_accuracy.py", *arguments])
    assert benchmark.main() == 1  # a tenth of a second is not enough
    (seed,) = json.loads(file.read_text())["seeds"]
    epochs = seed["epochs"]
    assert len(epochs) == 6
    assert [e["seconds"] for e in epochs] == sorted(e["seconds"] for e in epochs)
    reached = [e["seconds"] for e in epochs if e["top1_accuracy"] >= 87]
    assert seed["reached_s"] == reached[0] < seed["end_s"]
    assert seed["first_epoch_s"] == epochs[0]["seconds"] < seed["reached_s"]
