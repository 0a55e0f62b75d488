"""Reserve GPUs, so that cells that run at the same time on a machine do not share one."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attngrid.core.errors import AttngridError, ConfigError


@contextmanager
def claimed(number: int) -> Iterator[None]:
    """Reserve ``number`` of the visible GPUs, and make only these visible to CUDA.

    Call it before CUDA starts. It does nothing if no more than ``number`` GPUs are visible. If
    too few are free, this process shares some with others.

    Raises:
        AttngridError: another user owns the folder of this user's locks.
        ConfigError: CUDA_DEVICE_ORDER is not that of nvidia-smi.
    """
    visible = _visible()
    if number == 0 or len(visible) <= number:
        yield
        return
    # the locks of this machine; each user has a folder of them
    folder = Path(tempfile.gettempdir()) / f"attngrid-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (owner := folder.lstat().st_uid) != os.getuid():  # anybody can make folders in /tmp
        raise AttngridError(f"{folder}: found user {owner} as its owner; remove it, or set TMPDIR")
    with ExitStack() as stack:
        reserved: list[str] = []
        for device in visible:
            lock = FileLock(folder / f"{device.replace('/', '_')}.lock")
            if len(reserved) < number:
                with suppress(Timeout):
                    stack.enter_context(lock.acquire(timeout=0))
                    reserved.append(device)
        in_use = [device for device in visible if device not in reserved]
        reserved += random.sample(in_use, number - len(reserved))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(reserved)
        yield


def trains_on_cpu(device: str, *, elsewhere: bool) -> bool:
    """Whether a study with this ``compute.device`` is trained on a CPU.

    ``auto`` is a GPU where there is one, and on other machines (``elsewhere``) one is assumed.
    """
    return device == "cpu" or (device == "auto" and not elsewhere and gpu_name() is None)


def gpu_name() -> str | None:
    """The name of the first visible GPU, or None if there is no GPU."""
    gpus = _gpus()
    if not gpus or not (visible := _visible()):
        return None
    for index, uuid, name in gpus:
        if index == visible[0] or uuid.startswith(visible[0]):
            return name
    # nvidia-smi does not list MIG instances. With any other unknown name, CUDA sees no GPU.
    return gpus[0][2] if visible[0].startswith("MIG-") else None


def _visible() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES, or all GPUs if it is not set."""
    # CUDA then numbers GPUs as nvidia-smi does; by default the fastest one comes first.
    order = os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if order != "PCI_BUS_ID":
        raise ConfigError(
            f"CUDA_DEVICE_ORDER: found {order!r}; set PCI_BUS_ID or unset it, because GPUs are "
            "reserved and named in the order of nvidia-smi"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return [index for index, _, _ in _gpus()]


def _gpus() -> list[list[str]]:
    """Index, UUID and name of each GPU of this machine."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(", ", 2) for line in done.stdout.splitlines()]
