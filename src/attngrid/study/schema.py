"""The typed configuration of a study. ``config/schema.json`` is generated from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from attngrid.core.errors import ConfigError, UnknownNameError, listed
from attngrid.core.files import expand, read_yaml, shipped, write_atomically
from attngrid.core.types import Count, Strict
from attngrid.core.validation import STUDY_NAME, validate
from attngrid.data.registry import find_dataset
from attngrid.models.registry import find_attention, find_backbone
from attngrid.study import checks
from attngrid.study.cell import Cell, cell_names
from attngrid.study.compute import Compute
from attngrid.study.options import Attention, Backbone, Dataset, Listed, Options, RecipeName, Seeds
from attngrid.study.paths import data_folder as site_data_folder
from attngrid.study.paths import results_folder
from attngrid.study.recipe import Recipe, shipped_recipes
from attngrid.study.tuning import Tuning

# The configuration that Snakemake reads, in a checkout and in a study folder.
DEFAULTS = (Path("config/config.yaml"), Path("study.yaml"))
# The folder of the shipped table descriptions.
TABLES = Path("workflow/tables")

FigureName = Literal["gains", "modules", "ordering", "accuracy_macs", "maps", "maf_curve"]


class Block(Strict):
    """A part of the grid: every backbone with every attention, recipe and seed."""

    dataset: Dataset = Field(
        description="a dataset's name, imagefolder:PATH, or my_dataset.py:MyDataset"
    )
    backbones: Listed[Backbone] = Field(
        description="names of list_backbones(), networks of libraries such as timm:resnet50 and "
        "torchvision:resnet50, or my_backbone.py:MyBackbone"
    )
    attentions: Listed[Attention] = Field(
        description="names of list_attentions(), timm:eca and other layers of timm, controls "
        "such as none_wide:csm, or my_module.py:MyAttention"
    )
    recipes: Listed[RecipeName] = Field(description="names of shipped recipes or of `recipes`")
    seeds: Seeds = Field(
        description="one training per seed, 0 or more; or such a list for each tier: {1: [0]}"
    )
    options: Options = Options()

    @model_validator(mode="after")
    def _check(self) -> Block:
        checks.check_options(self)
        return self

    @property
    def tiers(self) -> dict[int, tuple[int, ...]]:
        """The seeds of each tier; a list of seeds is tier 1."""
        return self.seeds if isinstance(self.seeds, dict) else {1: self.seeds}


class Data(Strict):
    """Where the images are."""

    folder: str | None = Field(
        None, description="folder of cifar-100-python/ and so on; default: the folder of the site"
    )
    download: bool = Field(
        False, description="download missing archives; nothing else uses the network"
    )


class Keep(Strict):
    """Files that a training keeps besides its record. They change no cell's digest."""

    weights: Literal["none", "last"] = Field(
        "last", description="last: the weights after the last epoch, as safetensors"
    )


class Study(Strict):
    """One study: its grid of cells and what is rendered from it."""

    study: Annotated[str, Field(pattern=STUDY_NAME, max_length=40)] = Field(
        description="name of the study, its results, tables and figures"
    )
    title: str = Field("", description="one line for the report")
    grid: Listed[Block]
    tier: Count | None = Field(
        None, description="train the seeds of the tiers up to this one; default: of all"
    )
    recipes: dict[RecipeName, Recipe] = Field({}, description="the study's own recipes, by name")
    tuning: Tuning | None = Field(
        None, description="trains the grid again, each model with its best hyperparameters"
    )
    compute: Compute = Compute()
    data: Data = Data()
    keep: Keep = Keep()
    claims: str | None = Field(
        None, description="path of the study's own claims.yaml; default: the papers' claims"
    )
    tables: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names in workflow/tables/, or paths of your own descriptions",
    )
    figures: tuple[FigureName, ...] = Field(("gains",), strict=False)

    @model_validator(mode="after")
    def _check(self) -> Study:
        checks.check_names(self)
        checks.check_recipes(self)
        checks.check_tuning(self)
        if self.tier is not None and self.tier not in self.tiers:
            raise ValueError(f"tier: found {self.tier}; the grid has {self.tiers}")
        return self

    def recipe(self, name: str) -> Recipe:
        """A recipe of the study or a shipped recipe."""
        known = {**shipped_recipes(), **self.recipes}
        if name not in known:
            raise UnknownNameError("recipe", name, known)
        return known[name]

    def recipe_of(self, block: Block, name: str) -> Recipe:
        """A recipe with the options of a block."""
        return self.recipe(name).with_options(block.options, find_dataset(block.dataset))

    # The cells.

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the study's tiers in the order of the configuration, each once.

        Tuned recipes give their cells a second time, with tuning.
        """
        return self.cells_to(self.tier or self.tiers[-1])

    @property
    def tiers(self) -> list[int]:
        """The tiers of the grid, in ascending order."""
        return sorted({tier for block in self.grid for tier in block.tiers})

    def cells_to(self, last: int) -> tuple[Cell, ...]:
        """The cells of the tiers up to ``last``, one tier after the other."""
        found: list[Cell] = []
        for tier, block in product(self.tiers, self.grid):
            seeds = block.tiers.get(tier, ()) if tier <= last else ()
            entries = [find_backbone(name) for name in block.backbones]
            entries += [find_attention(name) for name in block.attentions]
            options = block.options.without([entry.accepts for entry in entries])
            for recipe in block.recipes:
                cells = [
                    Cell(
                        study=self.study,
                        dataset=block.dataset,
                        backbone=backbone,
                        attention=attention,
                        recipe_name=recipe,
                        recipe=self.recipe_of(block, recipe),
                        seed=seed,
                        options=options,
                        precision=self.compute.precision,
                        threads=self.compute.threads,
                        micro_batches=self.compute.micro_batches,
                    )
                    for backbone in block.backbones
                    for seed in seeds
                    for attention in block.attentions
                ]
                found += cells
                if (tuning := self.tuning) is not None:
                    found += [
                        cell.tuned(tuning)
                        for cell in cells
                        if tuning.covers(recipe, cell.backbone, cell.attention)
                    ]
        return tuple(dict.fromkeys(found))

    @cached_property
    def trainings(self) -> dict[str, Cell]:
        """The cells to train, by id; cells that compute the same share an id."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            found.setdefault(cell.id, cell)
        return found

    @cached_property
    def choices(self) -> dict[str, Cell]:
        """For each file of best hyperparameters, by its stem, one of the cells that use it."""
        found: dict[str, Cell] = {}
        for cell in self.trainings.values():
            if cell.choice is not None:
                found.setdefault(cell.choice.stem, cell)
        return found

    @cached_property
    def trials(self) -> dict[str, Cell]:
        """The tuning trials of all choices, by id."""
        return {trial.id: trial for cell in self.choices.values() for trial in cell.trials}

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        """All cells to train, and then all trials, by id."""
        return {**self.trainings, **self.trials}

    def training(self, cell_id: str) -> Cell:
        """The cell or trial of an id; UnknownNameError if there is none."""
        if cell_id not in self.by_id:
            raise UnknownNameError(f"cell of study {self.study}", cell_id, self.by_id)
        return self.by_id[cell_id]

    def find_cell(self, prefix: str) -> Cell:
        """The cell or trial of an id or of its unique beginning.

        Raises:
            ConfigError: several ids begin with ``prefix``; UnknownNameError: none does.
        """
        found = [id for id in self.by_id if id.startswith(prefix)]
        if len(found) > 1 and prefix not in found:
            raise ConfigError(
                f"{self.study}: {len(found)} cell ids begin with {prefix!r}: {listed(found)}"
            )
        return self.training(found[0] if len(found) == 1 else prefix)

    @cached_property
    def _order(self) -> dict[str, int]:
        """The rank of each id in the configuration; trials come before their cells."""
        cells = self.trainings.values()
        ids = dict.fromkeys(one.id for cell in cells for one in (*cell.trials, cell))
        return {id: place for place, id in enumerate(ids)}

    def priority(self, cell_id: str) -> float:
        """Between 0 and 1; decreases in the order of the configuration."""
        return 1 - (self._order[cell_id] + 1) / (len(self._order) + 1)

    @property
    def superseded(self) -> dict[str, Path]:
        """Cells without a record whose names have a record of another configuration."""
        known = {file.stem: file for file in sorted((self.results / "records").glob("*.json"))}
        others = {cell_names(id): file for id, file in known.items() if id not in self.trainings}
        return {
            id: others[cell_names(id)]
            for id in self.trainings
            if id not in known and cell_names(id) in others
        }

    @property
    def gpus(self) -> int:
        """GPUs that a training's job requests."""
        return 0 if self.compute.device == "cpu" else self.compute.gpus

    # Files, relative to the folder that the study runs in.

    @cached_property
    def user_files(self) -> list[Path]:
        """The user's Python files that the cells run."""
        names = [
            name
            for block in self.grid
            for name in (block.dataset, *block.backbones, *block.attentions)
        ]
        files = [file for name in names for file in re.findall(r"[^:]+\.py(?=:)", name)]
        return [expand(file) for file in dict.fromkeys(files)]

    @property
    def results(self) -> Path:
        """The folder of the study's records and frames."""
        return results_folder() / self.study

    @property
    def data_folder(self) -> Path:
        """The folder of the datasets."""
        folder = self.data.folder
        return site_data_folder() if folder is None else expand(folder, "data.folder: ")

    @property
    def maps(self) -> Path:
        """The attention maps of the cells whose weights were kept."""
        return self.results / "maps.npz"

    @property
    def file(self) -> Path:
        """The resolved configuration of the last collection."""
        return self.results / "study.json"

    @cached_property
    def snapshot(self) -> Path:
        """The resolved configuration for the jobs of a run.

        Its name has the digest of its content, so a job that starts late reads the configuration
        of its run, even if the study's file was edited since.
        """
        digest = hashlib.sha256(self.resolved().encode()).hexdigest()
        return self.results / "configs" / f"{digest[:12]}.json"

    def write_snapshot(self) -> None:
        """Write the snapshot, unless it is there undamaged."""
        content = self.resolved().encode()
        if not self.snapshot.is_file() or self.snapshot.read_bytes() != content:
            write_atomically(self.snapshot, content)

    def resolved(self) -> str:
        """The configuration with all its defaults, as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration without defaults, so that a new key changes no digest."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def descriptions(self) -> dict[str, Path]:
        """The description of each of the study's tables, by the table's name."""
        files = [
            expand(table, "tables: ")
            if table.endswith((".yaml", ".yml"))
            else shipped(TABLES / f"{table}.yaml")
            for table in self.tables
        ]
        return {file.stem: file for file in files}

    def table_files(self, table: str) -> list[Path]:
        """The files of a table."""
        return [Path(f"tables/{self.study}.{table}.{kind}") for kind in ("tex", "md", "csv")]

    def figure_files(self, figure: str) -> list[Path]:
        """The files of a figure."""
        return [Path(f"figures/{self.study}.{figure}.{kind}") for kind in ("pdf", "png")]

    def outputs(self) -> list[Path]:
        """All tables, figures and the report."""
        tables = [file for table in self.descriptions for file in self.table_files(table)]
        figures = [file for figure in self.figures for file in self.figure_files(figure)]
        return [*tables, *self.table_files("claims"), *figures, self.results / "report.html"]


def load_study(file: str | os.PathLike[str]) -> Study:
    """Read and check a study's configuration.

    Raises:
        ConfigError: the file is wrong; see ``read_yaml`` and ``validate``.
    """
    return validate(Study, read_yaml(file), file)


def find_study_file(text: str | None) -> Path:
    """Find a configuration by its file or by its study's name; None gives the default.

    Raises:
        ConfigError: no default exists here, two files have the same study's name, or no readable
            one has it and another one is not valid.
        UnknownNameError: no study has this name.
    """
    if text is None:
        for file in DEFAULTS:
            if file.is_file():
                return file
        raise ConfigError(f"STUDY is missing: there is no {' and no '.join(map(str, DEFAULTS))}")
    if not re.fullmatch(STUDY_NAME, text) or Path(text).is_file():
        return Path(text)
    studies: dict[str, list[Path]] = {}
    wrong: list[str] = []
    for file in (*sorted(Path("config").glob("*.yaml")), *Path().glob("study.yaml")):
        try:
            content = read_yaml(file)
        except ConfigError as error:
            wrong.append(str(error))
            continue
        if isinstance(content, dict) and "study" in content:
            studies.setdefault(str(content["study"]), []).append(file)
    if wrong and text not in studies:  # it may be in one of these files
        raise ConfigError(f"study {text!r}: may be in a file that is wrong: {'; '.join(wrong)}")
    for file in sorted(results_folder().glob("*/study.json")):
        studies.setdefault(file.parent.name, [file])
    if text not in studies:
        raise UnknownNameError("study", text, studies)
    if len(studies[text]) > 1:
        files = " and ".join(map(str, studies[text]))
        raise ConfigError(f"study {text!r}: found in {files}; give one of these files")
    return studies[text][0]


def json_schema() -> str:
    """The JSON schema of a study's configuration, for editors."""
    schema = Study.model_json_schema()
    schema["title"] = "attngrid study"
    return json.dumps(schema, indent=2) + "\n"
