"""What a table shows, as data: the typed form of the files in ``workflow/tables/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, model_validator

from attngrid.config import Study, read_yaml, validate
from attngrid.errors import ConfigError
from attngrid.training.recipe import Strict

Counted = Literal["params", "macs", "fvcore_total"]
Measured = Literal[
    "top1_error",
    "top5_error",
    "top1_accuracy",
    "top5_accuracy",
    "best_top1_error",
    "best_top5_error",
    "best_top1_accuracy",
    "best_top5_accuracy",
]


class Column(Strict):
    """One quantity; it makes a published, a counted or a measured column, or several of them."""

    title: str
    published: str | None = Field(None, description="column of the published CSV")
    counted: Counted | None = Field(None, description="column of results/complexity.csv")
    measured: Measured | None = Field(None, description="mean over seeds, from the study")
    unit: float = Field(1.0, gt=0, strict=False, description="counted values are divided by this")
    decimals: NonNegativeInt = 2

    @model_validator(mode="after")
    def _something(self) -> Column:
        if not (self.published or self.counted or self.measured):
            raise ValueError("names neither a published, a counted nor a measured column")
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


class Description(Strict):
    """What a table shows: one file in ``workflow/tables/``."""

    caption: str
    published: str | None = Field(None, description="file in reference/ with the printed figures")
    published_title: str = Field("Published", description="head over the published columns")
    counted_at: CountedAt | None = None
    attentions: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="which of the study's cells join the published rows; left out: all"
    )
    columns: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]


def load_description(file: Path) -> Description:
    """Read and check a table description.

    Raises:
        ConfigError: one line a mistake, with file, key, what was found and what is accepted.
    """
    return validate(Description, read_yaml(file), file)


def check_descriptions(study: Study, reference: Path = Path("reference")) -> None:
    """Check every table that a study names, before any job starts.

    Raises:
        ConfigError: a description that is missing or wrong, or whose published file is missing.
    """
    for name, file in study.descriptions.items():
        if not file.is_file():
            folder = file.parent
            known = sorted(other.stem for other in folder.glob("*.yaml"))
            raise ConfigError(
                f"tables: found {name!r}, but there is no file {file}; "
                f"{folder} has {', '.join(known) or 'none'}"
            )
        published = load_description(file).published
        if published is not None and not (reference / published).is_file():
            known = sorted(other.name for other in reference.glob("*.csv"))
            raise ConfigError(
                f"{file}: published: found {published!r}, {reference} has {', '.join(known)}"
            )
