"""Settings of a site or a cluster with any content: usable, or one error that names the file."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attngrid.core.errors import ConfigError
from attngrid.study.cluster import Cluster, cluster
from attngrid.study.paths import data_folder, results_folder
from made_up import spoil

CLUSTER = {
    "partition": "gpu,long",
    "cpu_partition": "cpu",
    "account": "vision",
    "qos": "normal",
    "constraint": "a100&nvlink",
    "gpu_request": "gres",
    "gpu_model": "a100",
    "extra": ["--mail-type=FAIL", "--comment=a b"],
    "time_limit": "1-12:00:00",
    "warning_s": 300,
    "gpu": "A100",
    "margin": 1.5,
}
SITE = {"data": "$HOME/data", "results": "~/results"}
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def spoilt(content: dict[str, Any], data: st.DataObject, file: Path) -> Path:
    """Write the content with up to three changes; a name as $ATTNGRID_CLUSTER gives it."""
    content = copy.deepcopy(content)
    spoil(content, data)
    file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    return file


@pytest.mark.fuzz
@FUZZ
@given(data=st.data())
def test_wrong_settings_of_a_cluster_are_one_error_or_options_of_sbatch(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spoilt(CLUSTER, data, tmp_path / "cluster.yaml")
    monkeypatch.setenv("ATTNGRID_CLUSTER", str(file))
    try:
        found = cluster()
    except ConfigError as error:
        message = str(error)
    else:
        require_options(found)
        return
    assert message.startswith(str(file))


def require_options(found: Cluster) -> None:
    assert 1 <= found.runtime(3600.0, found.limit()) <= found.limit()
    for gpus in (0, 2):
        options = found.options(gpus, signal=True)
        assert f"--signal=USR1@{found.warning_s}" in shlex.split(options["slurm_extra"])
        for name in ("slurm_partition", "slurm_account", "qos", "constraint", "gpu_model", "gres"):
            word = options.get(name, "word")
            assert shlex.split(word) == [word], name  # one word in a shell


@pytest.mark.fuzz
@FUZZ
@given(data=st.data())
def test_wrong_settings_of_a_site_are_one_error_or_folders(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spoilt(SITE, data, tmp_path / "site.yaml")
    monkeypatch.setenv("ATTNGRID_SITE", str(file))
    for folder in (data_folder, results_folder):
        try:
            message = f"{file}: {folder()}"
        except ConfigError as error:
            message = str(error)
        assert message.startswith((str(file), "site.yaml: "))
        assert not message.startswith(f"{file}: ~")
