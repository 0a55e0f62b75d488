"""Reserving GPUs of a machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from attngrid.core.errors import AttngridError, ConfigError
from attngrid.training.devices import claimed


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's locks on a machine with two GPUs."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return tmp_path / f"attngrid-gpus-{os.getuid()}"


def test_each_claim_has_a_gpu_of_its_own_while_one_is_free(locks: Path) -> None:
    with claimed(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        os.environ["CUDA_VISIBLE_DEVICES"] = "3,GPU-8"  # as another process sees them
        with claimed(1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-8"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_lock_folder_of_another_user_is_refused(locks: Path) -> None:
    locks.mkdir()
    os.chown(locks, 12345, -1)
    with pytest.raises(AttngridError, match="found user 12345 as its owner"), claimed(1):
        pass


def test_gpus_are_numbered_as_nvidia_smi_does(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another GPU than the reserved one trains, and its name in the record is wrong."""
    with claimed(1):
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    message = "CUDA_DEVICE_ORDER: found 'FASTEST_FIRST'; set PCI_BUS_ID or unset it"
    with pytest.raises(ConfigError, match=message), claimed(1):
        pass
