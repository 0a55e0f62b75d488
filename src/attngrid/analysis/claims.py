"""Claims as data: the typed form of ``reference/claims.yaml``, and of a study's own claims.

A block of that file is one statement of a paper. It makes one claim per backbone and metric. The
file fixes test, family and smallest effect before any measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from attngrid.analysis.reference import is_number, read_published
from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import read_yaml, shipped
from attngrid.core.types import CountFrom2, Number, Pixels, Positive, Strict
from attngrid.core.validation import validate
from attngrid.models.registry import trained_attention
from attngrid.study.options import Attention, Backbone, Dataset, Listed, RecipeName, Share
from attngrid.study.recipe import shipped_recipes
from attngrid.study.schema import Study

CLAIMS = Path("reference/claims.yaml")
VERDICTS = (
    *("confirmed", "contradicted", "equivalent", "inside", "outside"),
    *("underpowered", "not run"),
)
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
Metric = Literal[
    "top1_error",
    "top5_error",
    "top1_accuracy",
    "top5_accuracy",
    "best_top1_error",
    "best_top5_error",
    "best_top1_accuracy",
    "best_top5_accuracy",
]
Count = Literal["params", "macs"]
UNITS = {"params": 1e6, "macs": 1e9}  # the papers print millions and GMACs


class Family(Strict):
    """Claims that Holm's correction covers together, and the smallest effect that matters."""

    smallest_effect: Positive = Field(description="in points; smaller differences do not matter")
    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.05
    power: Annotated[Number, Field(gt=0.5, lt=1)] = 0.8
    why: str = Field(description="why that smallest effect")


class Statement(Strict):
    """The fields of every block."""

    id: Slug
    source: str = Field("this study", description="the paper")
    where: str = Field("", description="table, figure or section")
    statement: str
    note: str = ""
    backbones: Listed[Backbone]
    published: str | None = Field(None, description="file in reference/ with the printed figures")


class Measured(Statement):
    """A statement about measured errors.

    Without ``dataset`` it is about whatever the study trains; otherwise about this dataset with its
    recipes and no other options.
    """

    dataset: Dataset | None = None
    recipes: Annotated[tuple[RecipeName, ...], Field(strict=False)] = Field(
        (), description="those that test the claim as stated; needed with a dataset"
    )
    metrics: dict[Metric, str | None] = Field(
        {"top1_error": None},
        min_length=1,
        description="and the column of `published` that prints each, if one does",
    )

    @model_validator(mode="after")
    def _a_dataset_has_recipes(self) -> Measured:
        if self.dataset is not None and not self.recipes:
            raise ValueError("recipes: is required with a dataset and not there")
        return self

    def is_about(self, dataset: str, recipe: str, options: str) -> bool:
        """Whether cells with these are those that the statement is about."""
        anywhere = self.dataset is None or (dataset == self.dataset and not options)
        return anywhere and (not self.recipes or recipe in self.recipes)


class Tested(Measured):
    """A statement that a test over seeds judges."""

    family: Slug


class Better(Tested):
    """One module beats another."""

    kind: Literal["better"]
    better: Attention
    than: Attention
    test: Literal["welch", "by_correlation"] = Field(
        "welch",
        description="by_correlation: paired by seed from ten seeds on, where they correlate "
        "and pairing narrows the interval",
    )


class Order(Tested):
    """Each module beats the next one."""

    kind: Literal["order"]
    order: Annotated[tuple[Attention, ...], Field(strict=False, min_length=3)]


class Value(Measured):
    """Printed figures, each of one run, which should be like one more of our runs."""

    kind: Literal["value"]
    attentions: Listed[Attention]

    @model_validator(mode="after")
    def _every_metric_has_a_column(self) -> Value:
        if self.published is None or None in self.metrics.values():
            raise ValueError("metrics: needs `published` and a column of it for each metric")
        return self


class Geometry(Strict):
    """The size at which a model is counted."""

    stem: Literal["imagenet", "cifar"]
    num_classes: CountFrom2
    input_size: Pixels


class Printed(Statement):
    """Printed counts, which our counts must match in every digit."""

    kind: Literal["printed"]
    attentions: Listed[Attention]
    counts: dict[Count, str] = Field(min_length=1, description="and the column that prints each")
    counted_at: Geometry


class Cost(Statement):
    """A module adds at most a given share to the counts of another network."""

    kind: Literal["cost"]
    attention: Attention
    than: Attention
    at_most: Share = Field(description="0.1: a tenth more")
    counts: Listed[Count]
    counted_at: Geometry


AnyBlock = Better | Order | Value | Printed | Cost


class Claims(Strict):
    """``reference/claims.yaml``."""

    families: dict[Slug, Family]
    claims: Listed[Annotated[AnyBlock, Field(discriminator="kind")]]

    @model_validator(mode="after")
    def _names_fit(self) -> Claims:
        seen: set[str] = set()
        for number, block in enumerate(self.claims):
            if block.id in seen:
                raise ValueError(f"claims.{number}.id: found {block.id!r} twice; needs unique ids")
            seen.add(block.id)
            if isinstance(block, Tested) and block.family not in self.families:
                unknown = UnknownNameError("family", block.family, self.families)
                raise ValueError(f"claims.{number}.family: {unknown}")
            if block.published is None and any(_columns(block).values()):
                raise ValueError(f"claims.{number}.published: is missing, but a column is named")
        return self


@dataclass(frozen=True)
class Claim:
    """One claim: a block's statement about one backbone and one metric."""

    block: AnyBlock
    backbone: str
    metric: str
    attentions: tuple[str, ...]  # best first; a single one if a figure is claimed
    published: tuple[str | None, ...]  # the printed figure of each, or None

    @property
    def id(self) -> str:
        """``cbam_table4_se/resnet50/top1_error``; printed figures name the module, too."""
        names = [self.block.id, self.backbone, self.metric]
        if isinstance(self.block, Printed | Value):
            names.insert(2, self.attentions[0])
        return "/".join(names)

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is an accuracy."""
        return self.metric.endswith("accuracy")

    @property
    def error(self) -> str:
        """The name of the metric's error; an accuracy is 100 minus its error."""
        return self.metric.replace("accuracy", "error")

    @property
    def published_gain(self) -> float | None:
        """The printed gain of the first over the second, in points; of an order, the least step."""
        figures = [Decimal(text) for text in self.published if text is not None]
        if len(figures) < 2 or len(figures) < len(self.published):
            return None
        sign = 1 if self.higher_is_better else -1
        return float(min(sign * (better - worse) for better, worse in pairwise(figures)))


def load_study_claims(study: Study) -> tuple[Claims, list[Claim]]:
    """A study's own claims, or the papers' if it has none; raises as ``load_claims``."""
    return load_claims() if study.claims is None else load_claims(Path(study.claims), study)


def untrained(study: Study, found: Iterable[Claim]) -> Iterator[str]:
    """A line for each of a study's own claims about a model that its grid does not train."""
    if study.claims is None:  # the papers' claims are about many studies
        return
    trained = {(cell.backbone, cell.trained_attention) for cell in study.cells_to(study.tiers[-1])}
    for claim in found:
        names = [(claim.backbone, name) for name in claim.attentions]
        missing = [
            f"{backbone} with {name}"
            for backbone, name in names
            if (backbone, trained_attention(name)) not in trained
        ]
        if isinstance(claim.block, Measured) and missing:
            yield (
                f"{study.claims}: {claim.block.id} will not be judged, because the grid does not "
                f"train {' and '.join(missing)}"
            )


def load_claims(file: Path = CLAIMS, study: Study | None = None) -> tuple[Claims, list[Claim]]:
    """Read and check the claims and the figures that they quote.

    They may name a study's recipes besides the shipped ones.

    Raises:
        ConfigError: one line per mistake, with file, key, what was found and what is accepted.
    """
    source = shipped(file)
    claims = validate(Claims, read_yaml(source), source)
    known = {**shipped_recipes(), **(study.recipes if study else {})}
    found: list[Claim] = []
    for number, block in enumerate(claims.claims):
        for name in block.recipes if isinstance(block, Measured) else ():
            if name not in known:
                unknown = UnknownNameError("recipe", name, known)
                raise ConfigError(f"{source}: claims.{number}.recipes: {unknown}")
        figures = _figures(block, f"{source}: claims.{number}.")
        found += _expand(block, figures)
    return claims, found


def _attentions(block: AnyBlock) -> tuple[str, ...]:
    """A block's modules, best first; each module of printed figures makes its own claims."""
    match block:
        case Better(better=first, than=than) | Cost(attention=first, than=than):
            return first, than
        case Order(order=order):
            return order
        case Value(attentions=attentions) | Printed(attentions=attentions):
            return attentions


def _columns(block: AnyBlock) -> Mapping[str, str | None]:
    """The published column of each metric of a block, or None."""
    match block:
        case Measured(metrics=metrics):
            return {str(metric): column for metric, column in metrics.items()}
        case Printed(counts=counts):
            return {str(count): column for count, column in counts.items()}
        case Cost(counts=counts):
            return dict.fromkeys(map(str, counts))


def _expand(block: AnyBlock, figures: dict[tuple[str, str, str], str]) -> Iterator[Claim]:
    names = _attentions(block)
    single = isinstance(block, Printed | Value)
    groups = [(name,) for name in names] if single else [names]
    for backbone, group, metric in product(block.backbones, groups, _columns(block)):
        published = tuple(figures.get((backbone, name, metric)) for name in group)
        yield Claim(block, backbone, metric, group, published)


def _figures(block: AnyBlock, where: str) -> dict[tuple[str, str, str], str]:
    """The block's printed figures, by backbone, attention and metric."""
    if block.published is None:
        return {}
    key = "metrics" if isinstance(block, Measured) else "counts"
    columns = {metric: column for metric, column in _columns(block).items() if column}
    named = {f"{key}.{metric}": column for metric, column in columns.items()}
    rows = read_published(block.published, named, where)
    figures = {}
    for backbone, name in product(block.backbones, _attentions(block)):
        if (backbone, name) not in rows:
            raise ConfigError(f"{where}published: {block.published} has no row {backbone}, {name}")
        for metric, column in columns.items():
            text = rows[backbone, name][column]
            if not is_number(text):
                raise ConfigError(
                    f"{where}{key}: {block.published}: {backbone}, {name}, {column}: "
                    f"found {text!r}, expected a number"
                )
            figures[backbone, name, metric] = text
    return figures
