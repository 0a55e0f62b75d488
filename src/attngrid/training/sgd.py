"""Stochastic gradient descent, as torch computes it, without what starts torch's compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class SGD:
    """The update of ``torch.optim.SGD``, by torch's own function.

    The class ``torch.optim.SGD`` imports torch's compiler when it is made, which takes more than a
    second of a processor for every cell, and most are trained without it.

    Args:
        parameters: to be trained; those without a gradient are left out of a step.
        learning_rate: of the next step.
        momentum, weight_decay: torch's ``momentum`` and ``weight_decay``.
        nesterov: the gradient is taken where the momentum leads.
        fused: one operator for all parameters, to the same bits or nearly.

    Attributes:
        learning_rate: of the next step; to be set.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
        fused: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.fused = fused
        self.buffers: list[Tensor | None] = [None] * len(self.parameters)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        given = [n for n, parameter in enumerate(self.parameters) if parameter.grad is not None]
        # torch's fused form takes no first momenta beside later ones
        self._step([n for n in given if self.buffers[n] is not None])
        self._step([n for n in given if self.buffers[n] is None])

    def _step(self, numbers: list[int]) -> None:
        parameters: list[Tensor] = [self.parameters[n] for n in numbers]
        buffers = [self.buffers[n] for n in numbers]
        sgd(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            buffers,
            fused=self.fused,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=0,
            nesterov=self.nesterov,
            maximize=False,
        )
        if self.momentum:
            for n, buffer in zip(numbers, buffers, strict=True):
                self.buffers[n] = buffer

    def state_dict(self) -> dict[str, Any]:
        """The momenta by their parameters' numbers, as ``torch.optim.SGD`` names them."""
        return {
            "state": {
                n: {"momentum_buffer": buffer}
                for n, buffer in enumerate(self.buffers)
                if buffer is not None
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``, also from ``torch.optim.SGD``'s."""
        self.buffers = [None] * len(self.parameters)
        for n, of_one in state["state"].items():
            parameter = self.parameters[n]
            self.buffers[n] = of_one["momentum_buffer"].to(parameter.device, parameter.dtype)
