"""The memory of a training process, which has to be settled before the process begins."""

from __future__ import annotations

import os
import sys

# PyTorch asks for its large tensors anew in every step. By default glibc fetches each from the
# system, which clears it page by page, and gives it back. So: none of its own, none given back,
# and in large pages where Linux has them to give.
TUNABLES = {
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": str(2**36),
    "glibc.malloc.top_pad": str(2**28),
    "glibc.malloc.hugetlb": "1",
}
SWITCH = "ATTNGRID_ALLOCATOR"


def allocator() -> str:
    """What this process has: ``tuned``, or the ``system``'s as it is."""
    settings = os.environ.get("GLIBC_TUNABLES", "")
    return (
        "tuned"
        if all(f"{name}={value}" in settings for name, value in TUNABLES.items())
        else "system"
    )


def tune_allocator() -> None:
    """Begin this program anew with glibc's allocator tuned, unless it is, or is not glibc's.

    ``ATTNGRID_ALLOCATOR=system`` turns it off, and settings of the user's own are left alone.
    """
    settings = os.environ.get("GLIBC_TUNABLES", "")
    try:
        ours = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not Linux, or another C library
        ours = False
    if not ours or "glibc.malloc" in settings or os.environ.get(SWITCH) == "system":
        return
    tuned = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    os.environ["GLIBC_TUNABLES"] = f"{settings}:{tuned}".strip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
