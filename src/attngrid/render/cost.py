"""Figure and tables of the cost of attention: added multiply-accumulates and added time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import SymmetricalLogLocator

from attngrid.analysis.frames import COMPLEXITY, read_frame
from attngrid.core.files import shipped
from attngrid.measure.cost_file import FILE, TIMED, Row, machine_label, read_costs
from attngrid.models.registry import attention_label
from attngrid.render.figures import WIDTH, add_legend, model_styles, save, write_in
from attngrid.render.layout import write_table
from attngrid.render.tables import build_table

TABLES = ("cost", "cost_cifar")
FILES = [Path("figures") / f"cost.{kind}" for kind in ("pdf", "png")]
TITLES = {"latency": "Latency of one image", "inference": "Inference", "training": "Training"}
GEOMETRY = ("stem", "num_classes", "input_size")
MODEL = (*GEOMETRY, "backbone", "attention")
TITLE_CHARACTERS = 60  # that fit above a panel
# Each axis is linear up to this percentage, so that it can show 0 and negative values.
LINEAR_MACS, LINEAR_TIME = 0.01, 1.0


def write_costs(file: Path = FILE, complexity: Path = COMPLEXITY) -> list[Path]:
    """Render all measured costs as tables and as a figure; return the files."""
    no_study = pd.DataFrame(columns=["backbone", "attention", "condition"])
    written = list(FILES)
    for name in TABLES:
        description = shipped(Path("workflow/tables") / f"{name}.yaml")
        table = build_table(None, no_study, description, complexity=complexity, cost=file)
        write_table(table)
        written += table.files
    save(lambda: draw_costs(read_costs(file), added_macs(complexity)), FILES)
    return written


def added_macs(complexity: Path) -> dict[tuple[str, ...], float]:
    """The percentage that attention adds to the backbone's MACs, by the values of ``MODEL``."""
    if not shipped(complexity).is_file():
        return {}
    frame = read_frame(shipped(complexity))
    rows = frame[frame["options"] == ""].to_dict("records")
    macs = {tuple(str(row[key]) for key in MODEL): row["macs"] for row in rows}
    without = {key: macs.get((*key[:-1], "none")) for key in macs}
    return {key: 100 * (count / base - 1) for key, count in macs.items() if (base := without[key])}


def draw_costs(costs: list[Row], added: Mapping[tuple[str, ...], float]) -> Figure:
    """Added time against added multiply-accumulates, one row of panels per machine and size.

    The colour shows the attention module, the marker the backbone, the bar the quartiles over the
    rounds. On the dashed line, time grows in proportion to the multiply-accumulates.
    """
    points = [
        (row, added[key])
        for row in costs
        if row["attention"] != "none"
        and not row["options"]
        and (key := tuple(row[name] for name in MODEL)) in added
    ]
    lines = list(dict.fromkeys(_line(row) for row, _ in points))
    shape = (max(1, len(lines)), len(TITLES) if lines else 1)
    figure = Figure(figsize=(WIDTH * shape[1], 2.8 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    if not lines:
        write_in(axes[0, 0])
        return figure
    colours, markers = model_styles(
        (row["attention"] for row, _ in points), (row["backbone"] for row, _ in points)
    )
    for line, panels in zip(lines, axes, strict=True):
        for name, axis in zip(TIMED, panels, strict=True):
            machine = fill(line[0], TITLE_CHARACTERS)
            axis.set_title(f"{TITLES[name]}, {line[-1]}×{line[-1]}\n{machine}", fontsize=7)
            for row, macs in points:
                if _line(row) == line:
                    columns = (f"{name}_ratio{quartile}" for quartile in ("_q1", "", "_q3"))
                    low, time, high = (100 * (float(row[column]) - 1) for column in columns)
                    axis.errorbar(
                        [macs],
                        [time],
                        yerr=[[time - low], [high - time]],
                        fmt=markers[row["backbone"]],
                        color=colours[row["attention"]],
                        alpha=0.8,
                        markersize=4,
                        elinewidth=0.8,
                    )
            _set_axes(axis)
    diagonal = Line2D([], [], ls="--", color="#999999")
    labels = [attention_label(name) for name in colours]
    add_legend(figure, labels, colours, markers, {"time as MACs": diagonal})
    return figure


def _line(row: Row) -> tuple[str, ...]:
    """The machine and the size that the panels of one row share."""
    return (machine_label(row), *(row[name] for name in GEOMETRY))


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
