"""Apply the performance options of a study to a network, such as torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.study.compute import Performance

log = logging.getLogger(__name__)

ATTENTION_PACKAGE = "attngrid.models.attention"
# Before this version, compiled code for a CPU depends on the number of threads, and torch.compile
# has no option ``recompile_limit``.
MINIMUM_TORCH = (2, 14)
# With fewer pixels in a step, a GPU waits for kernel launches longer than it computes. A batch of
# 256 CIFAR images has fewer, a batch of 256 ImageNet images has more.
SMALL_STEP_PIXELS = 2**19
# With fewer pixels in a whole training (ten epochs of CIFAR), compiling takes longer than it saves.
LONG_TRAINING_PIXELS = 2**29


def resolve(
    performance: Performance,
    device: torch.device,
    step_pixels: int,
    *,
    steps: int = 1,
    micro_batches: int = 1,
    sync_bn: bool = False,
) -> Performance:
    """Replace each ``auto`` by a value.

    Args:
        performance: the options of a study.
        device: the device of the training.
        step_pixels: the number of pixels of all images of a step.
        steps: the number of steps in which attention modules run.
        micro_batches: their number in a batch, over all processes. A CUDA graph overwrites its
            gradients when it runs again, so it needs whole batches.
        sync_bn: whether BatchNorm communicates across processes.

    Raises:
        ConfigError: the study asks for compilation, and it is not possible on this machine.
    """
    cuda = device.type == "cuda"
    compiled = performance.compile
    if compiled == "auto":
        long = step_pixels * steps >= LONG_TRAINING_PIXELS
        compiled = not sync_bn if cuda else "attention" if long else False
    if compiled:
        problem = compiler_problem(device.type, attention_only=compiled == "attention")
        if problem and performance.compile != "auto":
            raise ConfigError(
                f"performance.compile: found {compiled}, but torch.compile {problem}; "
                "set it to false"
            )
        if problem:
            log.warning("not compiled, and therefore slower: torch.compile %s", problem)
            compiled = False
    small = step_pixels < SMALL_STEP_PIXELS
    graphs = small if performance.cuda_graphs == "auto" else performance.cuda_graphs
    graphs = cuda and compiled is True and graphs and micro_batches == 1
    return performance.model_copy(update={"compile": compiled, "cuda_graphs": graphs})


@cache
def compiler_problem(device_type: str, *, attention_only: bool = False) -> str | None:
    """Try torch.compile on ``cpu`` or ``cuda``; return why it fails, or None."""
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if (device_type == "cpu" or attention_only) and version < MINIMUM_TORCH:
        return f"needs torch {'.'.join(map(str, MINIMUM_TORCH))}"
    try:
        x = torch.ones(64, device=device_type, requires_grad=True)
        torch.compile(lambda x: (x.sin() * x).sum())(x).backward()
    except Exception as error:  # torch.compile raises many types
        lines = str(error).strip().splitlines() or [""]
        cause = next((line for line in lines if "error:" in line), lines[0])
        return f"fails here: {type(error).__name__}: {cause}"
    return None


def memory_format(performance: Performance) -> torch.memory_format:
    """The memory format of weights and images."""
    return torch.channels_last if performance.channels_last else torch.contiguous_format


def callable_network(
    model: nn.Module, performance: Performance, batch_size: int = 0
) -> Callable[[Tensor], Tensor]:
    """A function from images N×3×H×W to logits N×classes, with resolved options applied.

    Smaller training batches than ``batch_size``, such as the last one of an epoch, run eagerly:
    compiling for their size would take longer than it saves. The same holds for tests where only
    attention modules are compiled.

    Args:
        model: a network on its device, or its DistributedDataParallel wrapper.
        performance: options without ``auto``.
        batch_size: images of a full micro-batch; 0 compiles for every size.
    """
    compiled: Callable[[Tensor], Tensor] = model
    if performance.compile is True:
        compiled = compile_network(model, cuda_graphs=bool(performance.cuda_graphs))
    elif performance.compile == "attention":
        compile_attention(model)

    def call(images_NCHW: Tensor) -> Tensor:
        images_NCHW = images_NCHW.contiguous(memory_format=memory_format(performance))
        if torch.is_grad_enabled():
            eager = len(images_NCHW) < batch_size
        else:
            eager = performance.compile == "attention"
        if performance.compile and eager:
            with torch.compiler.set_stance("force_eager"):
                logits: Tensor = model(images_NCHW)
                return logits
        if performance.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(images_NCHW)

    return call


def compile_network(model: nn.Module, *, cuda_graphs: bool) -> Callable[[Tensor], Tensor]:
    """A compiled network, which recompiles for each batch size and mode."""
    # torch.compile takes either a mode or options. These options are the mode "reduce-overhead"
    # and the rounding of intermediate values as in eager mode. Without that rounding, the maximum
    # of a map can differ from all values that the backward pass sees; its gradient is then NaN.
    return torch.compile(
        model,
        dynamic=False,
        options={"triton.cudagraphs": cuda_graphs, "emulate_precision_casts": True},
    )


def compile_attention(model: nn.Module) -> None:
    """Compile each attention module of a network separately; the backbone stays eager.

    PyTorch reuses compiled code for modules of the same class and shape.
    """
    modules = list(attention_modules(model))
    for module in modules:
        # All modules share one limit, because they share the code of nn.Module.__call__.
        module.compile(
            dynamic=False,
            recompile_limit=max(8, len(modules)),
            options={"emulate_precision_casts": True},
        )


def attention_modules(model: nn.Module) -> Iterator[nn.Module]:
    """This package's attention modules in a network, without nn.Sequential containers."""
    for child in model.children():
        ours = type(child).__module__.startswith(ATTENTION_PACKAGE)
        if ours and not isinstance(child, nn.Sequential):
            yield child
        else:
            yield from attention_modules(child)
