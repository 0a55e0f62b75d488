"""The standard deviation of a metric over seeds: measured here, or published with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pandas as pd

from attngrid.analysis.reference import REFERENCE
from attngrid.core.files import shipped
from attngrid.study.labels import backbone_label


@dataclass(frozen=True)
class Deviation:
    """A standard deviation over seeds, in points, with its degrees of freedom and its source."""

    std: float
    df: int
    source: str


def measured(rows: pd.DataFrame, error: str) -> Deviation | None:
    """The deviation in a condition, pooled over its models; None without a model of two seeds."""
    own = rows.drop_duplicates(["id", error])
    groups = own.groupby(["study", "backbone", "attention"])[error]
    variances, degrees = groups.var(ddof=1), groups.count() - 1
    df = int(degrees.sum())
    std = math.sqrt((variances.fillna(0) * degrees).sum() / df) if df else 0.0
    if std <= 1e-9:
        return None
    trainings = int((degrees + 1)[degrees > 0].sum())
    return Deviation(std, df, f"{trainings} of our trainings")


def published(dataset: str, error: str, backbone: str, recipe: str | None) -> Deviation | None:
    """The published deviation of the same backbone, or else the largest of the dataset.

    ``recipe`` is the recipe that it must have; None allows any.
    """
    rows = _table()
    rows = rows[(rows["dataset"] == dataset) & (rows["metric"] == error)]
    if recipe is not None:
        rows = rows[rows["recipe"] == recipe]
    if rows.empty:
        return None
    same = rows[rows["backbone"] == backbone]
    row = (rows if same.empty else same).nlargest(1, "std").iloc[0]
    of = f"{row['runs']} runs of {backbone_label(row['backbone'])} with {row['recipe']}"
    return Deviation(float(row["std"]), int(row["runs"]) - 1, f"{of}: {row['source']}")


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(shipped(REFERENCE / "deviations.csv"))


def known_deviation(
    rows: pd.DataFrame, error: str, dataset: str, backbone: str, recipe: str | None
) -> Deviation | None:
    """The deviation with the most degrees of freedom, measured in a condition or published.

    Args:
        rows: the measured cells of the condition.
        error: the metric.
        dataset: the condition's dataset.
        backbone: the backbone that a published deviation should have.
        recipe: the condition's recipe; None allows published deviations of other recipes.
    """
    found = [measured(rows, error)]
    # on other data or options, a published deviation would be that of another network
    if rows["options"].eq("").all():
        found.append(published(dataset, error, backbone, recipe))
    return max(filter(None, found), key=lambda deviation: deviation.df, default=None)
