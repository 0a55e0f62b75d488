"""Figures: CSM's Figs. 4, 5 and 6, MAF's training curve, accuracy against cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files as resources
from itertools import cycle
from pathlib import Path
from textwrap import fill

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
from attngrid.core.files import shipped, write_atomically
from attngrid.measure.maps_file import Maps
from attngrid.models.registry import ATTENTIONS, find_attention
from attngrid.render.maps import Column, draw_maps, photographs, strips
from attngrid.study.labels import attention_label, backbone_label
from attngrid.study.schema import Study

WIDTH = 3.4  # inches a panel, a column of a paper
TITLE = 52  # characters that fit above one
NOTHING = "nothing measured yet"
NO_MAPS = "no attention maps made yet"
NO_WEIGHTS = "no weights kept"
# Fig. 5 in the paper's order: baseline, CAM, SAM, CSM.
MODULES = ("none", "cam", "sam", "csm")
MODULE_LABELS = [attention_label(name) for name in MODULES]
ORDERS = {"csm": "CAM first (CSM)", "csm_sam_first": "SAM first"}


def modules(results: Results, reference: Path) -> Figure:
    """Fig. 5: top-1 error of the baseline, CAM, SAM and CSM.

    The published bars and ours stand in panels of their own; ours has a dot for every seed, a
    bar for the standard deviation over seeds, and where there is no bar says why.
    """
    cells = results.cells[results.cells["attention"].isin(MODULES)]
    panels = list(_panels(cells))
    figure, axes = _figure(1 + max(1, len(panels)))
    printed = pd.read_csv(shipped(reference / "csm_table1.csv"), keep_default_na=False)
    errors = printed.set_index("attention")["top1_error"]
    axes[0].bar(range(4), [errors[name] for name in MODULES], color="#999999", width=0.6)
    axes[0].set_title("Published: ImageNet-1K, ResNet-50")
    for axis, (title, panel) in zip(axes[1:], panels, strict=False):
        axis.set_title(title)
        ticks = []
        for place, name in enumerate(MODULES):
            rows = panel[panel["attention"] == name]
            values = rows["top1_error"].dropna()
            ticks.append(f"{MODULE_LABELS[place]}\nn = {len(values)}")
            if values.empty:
                lost = [state for state in LOST if (rows["state"] == state).any()]
                axis.text(place, 0, lost[0] if lost else "--", ha="center", va="bottom")
                continue
            deviation = values.std(ddof=1) if len(values) > 1 else 0.0
            axis.bar(place, values.mean(), yerr=deviation, width=0.6, capsize=3, color="C0")
            axis.plot([place] * len(values), values, ".", color="black", markersize=4)
        axis.set_xticks(range(4), ticks)
        axis.set_ylabel("top-1 error (%), mean ± std")
        if panel["top1_error"].isna().all():
            say_nothing(axis)
    if not panels:
        say_nothing(axes[1])
    axes[0].set_xticks(range(4), MODULE_LABELS)
    axes[0].set_ylabel("top-1 error (%)")
    for axis in axes:
        axis.grid(axis="x", visible=False)
    return figure


def ordering(results: Results, reference: Path) -> Figure:
    """Fig. 6: the test curves of CAM first and SAM first, mean and deviation over seeds."""
    epochs = results.epochs[results.epochs["attention"].isin(ORDERS)]
    panels = list(_panels(epochs))
    figure, axes = _figure(max(1, len(panels)))
    for axis, (title, panel) in zip(axes, panels, strict=False):
        axis.set_title(title)
        for name, label in ORDERS.items():
            curve = panel[panel["attention"] == name]
            if curve.empty:
                continue
            _draw_curve(axis, curve, "test_top1_error", f"{label}, n = {curve['seed'].nunique()}")
        axis.set_xlabel("epoch")
        axis.set_ylabel("top-1 accuracy on the\ntest set (%), mean ± std")
        axis.legend()
        axis.xaxis.get_major_locator().set_params(integer=True)
    if not panels:
        say_nothing(axes[0])
    return figure


def maf_curve(results: Results, reference: Path) -> Figure:
    """The training of MobileNetV1 with MAF_C: its authors' published log, and ours.

    They stand in panels of their own; ours has the mean over seeds and their deviation.
    """
    ours = results.epochs[
        (results.epochs["backbone"] == "mobilenet_v1") & (results.epochs["attention"] == "maf_c")
    ]
    panels = list(_panels(ours))
    figure, axes = _figure(1 + max(1, len(panels)))
    log = pd.read_csv(shipped(reference / "maf_c_mobilenet_v1_imagenet_curve.csv"))
    axes[0].set_title("Published: MobileNetV1 + MAF_C\nImageNet-1K, 224×224")
    axes[0].plot(log["epoch"], log["val_top1_accuracy"], label="validation")
    axes[0].plot(log["epoch"], log["train_top1_accuracy"], label="training")
    axes[0].set_ylabel("top-1 accuracy (%)")
    for axis, (title, panel) in zip(axes[1:], panels, strict=False):
        axis.set_title(title)
        seeds = panel["seed"].nunique()
        _draw_curve(axis, panel, "test_top1_error", f"held out, n = {seeds}")
        _draw_curve(axis, panel, "train_top1_error", f"training, n = {seeds}")
        axis.set_ylabel("top-1 accuracy (%), mean ± std")
    for axis in axes[: 1 + len(panels)]:
        axis.set_xlabel("epoch")
        axis.legend(loc="lower right")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if not panels:
        axes[1].set(title="Ours", xticks=[], yticks=[])
        _say(axes[1], NOTHING)
    return figure


def _draw_curve(axis: Axes, epochs: pd.DataFrame, error: str, label: str) -> None:
    """Accuracy by epoch, mean and standard deviation over the seeds."""
    accuracy = (100 - epochs[error]).groupby(epochs["epoch"])
    mean, deviation = accuracy.mean(), accuracy.std(ddof=1).fillna(0)
    (line,) = axis.plot(mean.index, mean, label=label)
    axis.fill_between(
        mean.index, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2
    )


def accuracy_macs(results: Results, reference: Path) -> Figure:
    """Top-1 accuracy against multiply-accumulates, one panel a condition.

    The colour is the attention module's, the marker the backbone's. Two names of one function
    share their records, so they are one point.
    """
    summary = results.summary[(results.summary["n"] > 0) & results.summary["macs"].notna()]
    names: dict[str, str] = {}  # of the point that shows an attention, and its label
    for name in dict.fromkeys(summary["attention"]):
        twin = find_attention(name).alias_of if name in ATTENTIONS else None
        shown = twin if twin and twin in set(summary["attention"]) else name
        label = attention_label(name)
        names[shown] = f"{names[shown]} = {label}" if shown in names else label
    summary = summary[summary["attention"].isin(names)]
    conditions = list(dict.fromkeys(summary["condition"]))
    palette = [*mpl.color_sequences["tab20"], *mpl.color_sequences["tab20b"]]
    colours = dict(zip(names, cycle(palette), strict=False))
    markers = dict(zip(dict.fromkeys(summary["backbone"]), cycle("osD^vPX*"), strict=False))
    figure, axes = _figure(max(1, len(conditions)))
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
    if not conditions:
        say_nothing(axes[0])
        return figure
    handles: list[Artist] = [Patch(color=colour) for colour in colours.values()]
    handles += [Line2D([], [], marker=m, ls="", color="#777777") for m in markers.values()]
    labels = [*names.values(), *map(backbone_label, markers)]
    figure.set_figwidth(figure.get_figwidth() + 1.4)
    figure.legend(handles, labels, loc="outside right center")
    return figure


def maps(results: Results, reference: Path) -> Figure:
    """Fig. 4: for fixed images each module's Grad-CAM and, where it has one, its own map.

    One backbone in one condition, the first of the study that has maps. Two names of one
    function share their column; where a column has no maps it says why.
    """
    made = results.maps or Maps({}, {})
    blocks = [panel.drop_duplicates("attention") for _, panel in _panels(results.cells)]
    block = next((block for block in blocks if block["id"].isin(list(made.cells)).any()), None)
    if block is None:
        figure, (axis,) = _figure(1)
        measured = (results.cells["state"] == "measured").any()
        _say(axis, (NO_MAPS if results.maps is None else NO_WEIGHTS) if measured else NOTHING)
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


FIGURES: dict[str, Callable[[Results, Path], Figure]] = {
    "modules": modules,
    "ordering": ordering,
    "accuracy_macs": accuracy_macs,
    "maf_curve": maf_curve,
    "maps": maps,
}


def write_figure(study: Study, name: str, results: Results, reference: Path) -> None:
    """Draw a figure and write it as PDF and PNG, each atomically."""
    save(lambda: FIGURES[name](results, reference), study.figure_files(name))


def save(draw: Callable[[], Figure], files: Iterable[Path]) -> None:
    """Draw in the package's style and write each file, atomically."""
    # No window system, whatever the user's settings, and no date in the files: the same
    # numbers give the same bytes.
    mpl.use("agg")
    with matplotlib.style.context(str(resources("attngrid.render").joinpath("attngrid.mplstyle"))):
        figure = draw()
        for file in files:
            kind = file.suffix.removeprefix(".")
            buffer = io.BytesIO()
            metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_atomically(file, buffer.getvalue())


def _panels(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """One panel a condition and backbone, with its title."""
    for (condition, backbone), panel in frame.groupby(["condition", "backbone"], sort=False):
        yield f"{backbone_label(str(backbone))}\n{fill(str(condition), TITLE)}", panel


def _figure(panels: int) -> tuple[Figure, np.ndarray]:
    """A row of panels, up to three beside each other."""
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def say_nothing(axis: Axes) -> None:
    """Say in a panel that nothing has been measured."""
    _say(axis, NOTHING)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="#777777")
