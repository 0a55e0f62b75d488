"""Torch's compiler: what it needs of a machine, and attention modules compiled one by one."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PACKAGE = "attngrid.models.attention"
SINCE = (2, 14)


def missing(device: torch.device) -> str | None:
    """What torch's compiler would need for a device and does not find, or None.

    Before ``SINCE`` its code for CPUs is another's for other threads, and rounds as it likes. It
    writes C++, for a GPU C that starts its kernels, and builds that with the machine's compiler.
    """
    if device.type == "cuda":
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), "")
        what = "a C compiler (gcc, or CC in the environment)"
    else:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        what = "a C++ compiler (g++, or CXX in the environment)"
        import torch

        if tuple(map(int, torch.__version__.split(".")[:2])) < SINCE:
            return f"torch {'.'.join(map(str, SINCE))}"
    if not (words := shlex.split(compiler)) or shutil.which(words[0]) is None:
        return what
    headers = Path(sysconfig.get_paths()["include"])
    return None if (headers / "Python.h").is_file() else f"Python's headers in {headers}"


def prepare(*, rounding: bool) -> None:
    """Set the compiler up, before it is called first.

    Args:
        rounding: of all that would be rounded uncompiled. The compiler leaves it out between what
            it joins; a maximum of what was not rounded may then be kept rounded for the backward
            pass, which finds nothing equal to it, and its gradient is undefined.
    """
    import torch
    from torch._inductor import config

    config.emulate_precision_casts = rounding
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        # it would use all of the machine's processors, whoever else does
        config.compile_threads = torch.get_num_threads()
    if shutil.which("openssl") is None:  # by which it finds headers that it compiled before
        config.cpp_cache_precompile_headers = False
    # the compiler has a switch of its own, and this sets both
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())


class CompiledModules:
    """A model's attention modules, compiled for the training steps of full batches.

    Joined to a few loops, a module passes over its map far less often than operator by operator;
    the backbone's convolutions are left to the libraries that have them. Each shape of a map takes
    the compiler some ten seconds, or less than one where it kept what it made of it before. Tests,
    and the last batch of an epoch, are too few for that and run as they are.

    Where the compiler fails this is said once, and all go on as they are.

    Args:
        model: whose modules of this package are to be called in their compiled form.
        images: of a part of a full batch.

    Attributes:
        failed: the compiler did; may be set, to go on with what did before.
    """

    def __init__(self, model: nn.Module, images: int) -> None:
        self.images = images
        self.failed = False
        self.modules = list(parts_of_attention(model))
        if self.modules:
            prepare(rounding=False)
            from torch._dynamo import config
            from torch._functorch import config as gradients

            # modules of a class share their code, and each shape counts as compiling it again
            config.recompile_limit = max(config.recompile_limit, len(self.modules))
            config.optimize_ddp = False  # which would split what is compiled within a network
            # a gradient's code is made with its function's, where a failure is not yet too late
            gradients.force_non_lazy_backward_lowering = True
        for module in self.modules:
            self._compile(module)

    def _compile(self, module: nn.Module) -> None:
        import torch

        as_it_is = module.forward
        compiled = torch.compile(as_it_is, dynamic=False)

        def forward(x: Tensor) -> Tensor:
            out: Tensor
            if self.failed or not module.training or len(x) != self.images:
                out = as_it_is(x)
                return out
            try:
                out = compiled(x)
            except Exception as error:  # it has many; one that is not its own comes again
                out = as_it_is(x)
                self.failed = True
                first = str(error).strip().partition("\n")[0]
                warnings.warn(f"not compiled: {type(error).__name__}: {first}", stacklevel=2)
            return out

        module.forward = forward

    def release(self) -> None:
        """Leave the modules as they were."""
        for module in self.modules:
            del module.forward


def parts_of_attention(model: nn.Module) -> Iterator[nn.Module]:
    """This package's attention modules, of those that are a sequence of others each of these.

    Maxima are then of what a part is given, which lies in memory, rounded.
    """
    from torch import nn

    for child in model.children():
        if type(child).__module__.startswith(PACKAGE) and not isinstance(child, nn.Sequential):
            yield child
        else:
            yield from parts_of_attention(child)
