"""What a machine computes on is named, and told apart by what it multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attngrid.core import hardware as processor
from attngrid.core.validation import validate
from attngrid.study.schema import Study
from attngrid.training import run
from attngrid.training.devices import gpu_name
from attngrid.training.loop import too_slow

# Lines of /proc/cpuinfo, of two cores where there are two.
MILAN = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma\n\nflags\t\t: avx2 amx_bf16\n"
GENOA = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n"
SAPPHIRE = "model name\t: Intel(R) Xeon(R) Processor\nflags\t: avx2 avx512f avx512_bf16 amx_bf16\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd crc32\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.fixture(autouse=True)
def asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in the place of /proc/cpuinfo, read again in each test."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", file)
    processor._cpuinfo.cache_clear()
    yield file
    processor._cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "name", "lacks"),
    [
        (MILAN, "AMD EPYC (AVX2)", True),
        (GENOA, "AMD EPYC (AVX-512, bfloat16)", False),
        (SAPPHIRE, "Intel(R) Xeon(R) Processor (AVX-512, bfloat16, AMX)", False),
        (GRAVITON_2, " (NEON)", True),
        (GRAVITON_3, " (SVE, bfloat16)", False),
    ],
)
def test_a_processor_is_named_with_its_instructions(
    asked_anew: Path, cpuinfo: str, name: str, lacks: bool
) -> None:
    asked_anew.write_text(cpuinfo)
    found = processor.processor_name()
    assert found.endswith(name)
    assert (found == name) == ("model name" in cpuinfo)  # elsewhere Python says what it is
    assert processor.lacks_bfloat16() == lacks


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert processor.processor_name()
    assert not processor.lacks_bfloat16()
    assert too_slow("bfloat16", torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "NVIDIA A100-SXM4-40GB"),
        ("", None),
        ("1", "NVIDIA H200"),
        ("1,0", "NVIDIA H200"),
        ("GPU-5f", "NVIDIA H200"),
        ("MIG-77", "NVIDIA A100-SXM4-40GB"),
        ("-1", None),
        ("2", None),
    ],
)
def test_the_gpu_that_a_process_may_see_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str | None
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\ncase $1 in\n*=index,uuid,name) echo '0, GPU-2a, NVIDIA A100-SXM4-40GB'; "
        "echo '1, GPU-5f, NVIDIA H200';;\n*=index) echo 0; echo 1;;\n*) exit 1\nesac\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_name() == name


@pytest.mark.parametrize(("precision", "said"), [("bfloat16", True), ("float32", False)])
def test_a_training_says_that_the_processor_lacks_its_precision(
    tiny: dict[str, Any],
    asked_anew: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    said: bool,
) -> None:
    """Before it trains, which is left out here."""
    caplog.set_level("INFO")
    monkeypatch.chdir(asked_anew.parent)
    monkeypatch.setattr(run, "_train", None)
    asked_anew.write_text(MILAN)
    tiny["compute"]["precision"] = precision
    study = validate(Study, tiny, "t")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        run.run_cell(study, study.cells[0], study.cells[0].record)
    expected = "precision: found bfloat16, for which AMD EPYC (AVX2) has no instructions"
    assert (expected in caplog.text) == said
