"""What a table shows, as data: the typed form of the files in ``workflow/tables/``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from attngrid.core.errors import ConfigError
from attngrid.core.files import home, read_yaml, shipped
from attngrid.core.types import Strict
from attngrid.core.validation import validate
from attngrid.study.fields import Attention, Backbone, Listed
from attngrid.study.schema import Study

Counted = Literal[
    "params",
    "macs",
    "fvcore_total",
    "torch_macs",
    "conv_macs",
    "linear_macs",
    "product_macs",
    "norm_flops",
    "other_flops",
]
Measured = Literal[
    "top1_error",
    "top5_error",
    "top1_accuracy",
    "top5_accuracy",
    "best_top1_error",
    "best_top5_error",
    "best_top1_accuracy",
    "best_top5_accuracy",
    "top1_selection",
    "top5_selection",
]
Cost = Literal[
    "latency_ms",
    "latency_ratio",
    "inference_images_per_s",
    "inference_ratio",
    "training_images_per_s",
    "training_ratio",
    "peak_memory_mb",
]


class Column(Strict):
    """One quantity; it makes a published, a counted or a measured column, or several of them."""

    title: str
    published: str | None = Field(None, description="column of the published CSV")
    counted: Counted | None = Field(None, description="column of results/complexity.csv")
    measured: Measured | None = Field(None, description="mean over seeds, from the study")
    cost: Cost | None = Field(None, description="column of results/cost.csv")
    recipe: Literal["learning_rate", "weight_decay"] | None = Field(
        None, description="of the recipe; where it is tuned, the chosen one"
    )
    unit: float = Field(
        1.0, gt=0, strict=False, description="divides counted, cost and recipe values"
    )
    decimals: NonNegativeInt = 2

    @model_validator(mode="after")
    def _something(self) -> Column:
        if not (self.published or self.counted or self.measured or self.cost or self.recipe):
            raise ValueError("names none of published, counted, measured, cost and recipe")
        return self


class CountedAt(Strict):
    """The geometry whose counts fill the counted columns; left out, the study's own."""

    stem: Literal["imagenet", "cifar"]
    num_classes: int
    input_size: int

    @property
    def title(self) -> str:
        """The head over the counted columns."""
        return f"Counted: {self.input_size}×{self.input_size}, {self.num_classes} classes"


class Models(Strict):
    """Rows of a table: every backbone with every attention, in this order."""

    backbones: Listed[Backbone]
    attentions: Listed[Attention]


class Description(Strict):
    """What a table shows: one file in ``workflow/tables/``."""

    caption: str
    published: str | None = Field(None, description="file in reference/ with the printed figures")
    published_title: str = Field("Published", description="head over the published columns")
    counted_at: CountedAt | None = None
    attentions: Listed[Attention] | None = Field(
        None, description="which of the study's cells join the published rows; left out: all"
    )
    models: Listed[Models] | None = Field(
        None, description="the rows; left out: the published ones, then the study's own"
    )
    conditions: Literal["columns", "rows"] = Field(
        "columns",
        description="whether what a study varies beside its models is set beside or below",
    )
    columns: Listed[Column]

    @model_validator(mode="after")
    def _published_from_somewhere(self) -> Description:
        if self.published is None and any(column.published for column in self.columns):
            raise ValueError("published: is missing, and a column names a published figure")
        return self

    @model_validator(mode="after")
    def _operators_are_of_the_full_size(self) -> Description:
        at_study_size = {"params", "macs", "fvcore_total"}
        for number, column in enumerate(self.columns):
            if column.counted and not self.counted_at and column.counted not in at_study_size:
                raise ValueError(f"columns.{number}.counted: {column.counted!r} wants counted_at")
            if column.cost and not self.counted_at:
                raise ValueError(f"columns.{number}.cost: {column.cost!r} wants counted_at")
        return self


def load_description(file: Path) -> Description:
    """Read and check a table description.

    Raises:
        ConfigError: one line a mistake, with file, key, what was found and what is accepted.
    """
    return validate(Description, read_yaml(file), file)


def read_published(
    description: Description, file: Path, reference: Path
) -> dict[tuple[str, str], dict[str, str]]:
    """The printed figures, as printed, by backbone and attention.

    Raises:
        ConfigError: the file, or a column that the description names, is not there, or a
            model has two rows.
    """
    if description.published is None:
        return {}
    source = shipped(reference / description.published)
    if not source.is_file():
        folders = {reference, home() / reference}
        known = sorted({other.name for folder in folders for other in folder.glob("*.csv")})
        raise ConfigError(
            f"{file}: published: found {description.published!r}, {reference} has "
            f"{', '.join(known)}"
        )
    with source.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        header, rows = reader.fieldnames or [], list(reader)
    wanted = {"published": "backbone", "published ": "attention"} | {
        f"columns.{number}.published": column.published
        for number, column in enumerate(description.columns)
        if column.published
    }
    for key, name in wanted.items():
        if name not in header:
            raise ConfigError(
                f"{file}: {key.strip()}: wants a column {name!r}; {source} has {', '.join(header)}"
            )
    published = {(row["backbone"], row["attention"]): row for row in rows}
    if len(published) < len(rows):
        raise ConfigError(f"{source}: a backbone and attention have two rows")
    return published


def check_descriptions(study: Study, source: str, reference: Path = Path("reference")) -> None:
    """Check every table that a study names, before any job starts.

    Args:
        study: the configuration.
        source: where it is from, for the message.
        reference: the folder of the published CSVs.

    Raises:
        ConfigError: a description that is missing or wrong, or whose published file is.
    """
    for name, file in study.descriptions.items():
        if not file.is_file():
            known = sorted(other.stem for other in shipped(file.parent).glob("*.yaml"))
            raise ConfigError(
                f"{source}: tables: found {name!r}, but there is no file {file}; "
                f"{file.parent} has {', '.join(known) or 'none'}"
            )
        read_published(load_description(file), file, reference)
