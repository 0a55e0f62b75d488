"""The gain from choosing the best epoch on the test set instead of the last epoch."""

from __future__ import annotations

import pandas as pd
from scipy import stats

COLUMNS = ["condition", "metric", "cells", "chosen", "mean", "low", "high", "largest"]


def selection(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per condition and metric, and ``all`` over all conditions.

    ``cells`` counts the measured cells and ``chosen`` those whose best epoch in top-1 is better
    than the last. ``mean``, ``low`` to ``high`` (its 95 % interval over cells) and ``largest``
    describe the gain: error of the last epoch minus error of the best one, in points.
    """
    measured = cells[cells["state"] == "measured"].drop_duplicates("id")
    groups = [*measured.groupby("condition", sort=False), ("all", measured)]
    rows = []
    for condition, group in groups if len(measured) else []:
        chosen = int((group["top1_error"] > group["best_top1_error"]).sum())
        for metric in ("top1_error", "top5_error"):
            gains = (group[metric] - group[f"best_{metric}"]).astype(float)
            n, mean = len(gains), gains.mean()
            half = stats.t.ppf(0.975, n - 1) * gains.sem()  # nan for a single cell
            low, high = mean - half, mean + half
            rows.append((condition, metric, n, chosen, mean, low, high, gains.max()))
    return pd.DataFrame(rows, columns=COLUMNS)
