"""How much more accurate each model is than the baseline of its backbone."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from attngrid.analysis.dependencies import has_statistics


def gains(cells: pd.DataFrame) -> pd.DataFrame:
    """The gain in top-1 accuracy over the same backbone without attention, in points.

    Args:
        cells: the cells of a study, as in ``Results``.

    Returns:
        One row per model and condition: ``condition``, ``backbone``, ``attention``, ``n`` (measured
        seeds), ``values`` (each seed's accuracy minus the baseline's mean), ``gain`` (their mean)
        and the ends ``low`` and ``high`` of its 95 % interval by Welch's t-test. These are missing
        if nothing was measured; the ends also if a sample has one seed or does not vary, and
        without SciPy and statsmodels. The baseline's gain is 0 and has no interval.

    Examples:
        >>> from attngrid import load_results
        >>> found = gains(load_results("cifar20").cells).set_index("attention")
        >>> found["gain"].round(2).to_dict()
        {'none': 0.0, 'se': 1.07, 'sam': -41.93, 'csm': 0.45, 'csm_sam_first': -12.25}
    """
    rows = []
    for (condition, backbone), group in cells.groupby(["condition", "backbone"], sort=False):
        accuracies = {
            name: 100 - own["top1_error"].dropna().to_numpy(float)
            for name, own in group.groupby("attention", sort=False)
        }
        baseline = accuracies.get("none", np.array([]))
        for name, accuracy in accuracies.items():
            row = {"condition": condition, "backbone": backbone, "attention": name}
            row |= {"n": len(accuracy), "values": (), "gain": None, "low": None, "high": None}
            if len(accuracy) and len(baseline):
                values = accuracy - baseline.mean()
                row |= {"values": tuple(values), "gain": values.mean()}
                if name != "none":
                    row["low"], row["high"] = _interval(accuracy, baseline)
            rows.append(row)
    columns = ["condition", "backbone", "attention", "n", "values", "gain", "low", "high"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(["gain", "low", "high"], float))


def _interval(sample: np.ndarray, baseline: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of the difference of the means."""
    few = min(len(sample), len(baseline)) < 2
    # equal errors may differ by floating-point rounding
    if few or max(np.ptp(sample), np.ptp(baseline)) <= 1e-9 or not has_statistics():
        return None, None
    from scipy.stats import ttest_ind

    # one of the samples may be constant; SciPy warns of it
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        interval = ttest_ind(sample, baseline, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
