"""Figures: gains over the baseline, accuracy against cost, CSM's Figs. 4 to 6, MAF's curve."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files as resources
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from attngrid.analysis.frames import LOST, Results
from attngrid.analysis.gains import gains as compute_gains
from attngrid.analysis.reference import REFERENCE, read_published
from attngrid.core.files import shipped, write_atomically
from attngrid.measure.maps_file import Maps
from attngrid.models.registry import ATTENTIONS, attention_label, find_attention
from attngrid.render.maps import Column, draw_maps, photographs, strips
from attngrid.study.labels import backbone_label
from attngrid.study.schema import Study

STYLE = str(resources("attngrid.render").joinpath("attngrid.mplstyle"))
WIDTH = 3.3  # width of a panel in inches: a column of a paper
HEIGHT = 2.4  # height of a panel in inches
TITLE, NARROW_TITLE = 46, 30  # characters that fit above a panel, without and with row labels
STACKED = 3  # most panels in a column of their own; more are on a page, two beside each other
NOTHING = "nothing measured yet"
NO_BASELINE = "no baseline measured yet"
NO_MAPS = "no attention maps made yet"
NO_WEIGHTS = "no weights, or no stages"
# Fig. 5 in the paper's order: baseline, CAM, SAM, CSM.
MODULES = ("none", "cam", "sam", "csm")
ORDERS = {"csm": "CAM first (CSM)", "csm_sam_first": "SAM first"}


def gains(results: Results) -> Figure:
    """Each model's gain in top-1 accuracy over the baseline, one panel per condition and backbone.

    A mark is the mean over the seeds with its 95 % interval, a small dot is one seed, and a hollow
    square is a control without attention. The best model is at the top; models without a result
    stand at the bottom.
    """
    cells = results.cells
    # attentions that compute the same function share their records and one row
    names = cells["attention"].map(attention_label).groupby(cells["id"])
    cells = cells.assign(label=names.transform(lambda own: " = ".join(own.unique())))
    cells = cells.drop_duplicates("id")
    model = ["condition", "backbone", "attention"]
    labels = cells.drop_duplicates(model)[[*model, "label"]]
    frame = compute_gains(cells).merge(labels, on=model)
    measured = frame.groupby(["condition", "backbone"])["n"].transform("sum") > 0
    figure, _, panels = _panels(frame[measured], characters=NARROW_TITLE)
    tallest = max((len(rows) for _, rows in panels), default=1)
    figure.set_figheight(figure.get_figheight() / HEIGHT * (1.2 + 0.22 * tallest))
    for axis, rows in panels:
        rows = rows.sort_values("gain", na_position="first", kind="stable", ignore_index=True)
        axis.axvline(0, color="#777777", linewidth=0.8)
        for place, row in enumerate(rows.to_dict("records")):
            if pd.isna(row["gain"]):
                axis.text(0, place, "--", ha="center", va="center")
                continue
            control = row["attention"].startswith("none_wide:")
            colour = "black" if row["attention"] == "none" else "C1" if control else "C0"
            below = [place - 0.3] * row["n"]
            axis.plot(row["values"], below, ".", color="#777777", markersize=3)
            axis.plot([row["low"], row["high"]], [place, place], color=colour)
            face = "white" if control else colour
            marker = "s" if control else "o"
            axis.plot(row["gain"], place, marker, color=colour, markerfacecolor=face, markersize=4)
        ticks = [f"{label}, n = {n}" for label, n in zip(rows["label"], rows["n"], strict=True)]
        axis.set_yticks(range(len(rows)), ticks)
        axis.set_ylim(-0.7, len(rows) - 0.3)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("gain over the baseline in\ntop-1 accuracy (points)")
        if rows["gain"].isna().all():
            write_in(axis, NO_BASELINE)
    return figure


def modules(results: Results) -> Figure:
    """Fig. 5: top-1 error of the baseline, CAM, SAM and CSM.

    The published bars have a separate panel. Ours show every seed as a dot and the standard
    deviation over seeds; without a bar, the panel shows the state of the cells.
    """
    cells = results.cells[results.cells["attention"].isin(MODULES)]
    figure, (published, *others), panels = _panels(cells, others=1)
    labels = [attention_label(name) for name in MODULES]
    printed = read_published("csm_table1.csv", {}, "")
    errors = [float(printed["resnet50", name]["top1_error"]) for name in MODULES]
    published.bar(range(4), errors, color="#999999", width=0.6)
    _title_published(published, "Published: ImageNet-1K, ResNet-50", panels)
    published.set_xticks(range(4), labels)
    published.set_ylabel("top-1 error (%)")
    for axis, panel in panels:
        ticks = []
        for place, (name, label) in enumerate(zip(MODULES, labels, strict=True)):
            rows = panel[panel["attention"] == name]
            values = rows["top1_error"].dropna()
            ticks.append(f"{label}\nn = {len(values)}")
            if values.empty:
                lost = [state for state in LOST if (rows["state"] == state).any()]
                axis.text(place, 0, lost[0] if lost else "--", ha="center", va="bottom")
                continue
            std = values.std(ddof=1) if len(values) > 1 else 0.0
            axis.bar(place, values.mean(), yerr=std, width=0.6, capsize=3, color="C0")
            axis.plot([place] * len(values), values, ".", color="black", markersize=4)
        axis.set_xticks(range(4), ticks)
        axis.set_ylabel("top-1 error (%), mean ± std")
        if panel["top1_error"].isna().all():
            write_in(axis)
    for axis in (published, *others):
        axis.grid(axis="x", visible=False)
        axis.set_xlim(-0.6, len(MODULES) - 0.4)
    return figure


def ordering(results: Results) -> Figure:
    """Fig. 6: the test curves of CAM first and SAM first, mean and std over seeds."""
    epochs = results.epochs[results.epochs["attention"].isin(ORDERS)]
    figure, _, panels = _panels(epochs)
    for axis, panel in panels:
        for name, label in ORDERS.items():
            curve = panel[panel["attention"] == name]
            if not curve.empty:
                _draw_curve(axis, curve, "test_top1_error", label)
        axis.set_ylabel("top-1 accuracy on the\ntest set (%), mean ± std")
        axis.legend()
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
    return figure


def maf_curve(results: Results) -> Figure:
    """The training of MobileNetV1 with MAF_C: its authors' published log, and ours (mean ± std)."""
    epochs = results.epochs
    ours = epochs[(epochs["backbone"] == "mobilenet_v1") & (epochs["attention"] == "maf_c")]
    figure, (published, *_), panels = _panels(ours, others=1)
    log = pd.read_csv(shipped(REFERENCE / "maf_c_mobilenet_v1_imagenet_curve.csv"))
    _title_published(published, "Published: MobileNetV1 + MAF_C\nImageNet-1K, 224×224", panels)
    published.plot(log["epoch"], log["val_top1_accuracy"], label="validation")
    published.plot(log["epoch"], log["train_top1_accuracy"], label="training")
    published.set_ylabel("top-1 accuracy (%)")
    for axis, panel in panels:
        _draw_curve(axis, panel, "test_top1_error", "held out")
        _draw_curve(axis, panel, "train_top1_error", "training")
        axis.set_ylabel("top-1 accuracy (%), mean ± std")
    for axis in (published, *(axis for axis, _ in panels)):
        axis.legend(loc="lower right")
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
    return figure


def _title_published(axis: Axes, title: str, ours: Sequence[Any]) -> None:
    axis.set_title(title if ours else f"{title}\nours: {NOTHING}")


def _draw_curve(axis: Axes, epochs: pd.DataFrame, error: str, label: str) -> None:
    """Accuracy by epoch, mean and standard deviation over the seeds."""
    accuracy = (100 - epochs[error]).groupby(epochs["epoch"])
    mean, std = accuracy.mean(), accuracy.std(ddof=1).fillna(0)
    (line,) = axis.plot(mean.index, mean, label=f"{label}, n = {epochs['seed'].nunique()}")
    axis.fill_between(mean.index, mean - std, mean + std, color=line.get_color(), alpha=0.2)


def accuracy_macs(results: Results) -> Figure:
    """Top-1 accuracy against multiply-accumulates, one panel per condition.

    The colour shows the attention module, the marker the backbone. Attentions that compute the
    same function share their records and one point.
    """
    summary = results.summary[(results.summary["n"] > 0) & results.summary["macs"].notna()]
    labels: dict[str, str] = {}  # by the name of the attention that is drawn
    for name in dict.fromkeys(summary["attention"]):
        alias_of = find_attention(name).alias_of if name in ATTENTIONS else None
        shown = alias_of if alias_of and alias_of in set(summary["attention"]) else name
        label = attention_label(name)
        labels[shown] = f"{labels[shown]} = {label}" if shown in labels else label
    summary = summary[summary["attention"].isin(labels)]
    conditions = list(dict.fromkeys(summary["condition"]))
    figure, axes = _figure(max(1, len(conditions)))
    if not conditions:
        write_in(axes[0])
        return figure
    colours, markers = model_styles(labels, summary["backbone"])
    for axis, condition in zip(axes, conditions, strict=False):
        panel = summary[summary["condition"] == condition]
        axis.set_title(fill(condition, TITLE))
        for row in panel.to_dict("records"):
            axis.errorbar(
                row["macs"] / 1e6,
                100 - row["top1_error_mean"],
                yerr=row["top1_error_std"] if row["n"] > 1 else 0.0,
                fmt=markers[row["backbone"]],
                color=colours[row["attention"]],
                alpha=0.8,
                markersize=4,
                capsize=2,
            )
        axis.set_xlabel("multiply-accumulates (millions)")
        axis.set_ylabel("top-1 accuracy (%), mean ± std")
    handles: dict[str, Artist] = {labels[name]: Patch(color=colours[name]) for name in labels}
    handles |= {backbone_label(name): marker_handle(m) for name, m in markers.items()}
    add_legend(figure, handles)
    return figure


def maps(results: Results) -> Figure:
    """Fig. 4: each module's Grad-CAM and its spatial map, if it has one, for fixed images.

    It shows one backbone in one condition, the first of the study that has maps. Attentions that
    compute the same function share a column; a column without maps says why.
    """
    made = results.maps or Maps({}, {})
    groups = results.cells.groupby(["condition", "backbone"], sort=False)
    blocks = [rows.drop_duplicates("attention") for _, rows in groups]
    block = next((block for block in blocks if block["id"].isin(list(made.cells)).any()), None)
    if block is None:
        figure, (axis,) = _figure(1)
        measured = (results.cells["state"] == "measured").any()
        write_in(axis, (NO_MAPS if results.maps is None else NO_WEIGHTS) if measured else NOTHING)
        return figure
    first = block.iloc[0]
    images_KHWC = made.images[first["dataset"]]
    columns, labels = [], []
    for name, rows in block.groupby("id", sort=False):
        label = " = ".join(attention_label(attention) for attention in rows["attention"])
        state = str(rows["state"].iloc[0]).replace("_", " ")
        if cell := made.cells.get(str(name)):
            labels = cell.labels
            columns.append(Column(label, strips(cell, images_KHWC)))
        else:
            columns.append(Column(label, why=NO_WEIGHTS if state == "measured" else state))
    seeds = ", ".join(map(str, block["seed"].unique()))
    title = f"{backbone_label(first['backbone'])}, {first['condition']}, seed {seeds}"
    if len(blocks) > 1:
        title += f" (one of {len(blocks)} combinations of backbone and condition)"
    return draw_maps(title, photographs(images_KHWC, labels), columns, len(labels))


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "gains": gains,
    "modules": modules,
    "ordering": ordering,
    "accuracy_macs": accuracy_macs,
    "maf_curve": maf_curve,
    "maps": maps,
}


def write_figure(study: Study, name: str, results: Results) -> None:
    """Draw a figure and write it as PDF and PNG, each atomically."""
    save(lambda: FIGURES[name](results), study.figure_files(name))


def save(draw: Callable[[], Figure], files: Iterable[Path]) -> None:
    """Draw in the package's style, whatever the user's settings, and write each file, atomically.

    The files contain no date, so equal figures give equal bytes.
    """
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = draw()
        for file in files:
            kind = file.suffix.removeprefix(".")
            buffer = io.BytesIO()
            metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_atomically(file, buffer.getvalue())


def model_styles(
    attentions: Iterable[str], backbones: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A colour for each attention and a marker for each backbone."""
    palette = [*mpl.color_sequences["tab20"], *mpl.color_sequences["tab20b"]]
    colours = dict(zip(dict.fromkeys(attentions), cycle(palette), strict=False))
    return colours, dict(zip(dict.fromkeys(backbones), cycle("osD^vPX*<>ph"), strict=False))


def marker_handle(marker: str) -> Line2D:
    """The legend's entry of a marker."""
    return Line2D([], [], marker=marker, ls="", color="#777777", markersize=4)


def add_legend(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """Add a legend of labelled handles below the panels, in columns that fit the figure."""
    longest = max(map(len, handles))
    columns = max(1, int(figure.get_figwidth() * 17 / (longest + 6)))  # 17 letters an inch
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.14 * lines + 0.15)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def _panels(
    frame: pd.DataFrame, others: int = 0, characters: int = TITLE
) -> tuple[Figure, np.ndarray, list[tuple[Axes, pd.DataFrame]]]:
    """A titled panel per condition and backbone, after ``others``; one with a note if none."""
    groups = list(frame.groupby(["condition", "backbone"], sort=False))
    figure, axes = _figure(max(1, others + len(groups)))
    panels = []
    for axis, ((condition, backbone), rows) in zip(axes[others:], groups, strict=False):
        title = f"{backbone_label(str(backbone))}\n{fill(str(condition), characters)}"
        axis.set_title(title)
        panels.append((axis, rows))
    if not groups and not others:
        write_in(axes[0])
    return figure, axes, panels


def _figure(panels: int) -> tuple[Figure, np.ndarray]:
    """A figure of one column of a paper, or of two if there are many panels."""
    columns = 1 if panels <= STACKED else 2
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def write_in(axis: Axes, text: str = NOTHING) -> None:
    """Write a text in the middle of a panel."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="#777777")
