"""The processor at hand: how many of its cores are ours, its name, what it multiplies."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions as Linux names them: those for bfloat16 on x86 and on ARM, and what tells processors
# apart that a virtual machine gives the same name, the widest first.
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def processors() -> int:
    """Cores that this process may use: a batch system may have lent a part of the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def processor_name() -> str:
    """Its model as the system names it, and its vectors: ``AMD EPYC (AVX-512, bfloat16)``."""
    model = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    known = instructions()
    parts = [next((name for flag, name in VECTORS.items() if flag in known), "")]
    parts += ["bfloat16"] * bool(BFLOAT16 & known) + ["AMX"] * has_amx()
    found = ", ".join(filter(None, parts))
    return f"{model} ({found})" if found else model


@cache
def instructions() -> frozenset[str]:
    """Those that Linux names; none elsewhere."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def peak_memory_mb(ru_maxrss: int) -> float:
    """The most memory of a process, of what the system says it used: bytes on macOS, or kB."""
    return ru_maxrss / 1e6 if sys.platform == "darwin" else ru_maxrss * 1024 / 1e6


def has_amx() -> bool:
    """Whether it multiplies tiles of bfloat16."""
    return "amx_bf16" in instructions()


def lacks_bfloat16() -> bool:
    """Whether it is known to multiply no bfloat16, which then takes longer than float32."""
    known = instructions()
    return bool(known) and not BFLOAT16 & known


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; empty elsewhere."""
    try:
        first, *_ = CPUINFO.read_text("utf-8").split("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
