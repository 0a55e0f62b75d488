"""Table descriptions: the typed form of the files in ``workflow/tables/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from attngrid.analysis.claims import Geometry, Metric
from attngrid.analysis.reference import Model, read_published
from attngrid.core.errors import ConfigError
from attngrid.core.files import read_yaml, shipped
from attngrid.core.types import Strict
from attngrid.core.validation import validate
from attngrid.render.templates import escape
from attngrid.study.cell import Counted
from attngrid.study.labels import model_label
from attngrid.study.options import Attention, Backbone, Listed
from attngrid.study.schema import Study

Measured = Literal[Metric, "top1_selection", "top5_selection"]
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
    """One quantity: a published, a counted or a measured column, or several of them."""

    title: str
    published: str | None = Field(None, description="column of the published CSV")
    counted: Counted | None = Field(None, description="column of results/complexity.csv")
    measured: Measured | None = Field(None, description="mean over seeds, from the study")
    cost: Cost | None = Field(None, description="column of results/cost.csv")
    recipe: Literal["learning_rate", "weight_decay"] | None = Field(
        None, description="of the recipe; where it is tuned, the chosen one"
    )
    unit: Annotated[float, Field(gt=0, strict=False)] | Literal["auto"] = Field(
        1.0, description="divides counted, cost and recipe values; auto: G, M or k by the figures"
    )
    decimals: Annotated[int, Field(ge=0, le=9)] = 2

    @model_validator(mode="after")
    def _has_a_quantity(self) -> Column:
        if not (self.published or self.counted or self.measured or self.cost or self.recipe):
            raise ValueError("needs at least one of published, counted, measured, cost and recipe")
        if (self.unit == "auto") != ("{unit}" in self.title):
            raise ValueError(
                f"unit: auto and {{unit}} in the title need each other: {self.title!r}"
            )
        if self.unit == "auto" and self.published:
            raise ValueError("unit: auto is not for a column of published figures")
        return self


class Models(Strict):
    """Rows of a table: every backbone with every attention, in this order."""

    backbones: Listed[Backbone]
    attentions: Listed[Attention]


class Description(Strict):
    """The content of a table: one file in ``workflow/tables/``."""

    caption: str
    published: str | None = Field(None, description="file in reference/ with the printed figures")
    published_title: str = Field("Published", description="head over the published columns")
    counted_at: Geometry | None = Field(
        None, description="the geometry of the counted columns; left out, the study's own"
    )
    attentions: Listed[Attention] | None = Field(
        None, description="which of the study's cells join the published rows; left out: all"
    )
    models: Listed[Models] | None = Field(
        None, description="the rows; left out: the published ones, then the study's own"
    )
    conditions: Literal["columns", "rows"] = Field(
        "columns",
        description="whether a study's conditions are columns or rows",
    )
    columns: Listed[Column]

    @model_validator(mode="after")
    def _columns_have_a_source(self) -> Description:
        if self.published is None and any(column.published for column in self.columns):
            raise ValueError("published: is missing, and a column names a published figure")
        at_study_size = {None, "params", "macs", "fvcore_total"}
        for number, column in enumerate(self.columns if self.counted_at is None else ()):
            if column.counted not in at_study_size:
                raise ValueError(f"columns.{number}.counted: {column.counted!r} needs counted_at")
            if column.cost:
                raise ValueError(f"columns.{number}.cost: {column.cost!r} needs counted_at")
        return self


def load_description(file: Path) -> Description:
    """Read and check a table description.

    Raises:
        ConfigError: one line per mistake, with file, key, what was found and what is accepted.
    """
    return validate(Description, read_yaml(file), file)


def read_figures(description: Description, file: Path) -> dict[Model, dict[str, str]]:
    """The published figures of a description, by model; raises as ``read_published``."""
    if description.published is None:
        return {}
    columns = {
        f"columns.{number}.published": column.published
        for number, column in enumerate(description.columns)
        if column.published
    }
    return read_published(description.published, columns, f"{file}: ")


def check_descriptions(study: Study, source: str) -> None:
    """Check every table that a study names, before any job starts.

    Raises:
        ConfigError: a description or its published file is missing or wrong, or LaTeX cannot print
            a text of it, a model's label or a condition.
    """
    labels = {model_label(cell.backbone, cell.attention) for cell in study.cells}
    conditions = {cell.condition for cell in study.cells}
    texts = [(source, text) for text in sorted(labels | conditions)]
    for name, file in study.descriptions.items():
        if not file.is_file():
            known = sorted(other.stem for other in shipped(file.parent).glob("*.yaml"))
            raise ConfigError(
                f"{source}: tables: found {name!r}, but there is no file {file}; "
                f"{file.parent} has {', '.join(known) or 'none'}"
            )
        description = load_description(file)
        read_figures(description, file)
        texts += [
            (f"{file}: {key}", getattr(description, key)) for key in ("caption", "published_title")
        ]
        texts += [
            (f"{file}: columns.{n}.title", c.title) for n, c in enumerate(description.columns)
        ]
    for place, text in texts:
        try:
            escape(text)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
