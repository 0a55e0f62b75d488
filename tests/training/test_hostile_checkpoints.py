"""Checkpoints with any content: the one before is used, and the damaged one is kept aside."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.training.checkpoint import Checkpoints

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just(torch.ones(2))
    | st.sampled_from(["cell", "code", "processes", "by_rank", "model"])
)
CONTENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(LEAVES.filter(lambda leaf: not isinstance(leaf, torch.Tensor)), inner)
    ),
    max_leaves=12,
)


class Command:
    """What a pickle of this would do on its reader's machine."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("done",)


def sealed(payload: bytes) -> bytes:
    """A checkpoint's bytes around any payload, with the right checksum."""
    return hashlib.sha256(payload).digest() + payload


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def require_the_one_before(folder: Path, newest: bytes) -> None:
    """Write a sound checkpoint and the given one after it; the sound one must be loaded."""
    checkpoints = Checkpoints(folder / "c.ckpt", "d", 0.0)
    checkpoints.save({"model": {"weight": torch.arange(3)}}, {"epoch": 7})
    checkpoints.save({"model": {"weight": torch.arange(3) + 1}}, {"epoch": 8})
    checkpoints.file.write_bytes(newest)
    found = Checkpoints(folder / "c.ckpt", "d", 0.0).load()
    assert found is not None
    assert found["epoch"] == 7
    assert found["model"]["weight"].tolist() == [0, 1, 2]
    (aside,) = folder.glob("c.ckpt.*")
    assert aside.read_bytes() == newest
    aside.unlink()


@pytest.mark.fuzz
@FUZZ
@given(data=st.data())
def test_changed_bytes_of_a_checkpoint_are_noticed(data: st.DataObject, tmp_path: Path) -> None:
    Checkpoints(tmp_path / "s.ckpt", "d", 0.0).save({"model": {}}, {"epoch": 8})
    content = bytearray((tmp_path / "s.ckpt").read_bytes())
    begin = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(begin, len(content)))
    new = data.draw(st.binary(max_size=8).filter(lambda new: new != content[begin:end]))
    content[begin:end] = new
    require_the_one_before(tmp_path, bytes(content))


@pytest.mark.fuzz
@FUZZ
@given(payload=st.binary(max_size=200) | CONTENTS.map(saved))
def test_any_sealed_content_is_no_checkpoint(payload: bytes, tmp_path: Path) -> None:
    require_the_one_before(tmp_path, sealed(payload))


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_the_one_before(tmp_path, sealed(saved({"cell": "d", "model": Command()})))
    assert not Path("done").exists()
