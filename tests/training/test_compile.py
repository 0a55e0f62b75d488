"""Compiled models against eager ones: outputs, gradients and running statistics."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attngrid
from attngrid.core.errors import InterruptedTrainingError
from attngrid.core.validation import validate
from attngrid.study.compute import Compute
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.performance import (
    attention_modules,
    compile_attention,
    compile_network,
    compiler_problem,
)
from models.test_attention import build as build_module
from models.test_attention import relative_error
from models.test_attention import step as module_step
from together import Stopping

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
BROKEN_COMPILER = torch._inductor.config.patch(
    {"cpp.cxx": (None, "false")}
)  # a compiler that fails
needs_compiler = pytest.mark.usefixtures("fresh_inductor", "compiler")


def build(backbone: str, attention: str) -> nn.Module:
    """A narrow network without parameters that are all 0, so that every gradient is nonzero."""
    torch.manual_seed(0)
    model = attngrid.create_model(backbone, attention, stem="cifar", num_classes=5, width=0.125)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def trunk(backbone: str, attention: str) -> nn.Module:
    """The stem, the first block with its module, and the module after the first stage."""
    model = build(backbone, attention)
    first = model.stages[0]  # type: ignore[index]
    return nn.Sequential(model.stem, first[0], first[-1])  # type: ignore[index]


def step(model: nn.Module, call: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers of a call. Gradients are relative to the largest one."""
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model.zero_grad()
    out = call(x)
    out.square().mean().backward()
    assert x.grad is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    return {
        "output": out.detach(),
        "input": x.grad / x.grad.abs().max(),
        **{name: gradient / largest for name, gradient in gradients.items()},
        **{name: buffer.clone() for name, buffer in model.named_buffers()},
    }


def assert_compiled_equals_eager(model: nn.Module, backend: str) -> None:
    """The compiled model is a single graph in training mode."""
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    expected, found = step(model, model), step(twin, compiled)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", attngrid.list_attentions())
def test_every_module_is_one_graph_with_the_eager_gradients(attention: str) -> None:
    assert_compiled_equals_eager(trunk("resnet18", attention), "aot_eager")


PAIRS = [
    ("resnet18", "csm"),
    ("mobilenet_v1", "srap_avg_max_std"),
    ("mobilenet_v2", "maf_c"),
    ("mobilenet_v3_small", "cbam"),
]


@pytest.mark.parametrize(("backbone", "attention"), PAIRS)
def test_a_whole_network_is_one_graph(backbone: str, attention: str) -> None:
    """Only the graph is made here; gradients in a compiled graph are those of the tests above."""
    assert_compiled_equals_eager(build(backbone, attention), "eager")


@pytest.fixture(scope="module")
def fresh_inductor() -> Iterator[None]:
    """An empty compiler cache, which is removed at the end with its 150 MB of headers."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):  # no setting says where they go
            patch.setattr(f"torch._inductor.codecache.{name}", f"{folder}/{name}", raising=False)
        yield


@pytest.fixture(scope="module")
def compiler(fresh_inductor: None) -> None:
    if problem := compiler_problem("cpu"):
        pytest.skip(problem)


@needs_compiler
@pytest.mark.parametrize(("backbone", "attention"), PAIRS[:2])
def test_inductor_equals_eager(backbone: str, attention: str) -> None:
    """Only the first blocks, because a whole network compiles for over a minute."""
    assert_compiled_equals_eager(trunk(backbone, attention), "inductor")


def trained(
    tiny: dict[str, Any], compiled: bool | str, stop: int | None = None
) -> tuple[float, Any]:
    """The loss of an epoch with attention in the last stage, and the option ``compile``.

    Args:
        stop: resume from a checkpoint, if there is one, and raise InterruptedTrainingError after
            so many steps; 0 for never.
    """
    torch._dynamo.reset()
    tiny["grid"][0] |= {
        "attentions": ["se"],
        "seeds": [0],
        "options": {"width": 0.25, "classes": 2, "placement": "last_stage"},
    }
    tiny["recipes"]["tiny"] |= {"learning_rate": 0.002, "batch_size": 64}
    (cell,) = validate(Study, tiny, "t").cells
    metrics, run, _ = loop.train(
        cell,
        CPU,
        Path("data"),
        checkpoints=None if stop is None else Stopping(cell, stop),
        compute=Compute.model_validate({"performance": {"compile": compiled}}),
    )
    return metrics["curve"][0]["train_loss"], run["performance"]["compile"]


@needs_compiler
def test_golden_loss_of_compiled_modules(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training that is stopped and resumed has the same loss to the bit."""
    monkeypatch.chdir(tmp_path)
    eager, _ = trained(tiny, False)
    found, what = trained(tiny, "attention")
    assert what == "attention"
    assert found != eager  # the option has an effect
    assert found == pytest.approx(eager, rel=1e-4)
    with pytest.raises(InterruptedTrainingError):
        trained(tiny, "attention", stop=2)
    assert trained(tiny, "attention", stop=0) == (found, "attention")


@needs_compiler
@pytest.mark.parametrize(("name", "whole"), [("cbam", True), ("srap_avg_max_std", False)])
def test_compiled_bfloat16_modules_are_close_to_float32(name: str, whole: bool) -> None:
    """Without rounding as in eager mode, the gradient of a maximum was NaN."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    module = build_module(name, 32).to(memory_format=torch.channels_last)
    x = torch.randn(8, 32, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    expected = module_step(module, x.float())
    module.zero_grad()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if whole:
        found = module_step(compile_network(module, cuda_graphs=False), x, autocast=True)
    else:
        compile_attention(nn.ModuleList([module]))
        found = module_step(module, x, autocast=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert found[0].dtype == x.dtype
    for tensors, allowed in zip(zip(found, expected, strict=True), (0.01, 0.05, 0.05), strict=True):
        assert relative_error(*tensors) < allowed


@needs_compiler
def test_all_attention_modules_of_a_deep_network_run_compiled() -> None:
    """The network has more shapes than PyTorch compiles for one function by default."""
    torch._dynamo.reset()
    model = attngrid.create_model("mobilenet_v1", "se_v3", stem="cifar", width=0.25)
    x = torch.randn(2, 3, 32, 32)
    shapes = set()
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: shapes.add(inputs[0].shape[1:]))
        for module in attention_modules(model)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    assert len(shapes) > 8  # PyTorch's default, which another test's export may have raised
    compile_attention(model)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        model(x).sum().backward()


@pytest.mark.usefixtures("fresh_inductor")
def test_a_training_runs_eagerly_if_the_compiler_fails(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # an empty cache
    monkeypatch.setattr("attngrid.training.performance.LONG_TRAINING_PIXELS", 0)
    compiler_problem.cache_clear()
    with BROKEN_COMPILER:
        found, what = trained(tiny, "auto")
    compiler_problem.cache_clear()
    assert what is False
    assert found == trained(tiny, False)[0]
