"""torch.compile: what it needs on a machine, and what it compiles."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

ATTENTION_PACKAGE = "attngrid.models.attention"
# Before this version, the code for a CPU depends on the number of threads, and torch.compile takes
# no limit of recompilations.
MINIMUM_TORCH = (2, 14)


@cache
def compiler_problem(device_type: str, *, attention_only: bool = False) -> str | None:
    """Why torch.compile cannot be used on ``cpu`` or ``cuda``, or None if it can.

    A small function is compiled for a test, because a compiler that is found may still fail.
    """
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if (device_type == "cpu" or attention_only) and version < MINIMUM_TORCH:
        return f"needs torch {'.'.join(map(str, MINIMUM_TORCH))}"
    if device_type == "cuda":
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), "")
        needed = "a C compiler (gcc, or CC in the environment)"
    else:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        needed = "a C++ compiler (g++, or CXX in the environment)"
    if not (words := shlex.split(compiler)) or shutil.which(words[0]) is None:
        return f"needs {needed}"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"needs Python's headers in {headers}"
    try:
        x = torch.ones(64, device=device_type, requires_grad=True)
        torch.compile(lambda x: (x.sin() * x).sum())(x).backward()
    except Exception as error:  # torch.compile raises many types
        first_line = str(error).strip().partition("\n")[0]
        return f"the compiler fails: {type(error).__name__}: {first_line}"
    return None


def compile_network(model: nn.Module, *, cuda_graphs: bool) -> Callable[[Tensor], Tensor]:
    """A compiled form of a network, which recompiles for each batch size and mode."""
    # torch.compile takes either a mode or options. These options are the mode "reduce-overhead"
    # and the rounding of intermediate values as in eager mode. Without that rounding, the maximum
    # of a map can differ from all values that the backward pass sees; its gradient is then NaN.
    return torch.compile(
        model,
        dynamic=False,
        options={"triton.cudagraphs": cuda_graphs, "emulate_precision_casts": True},
    )


def compile_attention(model: nn.Module) -> None:
    """Compile the attention modules of a network, each by itself, and leave the backbone eager.

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
    """The attention modules of this package in a network; of a sequence of modules, each one."""
    for child in model.children():
        if type(child).__module__.startswith(ATTENTION_PACKAGE) and not isinstance(
            child, nn.Sequential
        ):
            yield child
        else:
            yield from attention_modules(child)
