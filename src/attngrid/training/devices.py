"""Which of the GPUs that a process may see are its own, where cells run beside each other."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claimed(number: int) -> Iterator[None]:
    """Show this process ``number`` GPUs that no other cell on this machine has, while any are free.

    To be called before CUDA is. Where it may see no more than it wants nothing is done; where too
    few are free it shares.
    """
    visible = _visible()
    if number == 0 or len(visible) <= number:
        yield
        return
    with ExitStack() as stack:
        mine: list[str] = []
        for device in visible:
            lock = FileLock(_folder() / f"{device.replace('/', '_')}.lock")
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                continue
            mine.append(device)
            if len(mine) == number:
                break
        shared = [device for device in visible if device not in mine]
        start = os.getpid() % max(1, len(shared))
        mine += (shared[start:] + shared[:start])[: number - len(mine)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        yield


def gpu_name() -> str | None:
    """The first GPU that this process may see, as its driver calls it; None without one."""
    gpus = [line.split(", ", 2) for line in _asked("index,uuid,name")]
    if not gpus or not (visible := _visible()):
        return None
    for index, uuid, name in gpus:
        if index == visible[0] or uuid.startswith(visible[0]):
            return name
    # a part of one is not listed; what is no GPU hides them all
    return gpus[0][2] if visible[0].startswith("MIG-") else None


def _visible() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or else all that the driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return _asked("index")


def _asked(what: str) -> list[str]:
    """What the driver says of each GPU; nothing without one."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _folder() -> Path:
    """Of this machine's locks; each user has one of their own."""
    folder = Path(tempfile.gettempdir()) / f"attngrid-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
