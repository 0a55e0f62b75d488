"""The typed configuration of a study. ``config/schema.json`` is generated from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from attngrid import attention as attentions
from attngrid import backbones, data
from attngrid.cell import Cell, Options, Precision
from attngrid.errors import AttngridError, ConfigError, UnknownNameError
from attngrid.files import write_atomically
from attngrid.training.recipe import Recipe, Strict, shipped_recipes

# What a resident dataset can do to its images; the others belong to image folders.
RESIDENT_TRANSFORMS = frozenset({"random_crop", "flip"})

# Where the shipped table descriptions are.
TABLES = Path("workflow/tables")

Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
FigureName = Literal["modules", "ordering", "accuracy_macs"]
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def _known_backbone(name: str) -> str:
    backbones.find(name)
    return name


def _known_attention(name: str) -> str:
    attentions.find(name)
    return name


class Block(Strict):
    """A part of the grid: every backbone with every attention, recipe and seed."""

    dataset: str = Field(description="a dataset's name")
    backbones: Names = Field(description="names of list_backbones()")
    attentions: Names = Field(description="names of list_attentions(), or my_module.py:MyAttention")
    recipes: Names = Field(description="names of shipped recipes, or of this file's `recipes`")
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = Field(
        description="one training per seed, 0 or more"
    )
    options: Options = Options()

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        data.find(name)
        return name

    @field_validator("backbones")
    @classmethod
    def _known_backbones(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known_backbone, names))

    @field_validator("attentions")
    @classmethod
    def _known_attentions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known_attention, names))


class Compute(Strict):
    """What the cells run on. Precision and threads are part of a cell, the device is not."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    precision: Precision = Field("float32", description="bfloat16: under autocast")
    threads: PositiveInt = Field(1, description="CPU threads a cell uses, the same everywhere")
    deterministic: bool = Field(True, description="refuse operators that are not")


class Data(Strict):
    """Where the images are."""

    folder: str = Field("data", description="holds cifar-100-python/ and so on")
    download: bool = Field(
        False, description="fetch what is missing; nothing else uses the network"
    )


class Study(Strict):
    """One study: its grid of cells and what is rendered from it."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)] = Field(
        description="the name that its results, tables and figures carry"
    )
    title: str = Field("", description="one line for the report")
    grid: Annotated[tuple[Block, ...], Field(strict=False, min_length=1)]
    recipes: dict[str, Recipe] = Field({}, description="recipes of the study's own, by name")
    compute: Compute = Compute()
    data: Data = Data()
    tables: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="names in workflow/tables/, or paths of descriptions of your own"
    )
    figures: Annotated[tuple[FigureName, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _recipes_fit(self) -> Study:
        for number, block in enumerate(self.grid):
            for name in block.recipes:
                where = f"grid.{number}.recipes"
                try:
                    recipe = self.recipe(name)
                except UnknownNameError as error:
                    raise ValueError(f"{where}: {error}") from None
                if data.find(block.dataset).target is None:
                    continue
                kinds = {t.kind for t in (*recipe.train_transforms, *recipe.test_transforms)}
                if kinds - RESIDENT_TRANSFORMS:
                    raise ValueError(
                        f"{where}: {name!r} has the transforms "
                        f"{', '.join(sorted(kinds - RESIDENT_TRANSFORMS))}; images of "
                        f"{block.dataset} can have {', '.join(sorted(RESIDENT_TRANSFORMS))}"
                    )
        return self

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
                for backbone in block.backbones:
                    for seed in block.seeds:
                        for attention in block.attentions:
                            yield Cell(
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
                            )

    @cached_property
    def trainings(self) -> dict[str, Cell]:
        """The cells to train, by id: those that compute the same share one."""
        trainings: dict[str, Cell] = {}
        for cell in self.cells:
            trainings.setdefault(cell.id, cell)
        return trainings

    def training(self, cell_id: str) -> Cell:
        """The cell of an id."""
        if cell_id not in self.trainings:
            raise UnknownNameError(f"cell of study {self.study}", cell_id, self.trainings)
        return self.trainings[cell_id]

    # Where things are, relative to the folder the study runs in.

    @property
    def results(self) -> Path:
        """The folder of the study's measured numbers."""
        return Path("results") / self.study

    @property
    def file(self) -> Path:
        """The resolved configuration, which the commands of the workflow read."""
        return self.results / "study.json"

    @property
    def descriptions(self) -> dict[str, Path]:
        """The description of each of the study's tables, by the table's name."""
        files = [
            Path(table) if table.endswith((".yaml", ".yml")) else TABLES / f"{table}.yaml"
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
        return [*tables, *figures, self.results / "report.html"]

    def require_runnable(self) -> None:
        """Raise where a cell could not be trained here, before the first one is started.

        Raises:
            ConfigError: a dataset that this version cannot read, or one that is to be
                fetched without the study asking for it.
        """
        for name in dict.fromkeys(cell.dataset for cell in self.trainings.values()):
            dataset = data.find(name)
            if dataset.target is None:
                readable = [known for known, d in data.DATASETS.items() if d.target]
                raise ConfigError(
                    f"study {self.study}: this version cannot read the images of {name!r}, so its "
                    f"cells cannot be trained (it reads {', '.join(readable)}). `snakemake "
                    "current` renders what has been measured, `snakemake complexity` counts models"
                )

    def write(self) -> None:
        """Write the resolved configuration, if it is not what is there already."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        if not self.file.is_file() or self.file.read_text("utf-8") != text:
            write_atomically(self.file, text)


class CountedModels(Strict):
    """Models to count at one input size and number of classes."""

    backbones: Names
    attentions: Names
    stem: Literal["imagenet", "cifar"]
    num_classes: PositiveInt
    input_size: PositiveInt

    @field_validator("backbones")
    @classmethod
    def _known_backbones(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known_backbone, names))

    @field_validator("attentions")
    @classmethod
    def _known_attentions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known_attention, names))


class CountedGrid(Strict):
    """``config/complexity.yaml``: the models of ``results/complexity.csv``."""

    models: Annotated[tuple[CountedModels, ...], Field(strict=False, min_length=1)]


def validate(model: type[AnyModel], content: Any, source: str | os.PathLike[str]) -> AnyModel:
    """Check parsed YAML against a model.

    Raises:
        ConfigError: one line a mistake: file, key, what was found, what is accepted.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source}: expected keys and values, found {type(content).__name__}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(model, error, source))) from None
    except AttngridError as error:
        raise ConfigError(f"{source}: {error}") from None


def _lines(model: type[BaseModel], error: ValidationError, source: object) -> Iterator[str]:
    items = error.errors(include_url=False)
    deepest = {item["loc"] for item in items}
    for item in items:
        if item["type"] == "too_short" and any(
            location[: len(item["loc"])] == item["loc"] != location for location in deepest
        ):
            continue  # pydantic counts only the good items; the bad ones have lines of their own
        key = ".".join(map(str, item["loc"]))
        prefix = f"{source}: {key}: " if key else f"{source}: "
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, item["loc"][:-1])
            try:
                raise UnknownNameError("key", str(item["loc"][-1]), known)
            except UnknownNameError as unknown:
                yield f"{prefix}{unknown}"
        elif item["type"] == "missing":
            yield f"{prefix}is required and not there"
        elif item["type"] == "value_error":
            yield f"{prefix}{message}"
        elif item["type"] == "too_short":
            yield f"{prefix}found {item['input']!r}; needs at least 1 item"
        else:
            message = message[0].lower() + message[1:]
            yield f"{prefix}found {item['input']!r}; {message}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at a location accepts."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return node

    for step in location:
        node = resolve(node)
        if mapping := node.get("discriminator", {}).get("mapping"):
            node = {"$ref": mapping[step]}
        elif isinstance(step, int):
            node = node["items"]
        else:
            node = node.get("properties", {}).get(step) or node.get("additionalProperties", {})
    return list(resolve(node).get("properties", {}))


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Parse a YAML (or JSON) file safely.

    Raises:
        ConfigError: no such file, or no YAML; the message names file and line.
    """
    try:
        text = Path(file).read_text("utf-8")
        # YAML 1.1 takes JSON's 1e-05 for a word
        return json.loads(text) if Path(file).suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: no YAML: {getattr(error, 'problem', error)}") from None


def name_sources(files: Iterable[str | os.PathLike[str]]) -> str:
    """The configuration files of a run as an error message names them."""
    names = [os.path.relpath(file) for file in files]
    return " with ".join(names) or "--config"


def load_study(file: str | os.PathLike[str]) -> Study:
    """Read and check a study's configuration.

    Raises:
        ConfigError: as ``read_yaml`` and ``validate`` say.
    """
    return validate(Study, read_yaml(file), file)


def json_schema() -> str:
    """The JSON schema of a study's configuration, for editors."""
    schema = Study.model_json_schema()
    schema["title"] = "attngrid study"
    return json.dumps(schema, indent=2) + "\n"
