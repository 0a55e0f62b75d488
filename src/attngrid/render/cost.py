"""Figure and tables of the cost of attention: added multiply-accumulates and added time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from attngrid.analysis.frames import COMPLEXITY, read_frame
from attngrid.core.files import shipped
from attngrid.measure.cost_file import TIMED, Row, machine_label, read_costs
from attngrid.models.registry import ATTENTIONS, attention_label
from attngrid.render.figures import WIDTH, add_legend, marker_handle, save, write_in
from attngrid.render.layout import write_table
from attngrid.render.tables import build_table
from attngrid.study.labels import backbone_label

TABLES = ("cost", "cost_cifar")
FILES = [Path("figures") / f"cost.{kind}" for kind in ("pdf", "png")]
TITLES = {
    "latency": "latency of one image",
    "inference": "inference of a batch",
    "training": "training step",
}
MODEL = ("stem", "num_classes", "input_size", "backbone", "attention")
LINEAR = 1.0  # the axis is linear up to this percentage, so that it can show negative values
MACHINES = 7  # most colours: the style's own, without black
MARKERS = "o^sDvP"  # of families of backbones


def write_costs() -> list[Path]:
    """Render all measured costs as tables and as a figure; return the files."""
    no_study = pd.DataFrame(columns=["backbone", "attention", "condition"])
    written = list(FILES)
    for name in TABLES:
        description = shipped(Path("workflow/tables") / f"{name}.yaml")
        table = build_table(None, no_study, description)
        write_table(table)
        written += table.files
    save(lambda: draw_costs(read_costs(), added_macs()), FILES)
    return written


def added_macs() -> dict[tuple[str, ...], float]:
    """The percentage that attention adds to the backbone's MACs, by the values of ``MODEL``."""
    file = shipped(COMPLEXITY)
    if not file.is_file():
        return {}
    rows = read_frame(file).query("options == ''").to_dict("records")
    macs = {tuple(str(row[key]) for key in MODEL): row["macs"] for row in rows}
    without = {key: macs.get((*key[:-1], "none")) for key in macs}
    return {key: 100 * (count / base - 1) for key, count in macs.items() if (base := without[key])}


def draw_costs(costs: list[Row], added: Mapping[tuple[str, ...], float]) -> Figure:
    """The time that each module adds, one panel for latency, inference and training.

    A row is a module, the colour a machine and image size, the marker a family of backbones, the
    bar the quartiles over the rounds. A grey tick is what the multiply-accumulates add. Variants
    of a module, and machines after the first seven by the number of models, are in the table only.
    """
    points = [
        (row, added[key])
        for row in costs
        if row["attention"] != "none"
        and not _is_variant(row["attention"])
        and not row["options"]
        and (key := tuple(row[name] for name in MODEL)) in added
    ]
    lines = [_line(row) for row, _ in points]
    machines = sorted(dict.fromkeys(lines), key=lambda line: -lines.count(line))[:MACHINES]
    if not machines:
        figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
        write_in(figure.subplots())
        return figure
    by_module: dict[str, list[float]] = {}
    for row, macs in points:
        by_module.setdefault(row["attention"], []).append(macs)
    modules = sorted(by_module, key=lambda name: median(by_module[name]))
    families = list(dict.fromkeys(_family(row) for row, _ in points))
    markers = dict(zip(families, MARKERS * len(families), strict=False))
    figure = Figure(figsize=(WIDTH, 3 * (0.6 + 0.19 * max(5, len(modules)))), layout="constrained")
    axes = figure.subplots(len(TIMED), sharex=True)
    for name, axis in zip(TIMED, axes, strict=True):
        axis.set_title(f"Time added to the {TITLES[name]}")
        for row, macs in points:
            if (line := _line(row)) in machines:
                offset = 0.7 * ((machines.index(line) + 0.5) / len(machines) - 0.5)
                place = modules.index(row["attention"]) + offset
                look = {"color": f"C{machines.index(line)}", "marker": markers[_family(row)]}
                _draw_point(axis, name, row, macs, place, **look)
        _set_axes(axis, [attention_label(module) for module in modules])
    axes[-1].set_xlabel("added time (%)")
    labels = _apart(machines)
    handles: dict[str, Artist] = {
        label: Patch(color=f"C{number}") for number, label in enumerate(labels)
    }
    markings = {"added MACs": "|", **markers}
    handles |= {label: marker_handle(marker) for label, marker in markings.items()}
    add_legend(figure, handles)
    return figure


def _draw_point(axis: Axes, name: str, row: Row, macs: float, place: float, **look: Any) -> None:
    low, time, high = (100 * (float(row[f"{name}_ratio{q}"]) - 1) for q in ("_q1", "", "_q3"))
    axis.plot(macs, place, "|", color="#999999", markersize=5)
    axis.plot([low, high], [place, place], color=look["color"], linewidth=0.5, alpha=0.4)
    axis.plot(time, place, markersize=3, alpha=0.8, ls="", **look)


def _is_variant(attention: str) -> bool:
    """Whether it is another module with other options, such as CSM with the residual."""
    return bool(attention in ATTENTIONS and ATTENTIONS[attention].options)


def _family(row: Row) -> str:
    """The first word of a backbone's label: ResNet of ResNet-50, MobileNet of MobileNetV2."""
    label = backbone_label(row["backbone"])
    found = re.match(r"[A-Za-z]+?(?=V?\d|[^A-Za-z]|$)", label)
    return found[0] if found else label


def _line(row: Row) -> tuple[str, ...]:
    """What the points of one colour share: the parts of the machine's label, and the size."""
    return (*machine_label(row).split(", "), f"{row['input_size']}×{row['input_size']}")


def _apart(machines: Sequence[tuple[str, ...]]) -> list[str]:
    """The labels of machines and sizes, without what all of them share."""
    shared = set.intersection(*map(set, machines)) if len(machines) > 1 else set()
    labels = (", ".join(part for part in parts if part not in shared) for parts in machines)
    return [label or parts[0] for label, parts in zip(labels, machines, strict=True)]


def _set_axes(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_xscale("symlog", linthresh=LINEAR)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axis.tick_params(labelbottom=True, labelsize=7)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)  # the module with the fewest operations is at the top
    axis.axvline(0, color="#999999", linewidth=0.8, zorder=0)
