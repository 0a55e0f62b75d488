"""Processors are named with their instruction sets, and GPUs as the driver names them."""

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

# Lines of /proc/cpuinfo; MILAN has two cores.
MILAN = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma\n\nflags\t\t: avx2 amx_bf16\n"
GENOA = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n"
SAPPHIRE = "model name\t: Intel(R) Xeon(R) Processor\nflags\t: avx2 avx512f avx512_bf16 amx_bf16\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd crc32\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.fixture(autouse=True)
def cpuinfo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in place of /proc/cpuinfo, which is read again in each test."""
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
    cpuinfo_file: Path, cpuinfo: str, name: str, lacks: bool
) -> None:
    cpuinfo_file.write_text(cpuinfo)
    found = processor.processor_name()
    assert found.endswith(name)
    assert (found == name) == ("model name" in cpuinfo)  # else the model name is Python's
    assert processor.lacks_bfloat16() == lacks


def test_an_unknown_processor_gives_no_warning() -> None:
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
def test_gpu_name_is_the_first_visible_gpus(
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


@pytest.mark.parametrize(("precision", "warned"), [("bfloat16", True), ("float32", False)])
def test_a_training_warns_if_the_processor_has_no_bfloat16_instructions(
    tiny: dict[str, Any],
    cpuinfo_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    warned: bool,
) -> None:
    """The warning comes before the training, which this test replaces."""
    caplog.set_level("INFO")
    monkeypatch.chdir(cpuinfo_file.parent)
    monkeypatch.setattr(run, "_train", None)
    cpuinfo_file.write_text(MILAN)
    tiny["compute"]["precision"] = precision
    study = validate(Study, tiny, "t")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        run.run_cell(study, study.cells[0], study.cells[0].record)
    expected = "precision: found bfloat16, for which AMD EPYC (AVX2) has no instructions"
    assert (expected in caplog.text) == warned
