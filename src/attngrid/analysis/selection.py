"""The gain from choosing the best epoch on the test set instead of the last epoch."""

from __future__ import annotations

import math

import pandas as pd
from statsmodels.regression.linear_model import OLS

from attngrid.analysis.frames import ERRORS

MODEL = ["backbone", "attention"]
COLUMNS = ["condition", "metric", "cells", "chosen", "mean", "low", "high", "largest"]


def selection(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per condition and metric, and ``all`` over all conditions.

    ``cells`` counts the measured cells and ``chosen`` those whose best epoch in top-1 is better
    than the last. ``mean``, ``low`` to ``high`` (its 95 % interval) and ``largest`` describe the
    gain: error of the last epoch minus error of the best one, in points. The interval is
    clustered, because seeds of one model are alike, and so are models on one dataset: by model in
    a condition, by dataset over all conditions of several datasets.
    """
    measured = cells[cells["state"] == "measured"].drop_duplicates(["id", *ERRORS])
    groups = [*measured.groupby("condition", sort=False), ("all", measured)]
    rows = []
    for condition, group in groups if len(measured) else []:
        chosen = int((group["top1_error"] > group["best_top1_error"]).sum())
        by = ["dataset"] if group["dataset"].nunique() > 1 else ["condition", *MODEL]
        clusters = group.groupby(by, sort=False).ngroup()
        for metric in ("top1_error", "top5_error"):
            gains = (group[metric] - group[f"best_{metric}"]).astype(float)
            low, high = _interval(gains, clusters)
            rows.append(
                (condition, metric, len(gains), chosen, gains.mean(), low, high, gains.max())
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _interval(values: pd.Series[float], clusters: pd.Series[int]) -> tuple[float, float]:
    """The mean's 95 % interval from cluster-robust errors; nan for a single cluster."""
    if clusters.nunique() < 2:
        return math.nan, math.nan
    ones = pd.Series(1.0, values.index)
    how = {"groups": clusters}
    fit = OLS(values, ones).fit(cov_type="cluster", cov_kwds=how, use_t=True)
    low, high = fit.conf_int().iloc[0]
    return float(low), float(high)
