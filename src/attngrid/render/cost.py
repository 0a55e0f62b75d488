"""What attention costs: added multiply-accumulates beside added time, and the tables of both."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import SymmetricalLogLocator

from attngrid.analysis.frames import read_frame
from attngrid.core.files import shipped
from attngrid.measure.cost_file import FILE, TIMED, Row, machine_label, read_costs
from attngrid.render.figures import WIDTH, save, say_nothing
from attngrid.render.tables import build_table, write_table
from attngrid.study.labels import attention_label, backbone_label

TABLES = ("cost", "cost_cifar")
COUNTED = Path("results/complexity.csv")
FILES = [Path("figures") / f"cost.{kind}" for kind in ("pdf", "png")]
TITLES = {"latency": "Latency of one image", "inference": "Inference", "training": "Training"}
GEOMETRY = ("stem", "num_classes", "input_size")
TITLE_CHARACTERS = 60  # as wide as a panel
# Percent up to which an axis is linear, so that nothing and less than nothing have a place.
LINEAR_MACS, LINEAR_TIME = 0.01, 1.0


def write_costs(file: Path = FILE, complexity: Path = COUNTED) -> list[Path]:
    """Render what has been measured as tables and as a figure, and say where."""
    nobody = pd.DataFrame(columns=["backbone", "attention", "condition"])
    written = list(FILES)
    for name in TABLES:
        description = shipped(Path("workflow/tables") / f"{name}.yaml")
        table = build_table(None, nobody, description, complexity=complexity, cost=file)
        write_table(table)
        written += table.files
    save(lambda: draw_costs(read_costs(file), added_macs(complexity)), FILES)
    return written


def added_macs(complexity: Path) -> dict[tuple[str, ...], float]:
    """Percent that an attention adds to its backbone, by geometry, backbone and attention."""
    if not shipped(complexity).is_file():
        return {}
    frame = read_frame(shipped(complexity))
    rows = frame[frame["options"] == ""].to_dict("records")
    macs = {tuple(str(row[key]) for key in (*GEOMETRY, *_MODEL)): row["macs"] for row in rows}
    without = {key: macs.get((*key[:-1], "none")) for key in macs}
    return {key: 100 * (count / base - 1) for key, count in macs.items() if (base := without[key])}


_MODEL = ("backbone", "attention")


def draw_costs(costs: list[Row], added: Mapping[tuple[str, ...], float]) -> Figure:
    """Added time against added multiply-accumulates, one row of panels a machine and image size.

    The colour is the attention module's, the marker the backbone's, the bar the quartiles over
    the rounds. On the dashed line time grows as the multiply-accumulates do.

    Args:
        costs: the rows of ``results/cost.csv``.
        added: as ``added_macs`` says.
    """
    points = [
        (row, added[key])
        for row in costs
        if row["attention"] != "none"
        and not row["options"]
        and (key := tuple(row[name] for name in (*GEOMETRY, *_MODEL))) in added
    ]
    lines = list(dict.fromkeys(_line(row) for row, _ in points))
    shape = (max(1, len(lines)), len(TITLES) if lines else 1)
    figure = Figure(figsize=(WIDTH * shape[1], 2.8 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    if not lines:
        say_nothing(axes[0, 0])
        return figure
    attentions = dict.fromkeys(row["attention"] for row, _ in points)
    backbones = dict.fromkeys(row["backbone"] for row, _ in points)
    palette = [*mpl.color_sequences["tab20"], *mpl.color_sequences["tab20b"]]
    colours = dict(zip(attentions, cycle(palette), strict=False))
    markers = dict(zip(backbones, cycle("osD^vPX*<>ph"), strict=False))
    for line, panels in zip(lines, axes, strict=True):
        here = [(row, macs) for row, macs in points if _line(row) == line]
        for name, axis in zip(TIMED, panels, strict=True):
            machine = fill(line[0], TITLE_CHARACTERS)
            axis.set_title(f"{TITLES[name]}, {line[-1]}×{line[-1]}\n{machine}", fontsize=7)
            for row, macs in here:
                _draw(axis, row, name, macs, colours[row["attention"]], markers[row["backbone"]])
            _set_axes(axis)
    handles: list[Artist] = [Patch(color=colour) for colour in colours.values()]
    handles += [Line2D([], [], marker=m, ls="", color="#777777") for m in markers.values()]
    handles.append(Line2D([], [], ls="--", color="#999999"))
    labels = [*map(attention_label, colours), *map(backbone_label, markers), "time as MACs"]
    figure.set_figwidth(figure.get_figwidth() + 1.4)
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _line(row: Row) -> tuple[str, ...]:
    """What the panels beside each other share."""
    return (machine_label(row), *(row[name] for name in GEOMETRY))


def _draw(axis: Axes, row: Row, name: str, macs: float, colour: object, marker: str) -> None:
    """A model's point."""
    ratio = f"{name}_ratio"
    low, time, high = (100 * (float(row[c]) - 1) for c in (f"{ratio}_q1", ratio, f"{ratio}_q3"))
    axis.errorbar(
        [macs],
        [time],
        yerr=[[time - low], [high - time]],
        fmt=marker,
        color=colour,
        alpha=0.8,
        markersize=4,
        elinewidth=0.8,
    )


def _set_axes(axis: Axes) -> None:
    axis.set_xscale("symlog", linthresh=LINEAR_MACS)
    axis.set_yscale("symlog", linthresh=LINEAR_TIME)
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("added multiply-accumulates (%)")
    axis.set_ylabel("added time (%)")
    low, high = axis.get_xlim()
    ends = axis.get_ylim()
    if ends[0] > 0 and ends[1] < 100 * ends[0]:  # powers of ten alone would be one tick or two
        axis.yaxis.set_major_locator(
            SymmetricalLogLocator(base=10, linthresh=LINEAR_TIME, subs=(1, 2, 5))
        )
    places = [low + (high - low) * step / 500 for step in range(501)]
    places += [10 ** (step / 50) for step in range(-150, 200)]
    line = sorted(place for place in places if low <= place <= high)
    axis.plot(line, line, "--", color="#999999", linewidth=0.8, zorder=0)
    axis.set_xlim(low, high)
    axis.set_ylim(*ends)
    axis.axhline(0, color="#999999", linewidth=0.6, zorder=0)
