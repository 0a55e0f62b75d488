"""What makes a training faster and not another one, each with its switch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from attngrid.core.errors import ConfigError
from attngrid.core.types import Strict
from attngrid.training.compile import missing, prepare

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Pixels of a step's images: with fewer a GPU waits for its next kernel more than it computes. A
# batch of 256 of CIFAR's is, one of 256 of ImageNet's is not; not measured yet.
SMALL = 2**19
# Pixels of a training's images, each as often as it is taken, ten epochs of CIFAR's: with fewer the
# compiler takes more of a CPU's time than it saves.
LONG = 2**29


class Fast(Strict):
    """Recorded, and no part of a cell's identity: on and off agree but for rounding."""

    channels_last: bool = Field(True, description="a pixel's channels side by side in memory")
    attention: bool = Field(True, description="forms that measured best; false: the literal ones")
    convolutions: bool = Field(
        True, description="bfloat16 gradients on a CPU in the form that measured best"
    )
    fused_sgd: bool = Field(True, description="all parameters in one kernel")
    unfilled: bool = Field(
        True, description="new memory as it is; false: filled where training is deterministic"
    )
    compile: bool | Literal["auto", "attention"] = Field(
        "auto",
        description="torch.compile; attention: of the attention modules alone; "
        "auto: true on CUDA, attention on a CPU where a training is long",
    )
    cuda_graphs: bool | Literal["auto"] = Field(
        "auto", description="of what is compiled; auto: where a step is small"
    )

    def resolved(
        self,
        device: torch.device,
        pixels: int,
        *,
        steps: int = 1,
        parts: int = 1,
        sync_bn: bool = False,
    ) -> Fast:
        """With ``auto`` decided, for a device, a step's pixels and parts, and so many steps.

        A graph's gradients are gone when it runs again, before they could be added to others.

        Raises:
            ConfigError: what is to be compiled cannot be, for want of a compiler.
        """
        cuda = device.type == "cuda"
        compiled = self.compile
        if compiled == "auto":
            compiled = not sync_bn if cuda else "attention" if pixels * steps >= LONG else False
            if compiled and (what := missing(device)):
                warnings.warn(f"not compiled, which would be faster: needs {what}", stacklevel=2)
                compiled = False
        elif compiled and (what := missing(device)):
            raise ConfigError(f"fast.compile: found {compiled}, which needs {what}; false does not")
        graphs = pixels < SMALL if self.cuda_graphs == "auto" else self.cuda_graphs
        graphs = cuda and compiled is True and graphs and parts == 1
        return self.model_copy(update={"compile": compiled, "cuda_graphs": graphs})

    @property
    def layout(self) -> torch.memory_format:
        """Of weights and images in memory."""
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format

    def called(self, model: nn.Module, images: int | None = None) -> Callable[[Tensor], Tensor]:
        """A model as it is to be called: images N×3×H×W to logits N×classes.

        Of ``resolved`` ones. What is compiled is kept by PyTorch and found by the next cell.
        ``CompiledModules`` compiles attention alone.

        Args:
            model: on its device.
            images: of a part of a full batch; the last one of an epoch, with fewer, is trained on
                as it is, and not compiled for its own size. None: all sizes are compiled.
        """
        import torch

        run: Callable[[Tensor], Tensor] = model
        if self.compile is True:
            prepare(rounding=True)
            # a test's batch has another size: kernels of its own, not slower ones for all
            mode = "reduce-overhead" if self.cuda_graphs else None
            run = torch.compile(model, dynamic=False, mode=mode)

        def call(images_NCHW: Tensor) -> Tensor:
            if self.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            last = images is not None and len(images_NCHW) < images and torch.is_grad_enabled()
            return (model if last else run)(images_NCHW.contiguous(memory_format=self.layout))

        return call


ALL = Fast()
