"""The optimizer against torch's own class, to the bit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from attngrid.training.fast import Fast
from attngrid.training.loop import make_deterministic
from attngrid.training.sgd import SGD

SETTINGS: list[dict[str, Any]] = [
    {"momentum": 0.9, "weight_decay": 5e-4},
    {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 5e-4, "fused": True},
    {"momentum": 0.0, "weight_decay": 0.0},
    {"momentum": 0.5, "weight_decay": 0.0, "nesterov": True, "fused": True},
]


def parameters() -> list[nn.Parameter]:
    """Of several shapes and layouts."""
    torch.manual_seed(0)
    shapes = ((8, 3, 3, 3), (8,), (5, 8), (4,), (2,))
    made = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    made[0].data = made[0].data.contiguous(memory_format=torch.channels_last)
    return made


def take(optimizer: Any, its: list[nn.Parameter], steps: range) -> None:
    """Steps with gradients and learning rates by their number; the last has no gradient."""
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        for parameter in its[:-1]:
            parameter.grad = torch.randn_like(parameter)
        rate = 0.1 / (1 + step)
        if isinstance(optimizer, SGD):
            optimizer.learning_rate = rate
        else:
            optimizer.param_groups[0]["lr"] = rate
        optimizer.step()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_takes_torchs_steps(settings: dict[str, Any]) -> None:
    theirs, ours = parameters(), parameters()
    take(torch.optim.SGD(theirs, lr=1.0, **settings), theirs, range(4))
    take(SGD(ours, learning_rate=1.0, **settings), ours, range(4))
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert not torch.equal(ours[0], parameters()[0])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("written_by", ["ours", "torch"])
def test_it_goes_on_from_its_state_and_from_torchs(
    settings: dict[str, Any], written_by: str
) -> None:
    its = parameters()
    if written_by == "ours":
        before: Any = SGD(its, learning_rate=1.0, **settings)
    else:
        before = torch.optim.SGD(its, lr=1.0, **settings)
    take(before, its, range(3))
    state, resumed = deepcopy((before.state_dict(), its))
    take(before, its, range(3, 6))
    after = SGD(resumed, learning_rate=1.0, **settings)
    after.load_state_dict(state)
    take(after, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(its, resumed, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_comes_late_or_not_always_is_its_parameters_own(fused: bool) -> None:
    """Torch's fused form refuses it; what it should be, its plain form says."""
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    theirs, ours = parameters(), parameters()
    optimizers = (
        torch.optim.SGD(theirs, lr=0.1, **settings),
        SGD(ours, learning_rate=0.1, fused=fused, **settings),
    )
    for step in range(6):
        for optimizer, its in zip(optimizers, (theirs, ours), strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            for number, parameter in enumerate(its):
                if number < 3 or step % 2:
                    parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_compiled_is_as_deterministic_as_what_is_not(strict: bool) -> None:
    make_deterministic(0, 1, strict=strict)
    Fast(compile=True).called(nn.Linear(2, 2))
    assert torch.are_deterministic_algorithms_enabled() == strict
    assert torch._inductor.config.deterministic == strict
    make_deterministic(0, 1, strict=False)
