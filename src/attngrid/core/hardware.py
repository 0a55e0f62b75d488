"""The processor: its name, its instruction sets, and the cores that this process may use."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Linux's names of the bfloat16 instructions on x86 and ARM.
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
# Vector instructions, the widest first. Virtual machines may give different processors the same
# model name; the instructions distinguish them.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def processors() -> int:
    """Number of cores that this process may use; a batch system may allow only some of them."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def processor_name() -> str:
    """Model name and instructions, such as ``AMD EPYC (AVX-512, bfloat16)``."""
    model = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    known = _instructions()
    found = [name for flag, name in VECTORS.items() if flag in known][:1]
    found += ["bfloat16"] * bool(BFLOAT16 & known) + ["AMX"] * ("amx_bf16" in known)
    return f"{model} ({', '.join(found)})" if found else model


def lacks_bfloat16() -> bool:
    """Whether the processor is known to have no bfloat16 instructions."""
    known = _instructions()
    return bool(known) and not BFLOAT16 & known


def peak_memory_mb(ru_maxrss: int) -> float:
    """Convert ``ru_maxrss``, which is in bytes on macOS and in KiB on Linux."""
    return ru_maxrss / 1e6 if sys.platform == "darwin" else ru_maxrss * 1024 / 1e6


def _instructions() -> set[str]:
    """The processor's instruction sets as Linux names them; empty on other systems."""
    info = _cpuinfo()
    return set((info.get("flags") or info.get("Features") or "").split())


@cache
def _cpuinfo() -> dict[str, str]:
    """The entries of the first core in ``/proc/cpuinfo``; empty on other systems."""
    if not CPUINFO.is_file():
        return {}
    first, *_ = CPUINFO.read_text("utf-8").split("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
