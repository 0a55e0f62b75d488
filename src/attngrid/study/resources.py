"""What a training needs: cores, memory, GPUs, a prepared dataset, optional packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from attngrid.core.errors import ConfigError
from attngrid.data.prepare import report_file
from attngrid.data.registry import find_dataset
from attngrid.models.registry import find_attention, find_backbone
from attngrid.study.schema import Study

# Memory of the two Snakemake processes inside each job.
SNAKEMAKE_MB = 600


def cores(study: Study, cell_id: str) -> int:
    """CPU cores of a training, for its threads and the processes that read image files."""
    in_files = find_dataset(study.training(cell_id).dataset).target is None
    per_process = study.compute.threads + (study.compute.workers if in_files else 0)
    return per_process * study.compute.gpus


def memory_mb(study: Study, cell_id: str) -> int:
    """Main memory of a training's job in MB, with the job's own Snakemake processes."""
    dataset = find_dataset(study.training(cell_id).dataset)
    size = dataset.stored_size or dataset.input_size
    if dataset.target is None:
        images_mb = 1000 * study.compute.workers
    elif dataset.images is None:
        images_mb = 4000
    else:  # one byte for each value, and a second copy during loading
        images_mb = 2 * sum(dataset.images) * 3 * size**2 // 10**6
    return SNAKEMAKE_MB + (3000 + images_mb) * study.compute.gpus


def prepared(study: Study) -> dict[str, str]:
    """The datasets that must be prepared before a training, by the stem of their report."""
    names = dict.fromkeys(cell.dataset for cell in study.trainings.values())
    return {report.stem: name for name in names for report in _reports(study, name)}


def train_needs(study: Study, cell_id: str) -> list[Path]:
    """Files that a training needs: its dataset's report and its best hyperparameters."""
    cell = study.training(cell_id)
    return [*_reports(study, cell.dataset), *filter(None, [cell.choice])]


def _reports(study: Study, dataset: str) -> list[Path]:
    """The report of a dataset that must be prepared; empty for other datasets."""
    return [report_file(dataset, study.data_folder)] if find_dataset(dataset).prepare else []


def require_runnable(study: Study, cells: Iterable[str] | None = None) -> None:
    """Check before the first training that the cells of these ids, or all cells, can be trained.

    Raises:
        ConfigError: a dataset's files are missing and cannot be downloaded, or an optional package
            is not installed.
    """
    wanted = [study.training(cell) for cell in (study.trainings if cells is None else cells)]
    for cell in wanted:
        for entry in (find_backbone(cell.backbone), find_attention(cell.attention)):
            entry.require_package()
        cell.recipe.require_packages()
    for name in dict.fromkeys(cell.dataset for cell in wanted):
        _require_files(study, name)


def _require_files(study: Study, name: str) -> None:
    dataset, folder = find_dataset(name), study.data_folder
    missing = [file for file in dataset.files if not (folder / file).exists()]
    packed = [folder / file for file in dataset.archives if not (folder / file).exists()]
    if not missing or (dataset.archives and (study.data.download or not packed)):
        return
    how = f"put it there (attngrid does not download {name})"
    if dataset.archives:
        how = (
            "set `data: {download: true}` to download it, or put "
            f"{' and '.join(map(str, packed))} there (docs/datasets.md)"
        )
    raise ConfigError(f"study {study.study}: there is no {folder / missing[0]}; {how}")


def require_captum(study: Study) -> None:
    """Raise a ConfigError if captum, which makes the attention maps, is not installed."""
    if find_spec("captum") is None:
        raise ConfigError(
            f"study {study.study}: the attention maps need captum, which is not installed: "
            'pip install "attngrid[maps]", or remove `maps` from its `figures`'
        )
