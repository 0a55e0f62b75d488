"""Compiled models against eager ones: outputs, gradients and running statistics."""

from __future__ import annotations

import copy
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import attngrid
from attngrid.forms import literal_forms

pytestmark = pytest.mark.slow

CXX = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as inductor does
HEADERS = Path(sysconfig.get_paths()["include"])


def build(backbone: str, attention: str) -> nn.Module:
    """A narrow network in which nothing starts at 0, for its gradient to reach everything."""
    torch.manual_seed(0)
    model = attngrid.create_model(backbone, attention, stem="cifar", num_classes=5, width=0.125)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def trunk(backbone: str, attention: str) -> nn.Module:
    """The stem, the first block with what sits in it, and what sits after the first stage."""
    model = build(backbone, attention)
    first = model.stages[0]  # type: ignore[index]
    return nn.Sequential(model.stem, first[0], first[-1])  # type: ignore[index]


def step(model: nn.Module, call: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a call leaves: gradients are in units of the largest, since some are 0 but for noise."""
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


def assert_compiled_equals_eager(model: nn.Module, backend: str, *modes: bool) -> None:
    """In one graph, in training mode (True) and in evaluation mode (False).

    Eager in the literal forms, which are what a compiler is given: that the fast ones differ from
    them by roundings only is another test's, and a deep network makes much of roundings.
    """
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for training in modes:
        with literal_forms():
            expected = step(model.train(training), model)
        found = step(twin.train(training), compiled)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", attngrid.list_attentions())
def test_every_module_is_one_graph_with_the_eager_gradients(attention: str) -> None:
    assert_compiled_equals_eager(trunk("resnet18", attention), "aot_eager", True, False)


PAIRS = [
    ("resnet18", "csm"),
    ("mobilenet_v1", "srap_avg_max_std"),
    ("mobilenet_v2", "maf_c"),
    ("mobilenet_v3_small", "cbam"),
]


@pytest.mark.parametrize(("backbone", "attention"), PAIRS)
def test_a_whole_network_is_one_graph(backbone: str, attention: str) -> None:
    assert_compiled_equals_eager(build(backbone, attention), "aot_eager", True)


@pytest.fixture(scope="module")
def fresh_inductor() -> Iterator[None]:
    """Nothing compiled before and nothing left, the 150 MB of compiled headers neither."""
    settings = {
        "compile_threads": 1,
        "cpp_cache_precompile_headers": shutil.which("openssl") is not None,  # what hashes them
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        torch._inductor.config.patch(settings),
    ):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):  # no setting says where they go
            patch.setattr(f"torch._inductor.codecache.{name}", f"{folder}/{name}", raising=False)
        yield


@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"inductor needs a C++ compiler: no {CXX}")
@pytest.mark.skipif(
    not (HEADERS / "Python.h").is_file(),
    reason=f"inductor needs Python's headers: not in {HEADERS}",
)
@pytest.mark.usefixtures("fresh_inductor")
@pytest.mark.parametrize(("backbone", "attention"), PAIRS)
def test_inductors_code_computes_what_eager_does(backbone: str, attention: str) -> None:
    """The start of each family: a whole network compiles for over a minute."""
    assert_compiled_equals_eager(trunk(backbone, attention), "inductor", True)
