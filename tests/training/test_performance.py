"""Performance options change a training by rounding only, and each can be turned off."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.records.record import read_record
from attngrid.study.compute import Compute, Performance
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.performance import (
    attention_modules,
    callable_network,
    resolve,
)
from attngrid.training.run import run_cell

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CIFAR_STEP, IMAGENET_STEP = 128 * 32**2, 256 * 224**2  # pixels
ALL_OFF = Performance(channels_last=False, fused_optimizer=False, compile=False, cuda_graphs=False)
# A loss is a mean of hundreds of terms after a few steps, so it has hundreds of rounding errors.
TOLERANCE = {
    "float32": 1000 * torch.finfo(torch.float32).eps,
    "bfloat16": 2 * torch.finfo(torch.bfloat16).eps,
}


def first_epoch(
    tiny: dict[str, Any],
    attention: str,
    precision: str,
    performance: Performance,
    seed: int = 0,
    width: float = 0.0625,
) -> float:
    """The training loss of the first epoch; later losses would amplify rounding."""
    tiny["grid"][0] |= {
        "attentions": [attention],
        "seeds": [seed],
        "options": {"width": width, "classes": 2},
    }
    tiny["recipes"]["tiny"] |= {"epochs": 1, "learning_rate": 0.002}
    tiny["compute"]["precision"] = precision
    (cell,) = validate(Study, tiny, "t").cells
    compute = Compute(performance=performance)
    metrics, *_ = loop.train(cell, CPU, Path("data"), compute=compute)
    return float(metrics["curve"][0]["train_loss"])


@pytest.mark.parametrize(
    ("attention", "precision"),
    [
        ("cbam", "float32"),
        pytest.param("cbam", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_all_options_on_and_off_give_the_same_loss(
    tiny: dict[str, Any], attention: str, precision: str
) -> None:
    # wide enough that two seeds differ by more than the rounding of bfloat16
    width = 0.25 if precision == "bfloat16" else 0.0625
    on, off, other_seed = (
        first_epoch(tiny, attention, precision, performance, seed, width)
        for performance, seed in ((Performance(), 0), (ALL_OFF, 0), (ALL_OFF, 1))
    )
    assert on == pytest.approx(off, rel=TOLERANCE[precision])
    assert other_seed != pytest.approx(off, rel=TOLERANCE[precision])


def test_filling_memory_changes_no_bit(tiny: dict[str, Any]) -> None:
    """No operator reads memory that was not written."""
    try:
        losses = [
            first_epoch(tiny, "srap", "float32", Performance(fill_uninitialized_memory=fill))
            for fill in (False, True)
        ]
        assert torch.empty(3).isnan().all()  # memory was filled in the second training
    finally:
        loop.make_deterministic(0, 1, strict=False)
    assert losses[0] == losses[1]


@pytest.fixture
def compiler_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attngrid.training.performance.compiler_problem", lambda *_, **__: None)


@pytest.mark.usefixtures("compiler_present")
def test_auto_compiles_the_network_on_cuda_and_records_graphs_of_small_steps() -> None:
    small = resolve(Performance(), CUDA, CIFAR_STEP)
    large = resolve(Performance(), CUDA, IMAGENET_STEP)
    assert (small.compile, small.cuda_graphs) == (True, True)
    assert (large.compile, large.cuda_graphs) == (True, False)
    off = resolve(Performance(compile=False), CUDA, CIFAR_STEP)
    assert (off.compile, off.cuda_graphs) == (False, False)
    accumulated = resolve(Performance(), CUDA, CIFAR_STEP, micro_batches=2)
    assert (accumulated.compile, accumulated.cuda_graphs) == (True, False)
    assert not resolve(Performance(), CUDA, IMAGENET_STEP, sync_bn=True).compile
    assert not resolve(Performance(cuda_graphs=True), CPU, CIFAR_STEP).cuda_graphs


@pytest.mark.usefixtures("compiler_present")
def test_auto_compiles_attention_in_a_long_training_on_a_cpu() -> None:
    epoch = 391  # steps of CIFAR
    assert resolve(Performance(), CPU, CIFAR_STEP, steps=9 * epoch).compile is False
    long = resolve(Performance(), CPU, CIFAR_STEP, steps=11 * epoch)
    assert (long.compile, long.cuda_graphs) == ("attention", False)
    off = resolve(Performance(compile=False), CPU, CIFAR_STEP, steps=11 * epoch)
    assert off.compile is False


def test_without_a_compiler_auto_warns_and_an_explicit_option_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "attngrid.training.performance.compiler_problem", lambda *_, **__: "needs torch 2.14"
    )
    with caplog.at_level(logging.WARNING):
        assert resolve(Performance(), CPU, 2**20, steps=2**20).compile is False
    assert "not compiled, and therefore slower: torch.compile needs torch" in caplog.text
    with pytest.raises(ConfigError, match=r"performance.compile: found attention, .* torch 2.14"):
        resolve(Performance(compile="attention"), CPU, 2**20)


def test_only_full_training_batches_run_compiled_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch and the tests would need another compilation."""
    stances: list[str] = []
    stance = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda s: stances.append(s) or stance(s))
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network = callable_network(model, Performance(compile="attention"), batch_size=4)
    network(torch.randn(4, 3, 2, 2))
    assert stances == []
    network(torch.randn(3, 3, 2, 2))
    assert stances == ["force_eager"]
    with torch.no_grad():
        network(torch.randn(4, 3, 2, 2))
    assert stances == ["force_eager"] * 2


@pytest.mark.usefixtures("compiler_present")
def test_a_compiled_network_runs_the_last_training_batch_eagerly(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[bool, set[int]] = {True: set(), False: set()}

    def fake_compile(model: nn.Module, **_: Any) -> Any:
        def counted(x: torch.Tensor) -> Any:
            sizes[model.training].add(len(x))
            return model(x)

        return counted

    monkeypatch.setattr(torch, "compile", fake_compile)
    tiny["recipes"]["tiny"]["batch_size"] = 100
    losses = [first_epoch(tiny, "cbam", "float32", Performance(compile=on)) for on in (True, False)]
    assert losses[0] == losses[1]
    assert sizes[True] == {100}
    assert sizes[False]  # tests run compiled


def test_the_attention_modules_of_a_network_are_found(tiny: dict[str, Any]) -> None:
    (none, se, *_) = validate(Study, tiny, "t").cells
    found = [list(attention_modules(loop.create_model(**c.model_arguments()))) for c in (none, se)]
    assert [len(modules) for modules in found] == [0, 8]


def test_a_record_reports_the_resolved_options(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["compute"]["performance"] = {"fused_optimizer": False}
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 2}
    study = validate(Study, tiny, "tiny.yaml")
    cell = study.cells[0]
    run_cell(study, cell, cell.record)
    run = read_record(cell.record).run
    assert run["performance"] == {
        "channels_last": True,
        "compile": False,
        "cuda_graphs": False,
        "fused_optimizer": False,
        "fill_uninitialized_memory": False,
    }
    plain = validate(Study, tiny | {"compute": {"device": "cpu"}}, "t")
    assert plain.cells[0].id == cell.id  # the options do not change a cell's id


@pytest.mark.parametrize("fused", [True, False])
def test_a_parameter_may_get_its_first_gradient_late(fused: bool) -> None:
    """PyTorch's fused SGD fails in this case; the plain SGD gives the expected result."""
    from attngrid.study.recipe import shipped_recipes

    recipe = shipped_recipes()["demo_6ep"]
    ours, theirs = nn.ParameterList(), nn.ParameterList()
    for parameters in (ours, theirs):
        torch.manual_seed(0)
        parameters.extend(nn.Parameter(torch.randn(4)) for _ in range(3))
    plain = torch.optim.SGD(
        theirs,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    for optimizer, parameters in (
        (loop.make_optimizer(ours, recipe, fused=fused), ours),
        (plain, theirs),
    ):
        for step in range(6):
            torch.manual_seed(step)
            optimizer.zero_grad()
            for number, parameter in enumerate(parameters):
                if number < 2 or step % 2:
                    parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strict", [True, False])
def test_the_compiler_is_as_deterministic_as_the_training(strict: bool) -> None:
    try:
        loop.make_deterministic(0, 1, strict=strict)
        assert torch.are_deterministic_algorithms_enabled() == strict
        assert torch._inductor.config.deterministic == strict
    finally:
        loop.make_deterministic(0, 1, strict=False)
