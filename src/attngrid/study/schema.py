"""The typed configuration of a study. ``config/schema.json`` is generated from it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import read_yaml, shipped, write_atomically
from attngrid.core.types import Strict
from attngrid.core.validation import STUDY_NAME, validate
from attngrid.data.registry import find_dataset, short_name
from attngrid.data.transforms import CropTo, RandomResizedCrop, Resize, Transform
from attngrid.models.registry import find_attention
from attngrid.study.cell import Cell, cell_names
from attngrid.study.cluster import SNAKEMAKE_MB
from attngrid.study.compute import Compute
from attngrid.study.counted import CostGrid, CountedGrid
from attngrid.study.fields import Attention, Backbone, Dataset, Listed, RecipeName
from attngrid.study.labels import attention_label, backbone_label
from attngrid.study.options import Options, Seed
from attngrid.study.paths import data_folder as site_data_folder
from attngrid.study.paths import results_folder
from attngrid.study.recipe import Recipe, shipped_recipes
from attngrid.study.tuning import Tuning

# What can be done to training images and to test images, each once: of datasets in memory, and of
# those in files.
RESIDENT = ("flip", "random_crop", "resize", "crop_to", "brightness"), ("resize", "crop_to")
STREAMED = ("flip", "random_resized_crop", "resize", "crop_to", "brightness"), ("resize", "crop_to")

# Where the shipped table descriptions are.
TABLES = Path("workflow/tables")

FigureName = Literal["modules", "ordering", "accuracy_macs", "maps", "maf_curve"]


class Block(Strict):
    """A part of the grid: every backbone with every attention, recipe and seed."""

    dataset: Dataset = Field(
        description="a dataset's name, imagefolder:PATH, or my_dataset.py:MyDataset"
    )
    backbones: Listed[Backbone] = Field(
        description="names of list_backbones(), or my_backbone.py:MyBackbone"
    )
    attentions: Listed[Attention] = Field(
        description="names of list_attentions(), timm:eca and other layers of timm, controls "
        "such as none_wide:csm, or my_module.py:MyAttention"
    )
    recipes: Listed[RecipeName] = Field(description="shipped recipes, or of this file's `recipes`")
    seeds: Listed[Seed] = Field(description="one training per seed, 0 or more")
    options: Options = Options()

    @model_validator(mode="after")
    def _fewer_classes(self) -> Block:
        known = find_dataset(self.dataset).num_classes
        if self.options.classes is not None and self.options.classes >= known:
            raise ValueError(
                f"options.classes: found {self.options.classes}; {self.dataset} has {known}, "
                "leave it out for all"
            )
        return self

    @model_validator(mode="after")
    def _rates_are_shares(self) -> Block:
        if (rates := self.options.rates) is None:
            return self
        for name in self.attentions:
            entry = find_attention(name)
            entry = find_attention(entry.matches or name)  # what a control is as large as
            count = len(entry.options.get("statistics", ("avg", "std")))
            wrong = len(rates) != count or not math.isclose(sum(rates), 1)
            if "rates" in entry.accepts and not entry.external and wrong:
                raise ValueError(
                    f"options.rates: found {list(rates)}; {name} needs {count} that sum to 1"
                )
        return self


class Data(Strict):
    """Where the images are."""

    folder: str | None = Field(
        None, description="holds cifar-100-python/ and so on; left out: where the site has them"
    )
    download: bool = Field(
        False, description="fetch what is missing; nothing else uses the network"
    )


class Keep(Strict):
    """What is kept of a training beside its record; no part of a cell's identity."""

    weights: Literal["none", "last"] = Field(
        "last", description="last: those after the last epoch, as safetensors"
    )


class Study(Strict):
    """One study: its grid of cells and what is rendered from it."""

    study: Annotated[str, Field(pattern=STUDY_NAME, max_length=40)] = Field(
        description="the name that its results, tables and figures carry"
    )
    title: str = Field("", description="one line for the report")
    grid: Listed[Block]
    recipes: dict[RecipeName, Recipe] = Field({}, description="recipes of the study's own, by name")
    tuning: Tuning | None = Field(
        None, description="trains the grid once more, with each model's best of equally many trials"
    )
    compute: Compute = Compute()
    data: Data = Data()
    keep: Keep = Keep()
    tables: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names in workflow/tables/, or paths of descriptions of your own",
    )
    figures: tuple[FigureName, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Study:
        if shadowed := set(self.recipes) & set(shipped_recipes()):
            raise ValueError(f"recipes.{min(shadowed)}: is a shipped recipe's name; take another")
        for kind, label in (("attentions", attention_label), ("backbones", backbone_label)):
            labels: dict[str, str] = {}
            for name in dict.fromkeys(name for block in self.grid for name in getattr(block, kind)):
                if (other := labels.setdefault(label(name), name)) != name:
                    raise ValueError(
                        f"grid: {other!r} and {name!r} would both be {label(name)!r} in the "
                        "tables; rename a class"
                    )
        folders: dict[str, str] = {}
        for name in dict.fromkeys(block.dataset for block in self.grid):
            if (other := folders.setdefault(short_name(name), name)) != name:
                raise ValueError(
                    f"grid: {other!r} and {name!r} would have the same records; rename a folder"
                )
        if "claims" in self.descriptions:
            raise ValueError("tables: found 'claims', which every study has; take another name")
        if len(self.descriptions) < len(self.tables):
            raise ValueError(
                f"tables: found {list(self.tables)}; each needs a file name of its own"
            )
        return self

    @model_validator(mode="after")
    def _recipes_fit(self) -> Study:
        for number, block in enumerate(self.grid):
            for name in block.recipes:
                try:
                    recipe = self.recipe(name)
                except UnknownNameError as error:
                    raise ValueError(f"grid.{number}.recipes: {error}") from None
                where = f"grid.{number}.recipes: {name!r}"
                for split in ("train", "test"):
                    _fits_images(recipe, split, f"{where}: {split}_transforms", block.dataset)
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Study:
        compute = self.compute
        parts = compute.gpus * compute.gradient_accumulation_steps
        for number, block in enumerate(self.grid):
            for name in block.recipes:
                size = self.recipe(name).batch_size
                if parts > 1 and (size % parts or size < 2 * parts):
                    raise ValueError(
                        f"grid.{number}.recipes: {name!r}: batch_size: found {size}; compute.gpus "
                        f"{compute.gpus} × compute.gradient_accumulation_steps {compute.gradient_accumulation_steps} need a multiple "
                        f"of {parts}, 2 images a part or more"
                    )
        return self

    @model_validator(mode="after")
    def _tuning_fits(self) -> Study:
        if self.tuning is None:
            return self
        in_grid = dict.fromkeys(name for block in self.grid for name in block.recipes)
        for name in self.tuning.recipes or ():
            if name not in in_grid:
                raise ValueError(f"tuning.recipes: {UnknownNameError('recipe', name, in_grid)}")
        for block in self.grid:
            if not any(self._is_tuned(name) for name in block.recipes):
                continue
            dataset, images = find_dataset(block.dataset), self.tuning.validation_images
            classes = block.options.classes or dataset.num_classes
            of_each, rest = divmod(images, classes)
            wrong = f"tuning.validation_images: found {images}; "
            if rest:
                raise ValueError(
                    f"{wrong}needs a multiple of {classes}, as many images of each class of "
                    f"{block.dataset}"
                )
            if dataset.fewest is not None and of_each >= dataset.fewest:
                raise ValueError(
                    f"{wrong}can be {(dataset.fewest - 1) * classes} at most: {block.dataset} has "
                    f"{dataset.fewest} training images of a class, and trials need some of them"
                )
        return self

    def _is_tuned(self, recipe: str) -> bool:
        return self.tuning is not None and recipe in (self.tuning.recipes or (recipe,))

    def recipe(self, name: str) -> Recipe:
        """A recipe of the study's own, or a shipped one."""
        known = {**shipped_recipes(), **self.recipes}
        if name not in known:
            raise UnknownNameError("recipe", name, known)
        return known[name]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells in the order of the configuration, each once."""
        return tuple(dict.fromkeys(self._cells()))

    def _cells(self) -> Iterator[Cell]:
        for block in self.grid:
            for recipe in block.recipes:
                frozen = [
                    Cell(
                        study=self.study,
                        dataset=block.dataset,
                        backbone=backbone,
                        attention=attention,
                        recipe_name=recipe,
                        recipe=self.recipe(recipe),
                        seed=seed,
                        options=block.options,
                        precision=self.compute.precision,
                        threads=self.compute.threads,
                        micro_batches=self.compute.micro_batches,
                    )
                    for backbone in block.backbones
                    for seed in block.seeds
                    for attention in block.attentions
                ]
                yield from frozen
                if self.tuning is not None and self._is_tuned(recipe):
                    yield from (cell.tuned(self.tuning) for cell in frozen)

    @cached_property
    def trainings(self) -> dict[str, Cell]:
        """The cells to train, by id: those that compute the same share one."""
        trainings: dict[str, Cell] = {}
        for cell in self.cells:
            trainings.setdefault(cell.id, cell)
        return trainings

    @property
    def superseded(self) -> dict[str, Path]:
        """Cells without a record whose names have one of another configuration, with that one."""
        known = {file.stem: file for file in sorted((self.results / "records").glob("*.json"))}
        others = {cell_names(id): file for id, file in known.items() if id not in self.trainings}
        return {
            id: others[cell_names(id)]
            for id in self.trainings
            if id not in known and cell_names(id) in others
        }

    @cached_property
    def choices(self) -> dict[str, Cell]:
        """A tuned cell of each choice that trials make, by the choice's name."""
        choices: dict[str, Cell] = {}
        for cell in self.trainings.values():
            if cell.choice is not None:
                choices.setdefault(cell.choice.stem, cell)
        return choices

    @cached_property
    def trials(self) -> dict[str, Cell]:
        """The trials of all choices, by id."""
        return {trial.id: trial for cell in self.choices.values() for trial in cell.trials}

    @cached_property
    def _places(self) -> dict[str, int]:
        """Each cell's place in the configuration's order; trials are before what they choose."""
        places: dict[str, int] = {}
        for cell in self.trainings.values():
            if cell.choice is not None and self.choices[cell.choice.stem] is cell:
                for trial in cell.trials:
                    places.setdefault(trial.id, len(places))
            places[cell.id] = len(places)
        return places

    def priority(self, cell_id: str) -> float:
        """Between 0 and 1, falling in the order of the configuration: what is trained first."""
        return 1 - (self._places[cell_id] + 1) / (len(self._places) + 1)

    @cached_property
    def _all(self) -> dict[str, Cell]:
        return {**self.trainings, **self.trials}

    def has(self, cell_id: str) -> bool:
        """Whether there is a cell or trial of this id."""
        return cell_id in self._all

    def training(self, cell_id: str) -> Cell:
        """The cell or trial of an id."""
        if cell_id not in self._all:
            raise UnknownNameError(f"cell of study {self.study}", cell_id, self._all)
        return self._all[cell_id]

    @cached_property
    def user_files(self) -> list[Path]:
        """The files of the user's own that the cells run."""
        names = dict.fromkeys(
            name
            for block in self.grid
            for name in (block.dataset, *block.backbones, *block.attentions)
        )
        files = [file for name in names for file in re.findall(r"[^:]+\.py(?=:)", name)]
        return [Path(file) for file in dict.fromkeys(files)]

    # Where things are, relative to the folder the study runs in.

    @property
    def results(self) -> Path:
        """The folder of the study's measured numbers."""
        return results_folder() / self.study

    @property
    def data_folder(self) -> Path:
        """The folder of the datasets."""
        return site_data_folder() if self.data.folder is None else Path(self.data.folder)

    @property
    def maps(self) -> Path:
        """The attention maps of the cells whose weights were kept."""
        return self.results / "maps.npz"

    @property
    def file(self) -> Path:
        """The resolved configuration beside the results, as they were last collected."""
        return self.results / "study.json"

    @cached_property
    def snapshot(self) -> Path:
        """The resolved configuration as the jobs of a run read it.

        Its name carries its content, so that a job that starts late reads what its run
        started with, whatever has been edited or dry-run since.
        """
        digest = hashlib.sha256(self.resolved().encode()).hexdigest()
        return self.results / "configs" / f"{digest[:12]}.json"

    @property
    def collected(self) -> Path:
        """A mark that the frames are this configuration's, with all its cells in them."""
        return self.snapshot.with_suffix(".collected")

    @property
    def latest(self) -> Path:
        """Names the mark that the frames were last written with; absent while they are written."""
        return self.snapshot.with_name("latest")

    def drop_outdated_mark(self) -> None:
        """Take the mark away where the frames have since become another configuration's.

        Before a run's jobs are known, and never later: a mark that went while another process
        collects would fail the run that has just made it.
        """
        with suppress(FileNotFoundError):  # others write it meanwhile
            if self.latest.read_text("utf-8") == self.collected.name:
                return
        self.collected.unlink(missing_ok=True)

    def resolved(self) -> str:
        """The configuration with all its defaults, as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of what the configuration says, without defaults: a new key changes no digest."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def write_snapshot(self) -> None:
        """Write the snapshot, once."""
        if not self.snapshot.is_file():
            write_atomically(self.snapshot, self.resolved())

    @property
    def descriptions(self) -> dict[str, Path]:
        """The description of each of the study's tables, by the table's name."""
        files = [
            Path(table) if table.endswith((".yaml", ".yml")) else shipped(TABLES / f"{table}.yaml")
            for table in self.tables
        ]
        return {file.stem: file for file in files}

    def table_files(self, table: str) -> list[Path]:
        """What is rendered of a table."""
        stem = f"{self.study}.{table}"
        return [Path("tables") / f"{stem}.{kind}" for kind in ("tex", "md", "csv")]

    def figure_files(self, figure: str) -> list[Path]:
        """What is rendered of a figure's name."""
        return [Path("figures") / f"{self.study}.{figure}.{kind}" for kind in ("pdf", "png")]

    def outputs(self) -> list[Path]:
        """Everything that is rendered of the study."""
        tables = [file for table in self.descriptions for file in self.table_files(table)]
        figures = [file for figure in self.figures for file in self.figure_files(figure)]
        claims = self.table_files("claims")
        return [*tables, *claims, *figures, self.results / "report.html"]

    def reports(self, cell_id: str) -> list[Path]:
        """The report that a cell's dataset is prepared, if it is one that has to be."""
        return self._reports[self.training(cell_id).dataset]

    @cached_property
    def _reports(self) -> dict[str, list[Path]]:
        from attngrid.data.prepare import report_file

        names = {cell.dataset for cell in self._all.values()}
        return {
            name: [report_file(name, self.data_folder)] if find_dataset(name).prepare else []
            for name in names
        }

    def needs(self, cell_id: str) -> list[Path]:
        """What there must be before a cell is trained: its dataset's report, its choice."""
        choice = self.training(cell_id).choice
        return [*self.reports(cell_id), *([choice] if choice is not None else [])]

    def cores(self, cell_id: str) -> int:
        """What a training keeps busy: its threads, and the processes that read its images."""
        in_files = find_dataset(self.training(cell_id).dataset).target is None
        of_each = self.compute.threads + (self.compute.workers if in_files else 0)
        return of_each * self.compute.gpus

    @property
    def gpus(self) -> int:
        """What a training's job asks for."""
        return 0 if self.compute.device == "cpu" else self.compute.gpus

    def memory_mb(self, cell_id: str) -> int:
        """What a training's job asks for, with the Snakemakes inside it."""
        dataset = find_dataset(self.training(cell_id).dataset)
        size = dataset.stored_size or dataset.input_size
        if dataset.target is None:
            images_mb = 1000 * self.compute.workers
        elif dataset.images is None:
            images_mb = 4000
        else:  # as bytes, once more while they are read
            images_mb = 2 * sum(dataset.images) * 3 * size**2 // 10**6
        return SNAKEMAKE_MB + (3000 + images_mb) * self.compute.gpus

    @cached_property
    def prepared(self) -> dict[str, str]:
        """The datasets that have to be prepared, by the stem of their report."""
        found = {
            report.stem: cell.dataset
            for cell in self.trainings.values()
            for report in self.reports(cell.id)
        }
        return found

    def require_runnable(self, cells: Iterable[str] | None = None) -> None:
        """Raise where a cell could not be trained here, before the first one is started.

        Args:
            cells: the ids of those that are to be trained; all, where it is left out.

        Raises:
            ConfigError: a dataset whose files are neither there nor to be fetched; an optional
                package that is not installed.
        """
        wanted = [self.training(cell) for cell in (self.trainings if cells is None else cells)]
        for cell in wanted:
            find_attention(cell.attention).require_package()
        for name in dict.fromkeys(cell.dataset for cell in wanted):
            self._require_files(name)

    def _require_files(self, name: str) -> None:
        """Raise where a dataset's files are neither there nor to be had."""
        from attngrid.data.prepare import parts_of

        dataset, folder = find_dataset(name), self.data_folder
        missing = [file for file in dataset.files if not (folder / file).exists()]
        archives = [folder / file for file in dataset.archives]
        packed = [file for file in archives if not (file.exists() or parts_of(file))]
        if not missing or (dataset.archives and (self.data.download or not packed)):
            return
        how = f"put it there ({name}'s images are not fetched)"
        if dataset.archives:
            how = (
                "set `data: {download: true}` to have it fetched, or put "
                f"{' and '.join(map(str, packed))} there "
                "(docs/datasets.md)"
            )
        raise ConfigError(f"study {self.study}: there is no {folder / missing[0]}; {how}")

    def require_captum(self) -> None:
        """Raise where the attention maps could not be made.

        Raises:
            ConfigError: captum is not installed.
        """
        if find_spec("captum") is None:
            raise ConfigError(
                f"study {self.study}: the attention maps need captum, which is not installed: "
                'pip install "attngrid[maps]", or take `maps` out of its figures'
            )


def _fits_images(recipe: Recipe, split: str, where: str, dataset_name: str) -> None:
    """Raise where a recipe's transforms cannot be done, or do not make the network's input."""
    dataset = find_dataset(dataset_name)
    resident = dataset.target is not None
    allowed = (RESIDENT if resident else STREAMED)[split == "test"]
    transforms: tuple[Transform, ...] = getattr(recipe, f"{split}_transforms")
    found = [transform.kind for transform in transforms]
    if wrong := [kind for kind in found if kind not in allowed or found.count(kind) > 1]:
        raise ValueError(
            f"{where}: found {', '.join(dict.fromkeys(wrong))}; {split} images of {dataset_name} "
            f"can have {', '.join(allowed)}, each once"
        )
    size: int | None = (dataset.stored_size or dataset.input_size) if resident else None
    shorter = size
    for transform in transforms:
        if (
            isinstance(transform, Resize)
            and resident
            and (transform.size, transform.squash)
            != (
                size,
                True,
            )
        ):
            raise ValueError(
                f"{where}: resize: {dataset_name} is stored at {size}×{size} and not resized; "
                f"{{size: {size}, squash: true}} says so"
            )
        if isinstance(transform, CropTo) and (shorter is None or transform.size > shorter):
            of = "any shape" if shorter is None else f"{shorter} pixels on the shorter side"
            raise ValueError(
                f"{where}: crop_to: found {transform.size}, of images of {of}; resize them first"
            )
        if isinstance(transform, CropTo | RandomResizedCrop):
            size = shorter = transform.size
        elif isinstance(transform, Resize):
            shorter = transform.size
            size = transform.size if transform.squash else None
    if size != dataset.input_size:
        made = "images of any shape" if size is None else f"{size}×{size}"
        raise ValueError(
            f"{where}: make {made} of {dataset_name}, whose networks see "
            f"{dataset.input_size}×{dataset.input_size}; end with crop_to: "
            f"{{size: {dataset.input_size}}}"
        )


def load_study(file: str | os.PathLike[str]) -> Study:
    """Read and check a study's configuration.

    Raises:
        ConfigError: as ``read_yaml`` and ``validate`` say.
    """
    content = read_yaml(file)
    if isinstance(content, Mapping) and content and "study" not in content:
        for kind, command in ((CountedGrid, "complexity"), (CostGrid, "cost")):
            if set(content) <= set(kind.model_fields):
                raise ConfigError(f"{file}: is no study, but what `attngrid {command}` takes")
    return validate(Study, content, file)


def json_schema() -> str:
    """The JSON schema of a study's configuration, for editors."""
    schema = Study.model_json_schema()
    schema["title"] = "attngrid study"
    return json.dumps(schema, indent=2) + "\n"
