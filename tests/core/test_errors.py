"""Messages of errors."""

from __future__ import annotations

from attngrid.core.errors import UnknownNameError


def test_an_unknown_name_lists_the_known_ones_unless_there_are_very_many() -> None:
    ids = [f"imagenet-resnet50-cbam-imagenet_100ep-s{seed}" for seed in range(220)]
    near = str(UnknownNameError("cell", ids[3][:-1] + "x", ids))
    assert "did you mean" in near
    assert "known are" not in near
    few = str(UnknownNameError("module", "cban", ["cbam", "bam", "se"]))
    assert few == "unknown module 'cban': did you mean cbam or bam? known are cbam, bam, se"
    many = str(UnknownNameError("cell", "foo", ids))
    assert many == f"unknown cell 'foo': known are {', '.join(ids[:3])} and 217 more"
