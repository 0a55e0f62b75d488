"""Accuracies beside the errors of a frame."""

from __future__ import annotations

from typing import Any

import pandas as pd


def add_accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Set the accuracy in percent to the right of each error: 100 minus the error.

    The standard deviation of an accuracy is that of its error. A frame that has these columns
    already stays as it is.

    Examples:
        >>> add_accuracies(pd.DataFrame({"top1_error": [12.3], "seed": [0]}))
           top1_error  top1_accuracy  seed
        0        12.3           87.7     0
    """
    columns: dict[Any, Any] = {}
    for name, values in frame.items():
        columns[name] = values
        if "error" in str(name):
            accuracy = str(name).replace("error", "accuracy")
            is_std = str(name).endswith("_std")
            columns[accuracy] = values if is_std else (100 - values.astype(float)).round(10)
    return pd.DataFrame(columns, index=frame.index)
