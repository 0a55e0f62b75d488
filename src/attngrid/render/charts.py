"""The data of the report's charts; ``workflow/templates/report.charts.yaml`` says how they look."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import cycle
from typing import Any

import pandas as pd

from attngrid.analysis.frames import Results
from attngrid.analysis.gains import gains
from attngrid.core.files import read_yaml, shipped
from attngrid.models.registry import attention_label
from attngrid.render.templates import FOLDER
from attngrid.study.labels import backbone_label, model_label

# What the reader chooses for an axis of the curves, and of the costs: column and title.
METRICS = {
    "test_top1_error": "top-1 error on the test set (%)",
    "train_top1_error": "top-1 error in training (%)",
    "test_loss": "loss on the test set",
    "train_loss": "loss in training",
}
COSTS = {"macs_m": "multiply-accumulates (millions)", "params_m": "parameters (millions)"}
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
MAX_POINTS = 2000  # of the curves of a chart; a browser takes seconds to draw many more
Lines = list[dict[str, Any]]


def charts(results: Results) -> list[dict[str, Any]]:
    """Gains and curves for each backbone in each condition, and cost for each condition.

    Each has a ``section``, a ``title`` and a ``spec`` in Vega-Lite; a model has the same colour in
    all of them, and no other model has it.
    """
    measured = results.cells[results.cells["state"] == "measured"]
    if measured.empty:
        return []
    cells = _trainings(measured)
    curves = dict(iter(results.epochs.drop_duplicates(["id", "epoch"]).groupby("id")))
    colours = {model: _colour(place) for place, model in enumerate(cells["model"].unique())}
    shapes = dict(zip(cells["backbone"].unique(), cycle(SHAPES), strict=False))
    several = cells["condition"].nunique() > 1
    found = []
    for (condition, backbone), rows in cells.groupby(["condition", "backbone"], sort=False):
        title = backbone_label(str(backbone)) + (f", {condition}" if several else "")
        own = {model: colours[model] for model in rows["model"].unique()}
        if (rows["attention"] == "none").any() and len(own) > 1:
            spec = _spec("gains", [], color=own)
            means, seeds = _gains(rows)
            spec["height"] = 32 * len(means)
            for layer in spec["layer"][1:3]:
                layer["data"] = {"values": means}
            axes = spec["layer"][1]["encoding"]
            axes["x"]["scale"] = {"domain": _domain(means, seeds)}
            axes["y"]["scale"] = {"domain": [row["row"] for row in means]}
            spec["layer"][3]["data"] = {"values": seeds}
            found.append({"section": "gains", "title": title, "spec": spec})
        lines = list(_curves(rows, curves))
        spec = _spec("curves", lines, color=own)
        if sum(len(line["epoch"]) for line in lines) > MAX_POINTS:
            spec["mark"]["point"] = False
            del spec["encoding"]["tooltip"][1:]  # a whole line has only its name to show
        found.append({"section": "curves", "title": title, "spec": spec})
    for condition, rows in cells[cells["macs"].notna()].groupby("condition", sort=False):
        own = {model: colours[model] for model in rows["model"].unique()}
        marks = dict(zip(rows["model"], rows["backbone"].map(shapes), strict=True))
        points = rows[["id", "label", "model", "accuracy", *COSTS]].to_dict("records")
        spec = _spec("cost", points, color=own, shape=marks)
        title = str(condition) if several else "All backbones"
        found.append({"section": "cost", "title": title, "spec": spec})
    return found


def _spec(section: str, rows: Iterable[Any], **scales: dict[str, str]) -> dict[str, Any]:
    """A section's specification with its data and the colour or shape of each model."""
    specs = read_yaml(shipped(FOLDER / "report.charts.yaml"))
    spec: dict[str, Any] = specs[section] | {"data": {"values": list(rows)}}
    spec = copy.deepcopy(spec)  # YAML's anchors share their objects
    for channel, values in scales.items():
        scale = {"domain": list(values), "range": list(values.values())}
        spec["encoding"][channel]["scale"] = scale
    return spec


def _trainings(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per training; attentions that compute the same function share its label."""
    labels = cells["attention"].map(attention_label)
    names = labels.groupby(cells["id"]).transform(lambda own: " = ".join(own.unique()))
    models = map(model_label, cells["backbone"], cells["attention"])
    cells = cells.assign(
        name=names,
        model=[
            model.removesuffix(label) + name if " = " in name else model
            for model, label, name in zip(models, labels, names, strict=True)
        ],
        accuracy=(100 - cells["top1_error"].astype(float)).round(4),
        macs_m=(cells["macs"].astype(float) / 1e6).round(4),
        params_m=(cells["params"].astype(float) / 1e6).round(4),
    )
    cells["label"] = cells["model"] + ", seed " + cells["seed"].astype(str)
    return cells.drop_duplicates("id")


def _colour(place: int) -> str:
    """A model's colour, legible on white and on black.

    Each hue is the golden angle from the one before, so no two are equal and neighbours differ.
    """
    light, chroma = ((0.67, 0.17), (0.5, 0.14), (0.58, 0.11))[place % 3]
    return f"oklch({light} {chroma} {(250 + 137.508 * place) % 360:.2f})"


def _gains(cells: pd.DataFrame) -> tuple[Lines, Lines]:
    """The means with their intervals, the best model first, and the seeds."""
    means, seeds = [], []
    frame = gains(cells).sort_values("gain", ascending=False, kind="stable").round(4)
    for row in frame.to_dict("records"):
        own = cells[cells["attention"] == row["attention"]]
        name, model = own.iloc[0][["name", "model"]]
        shared = {"row": f"{name}, n = {row['n']}", "model": model}
        ends = {end: None if pd.isna(row[end]) else row[end] for end in ("low", "high")}
        control = row["attention"].startswith("none_wide:")
        means.append(shared | ends | {"gain": row["gain"], "control": control})
        for id, label, gain in zip(own["id"], own["label"], row["values"], strict=True):
            seeds.append(shared | {"id": id, "label": label, "gain": round(gain, 4)})
    return means, seeds


def _domain(means: Lines, seeds: Lines) -> list[float]:
    """The seeds' range, and as much of the intervals as leaves the seeds half of the width."""
    values = [row["gain"] for row in seeds]
    low, high = min(values), max(values)
    room = max(high - low, 0.1)
    ends = [row[end] for row in means for end in ("low", "high") if row[end] is not None]
    ends += [low - room / 20, high + room / 20]
    return [max(min(ends), low - room / 2), min(max(ends), high + room / 2)]


def _curves(cells: pd.DataFrame, curves: dict[Any, pd.DataFrame]) -> Iterable[dict[str, Any]]:
    for row in cells[["id", "label", "model"]].to_dict("records"):
        if (curve := curves.get(row["id"])) is not None:
            numbers = {k: [float(f"{v:.5g}") for v in curve[k]] for k in ("epoch", *METRICS)}
            yield {str(key): value for key, value in row.items()} | numbers
