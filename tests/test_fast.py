"""What makes a training faster changes nothing but roundings; each of it can be turned off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.records.record import read_record
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.fast import Fast
from attngrid.training.run import run_cell

CPU = torch.device("cpu")
LITERAL = Fast(
    channels_last=False,
    attention=False,
    convolutions=False,
    fused_sgd=False,
    unfilled=False,
    compile=False,
    cuda_graphs=False,
)
# Of an epoch's mean loss, relative; measured 5e-7 to 7e-6 in float32, 6e-5 to 1.2e-3 in bfloat16
FLOAT32, BFLOAT16 = 1e-4, 1e-2


def first_epoch(tiny: dict[str, Any], attention: str, precision: str, fast: Fast) -> float:
    tiny["grid"][0] |= {
        "attentions": [attention],
        "seeds": [0],
        "options": {"width": 0.25, "classes": 2},
    }
    tiny["recipes"]["tiny"] |= {"epochs": 1, "learning_rate": 0.002}
    tiny["compute"]["precision"] = precision
    (cell,) = validate(Study, tiny, "t").cells
    metrics, _ = loop.train(cell, CPU, Path("data"), progress=lambda *_: None, fast=fast)
    return float(metrics["curve"][0]["train_loss"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["none", "se", "cbam", "csm", "maf_c", "srap"])
def test_golden_loss_all_on_against_all_off(
    tiny: dict[str, Any], attention: str, precision: str
) -> None:
    """Few steps, since rounding alone moves later ones by percents; test_attention.py compares
    the gradients."""
    on, off = (first_epoch(tiny, attention, precision, fast) for fast in (Fast(), LITERAL))
    assert on != off  # the switches do something
    assert on == pytest.approx(off, rel=BFLOAT16 if precision == "bfloat16" else FLOAT32)


@pytest.mark.parametrize("switch", ["channels_last", "attention", "fused_sgd"])
def test_golden_loss_of_each_switch(tiny: dict[str, Any], switch: str) -> None:
    on = first_epoch(tiny, "maf_c", "float32", Fast())
    off = first_epoch(tiny, "maf_c", "float32", Fast.model_validate({switch: False}))
    assert on == pytest.approx(off, rel=FLOAT32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_filled_memory_changes_no_bit(tiny: dict[str, Any], precision: str) -> None:
    """So no operator reads what was not written."""
    try:
        losses = [
            first_epoch(tiny, "srap", precision, Fast(unfilled=unfilled))
            for unfilled in (True, False)
        ]
        assert torch.empty(3).isnan().all()  # the second time it was filled
    finally:
        loop.make_deterministic(0, 1, strict=False)
    assert losses[0] == losses[1]


@pytest.fixture
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what is taken for one, on a machine without."""
    monkeypatch.setattr("attngrid.training.fast.missing", lambda device: None)


@pytest.mark.slow
@pytest.mark.usefixtures("a_compiler")
def test_golden_loss_of_the_compiler(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By aot_eager; with inductor a GPU's kernels, or g++, would be needed."""
    compile_ = torch.compile
    backends = []

    def by_aot_eager(model: Any, *, dynamic: bool, mode: str | None) -> Any:
        backends.append(mode)
        return compile_(model, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", by_aot_eager)
    off = first_epoch(tiny, "cbam", "float32", Fast())
    on = first_epoch(tiny, "cbam", "float32", Fast(compile=True))
    assert backends == [None]
    assert on == pytest.approx(off, rel=FLOAT32)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "no-such-compiler")


@pytest.mark.usefixtures("a_compiler")
def test_auto_compiles_on_cuda_and_graphs_small_steps() -> None:
    cuda = torch.device("cuda")
    cifar, imagenet = 128 * 32**2, 256 * 224**2
    assert not Fast().resolved(CPU, cifar).compile
    assert not Fast(cuda_graphs=True).resolved(CPU, cifar).cuda_graphs
    small, large = Fast().resolved(cuda, cifar), Fast().resolved(cuda, imagenet)
    assert (small.compile, small.cuda_graphs) == (True, True)
    assert (large.compile, large.cuda_graphs) == (True, False)
    off = Fast(compile=False).resolved(cuda, cifar)
    assert (off.compile, off.cuda_graphs) == (False, False)
    parts = Fast().resolved(cuda, cifar, parts=2)
    assert (parts.compile, parts.cuda_graphs) == (True, False)
    assert not Fast().resolved(cuda, imagenet, parts=2, sync_bn=True).compile


@pytest.mark.usefixtures("a_compiler")
def test_auto_compiles_attention_where_a_cpu_trains_for_long() -> None:
    batch, epoch = 128 * 32**2, 391  # CIFAR's
    assert Fast().resolved(CPU, batch, steps=9 * epoch).compile is False
    long = Fast().resolved(CPU, batch, steps=11 * epoch)
    assert (long.compile, long.cuda_graphs) == ("attention", False)
    assert Fast(compile=False).resolved(CPU, batch, steps=11 * epoch).compile is False
    on_cuda = Fast(compile="attention").resolved(torch.device("cuda"), batch)
    assert (on_cuda.compile, on_cuda.cuda_graphs) == ("attention", False)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_compiler_nothing_is_compiled(device: str) -> None:
    # an older torch's code for CPUs is none for us
    needs = r"needs (a C.* compiler \(.* in the environment\)|torch 2.14)"
    where = torch.device(device)
    with pytest.warns(UserWarning, match=f"not compiled.* {needs}"):
        assert Fast().resolved(where, 2**20, steps=2**20).compile is False
    with pytest.raises(ConfigError, match=f"fast.compile: found attention, which {needs}"):
        Fast(compile="attention").resolved(where, 2**20)


@pytest.mark.usefixtures("a_compiler")
def test_only_training_batches_of_the_recipes_size_are_compiled(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last batch of an epoch, not the tests: each would be compiled for itself."""
    sizes, compiled = [], []

    def instead(call: Any, *, dynamic: bool) -> Any:
        compiled.append(type(call.__self__).__name__)

        def counted(x: torch.Tensor) -> Any:
            sizes.append(len(x))
            return call(x)

        return counted

    monkeypatch.setattr(torch, "compile", instead)
    tiny["recipes"]["tiny"]["batch_size"] = 100
    losses = [first_epoch(tiny, "cbam", "float32", Fast(compile=c)) for c in ("attention", False)]
    assert losses[0] == losses[1]
    assert compiled == ["ChannelGate", "SpatialGate"] * 8
    assert set(sizes) == {100}
    assert len(sizes) % 16 == 0


@pytest.mark.usefixtures("a_compiler")
def test_a_network_is_not_compiled_for_the_last_batch_of_an_epoch(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[bool, set[int]] = {True: set(), False: set()}

    def instead(model: torch.nn.Module, *, dynamic: bool, mode: str | None) -> Any:
        def counted(x: torch.Tensor) -> Any:
            sizes[model.training].add(len(x))
            return model(x)

        return counted

    monkeypatch.setattr(torch, "compile", instead)
    tiny["recipes"]["tiny"]["batch_size"] = 100
    losses = [first_epoch(tiny, "cbam", "float32", Fast(compile=c)) for c in (True, False)]
    assert losses[0] == losses[1]
    assert sizes[True] == {100}
    assert sizes[False]  # tests are


def test_a_record_says_what_was_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["compute"]["fast"] = {"fused_sgd": False}
    study = validate(Study, tiny, "tiny.yaml")
    cell = study.cells[0]
    run_cell(study, cell, cell.record)
    run = read_record(cell.record).run
    assert run["fast"] == {
        "channels_last": True,
        "attention": True,
        "convolutions": True,
        "fused_sgd": False,
        "unfilled": True,
        "compile": False,
        "cuda_graphs": False,
    }
    assert run["allocator"] in ("tuned", "system")
    with_default = validate(Study, {**tiny, "compute": {**tiny["compute"], "fast": {}}}, "t")
    assert with_default.cells[0].id == cell.id  # no part of its identity


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "tuned"),
        ({"ATTNGRID_ALLOCATOR": "system"}, "system"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "system"),
        ({"GLIBC_TUNABLES": "glibc.rtld.nns=4"}, "tuned"),
    ],
)
def test_the_command_trains_with_its_own_allocator_unless_told_otherwise(
    tiny: dict[str, Any], tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    tiny["recipes"]["tiny"]["epochs"] = 1
    (tmp_path / "s.yaml").write_text(json.dumps(tiny))
    cell = validate(Study, tiny, "s.yaml").cells[0]
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | changes
    command = [sys.executable, "-m", "attngrid.cli", "train", "s.yaml", cell.id]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    record = read_record(tmp_path / cell.record)
    assert record.run["allocator"] == expected
    tiny_run = loop.train(cell, CPU, Path("data"), progress=lambda *_: None)
    assert record.metrics.model_dump(mode="json")["curve"] == tiny_run[0]["curve"]  # same bits
