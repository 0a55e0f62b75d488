"""What choosing the best epoch on the test set is worth: last epoch against best."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy import stats

COLUMNS = ["condition", "metric", "cells", "chosen", "mean", "low", "high", "largest"]


def selection(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a condition and metric, and ``all`` over all conditions.

    ``cells`` is how many were measured, ``chosen`` of how many the epoch best in top-1 is better
    than the last; ``mean``, its 95 % interval ``low`` to ``high`` over cells, and ``largest`` are
    what the choice takes off the metric's error, in points.
    """
    measured = cells[cells["state"] == "measured"].drop_duplicates("id")
    groups: list[tuple[str, pd.DataFrame]] = [
        (str(name), group) for name, group in measured.groupby("condition", sort=False)
    ]
    rows = []
    for condition, group in [*groups, ("all", measured)] if groups else []:
        chosen = int((group["top1_error"] > group["best_top1_error"]).sum())
        for metric in ("top1_error", "top5_error"):
            gains = (group[metric] - group[f"best_{metric}"]).astype(float)
            row: dict[str, Any] = {
                "condition": condition,
                "metric": metric,
                "cells": len(gains),
                "chosen": chosen,
                "mean": gains.mean(),
                "largest": gains.max(),
            }
            if len(gains) > 1:
                half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1)
                half /= math.sqrt(len(gains))
                row |= {"low": gains.mean() - half, "high": gains.mean() + half}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
