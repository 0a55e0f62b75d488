"""The sheet of attention maps: one row per image, one group of columns per network."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attngrid.measure.maps_file import CellMaps

# Sizes in inches
PAGE = 7.0  # page width: both columns of a paper
LARGEST = 0.95  # largest side of a panel
GAP, SPACE, MARGIN = 0.02, 0.1, 0.04  # between panels, between networks, around the sheet
LINE, HEAD, FOOT = 0.15, 0.6, 0.14  # a line of text, above the first row, below each panel

STRIPS = 11  # most panels in a row, without the images
COLOURS = "viridis"
HEAT = 0.6  # weight of the colour in an overlay
STYLE: dict[Any, Any] = {
    "axes.grid": False,
    "axes.labelpad": 1.5,
    "axes.labelsize": 6.5,
    "axes.titlepad": 2.0,
    "axes.titlesize": 6.5,
}


@dataclass(frozen=True)
class Strip:
    """A column of panels, one per image: its head, and a function that draws the k-th panel."""

    head: str
    draw: Callable[[Axes, int], None]


@dataclass(frozen=True)
class Column:
    """A network's label and strips, or the reason why it has none."""

    label: str
    strips: tuple[Strip, ...] = ()
    why: str = ""

    @property
    def panels(self) -> int:
        """The width in panels."""
        return max(1, len(self.strips))


def photographs(images_KHWC: NDArray[np.uint8], labels: Sequence[int]) -> Strip:
    """The images, with their classes."""

    def draw(axis: Axes, k: int) -> None:
        axis.imshow(images_KHWC[k])
        axis.set_xlabel(f"class {labels[k]}")

    return Strip("", draw)


def strips(maps: CellMaps, images_KHWC: NDArray[np.uint8]) -> tuple[Strip, ...]:
    """A network's Grad-CAM over the grey image, and its module's spatial map if it has one.

    Each column has one colour scale, whose range stands above it: from 0, or from the smallest
    value if it is negative, to the largest value of all images.
    """

    def grad_cam(axis: Axes, k: int) -> None:
        axis.imshow(overlay(images_KHWC[k], maps.grad_cam_KHW[k], scale(maps.grad_cam_KHW)[1]))
        wrong = maps.predicted[k] != maps.labels[k]
        axis.set_xlabel(f"seen as {maps.predicted[k]}", color="C1" if wrong else "black")

    def own(axis: Axes, k: int) -> None:
        assert maps.own_KHW is not None
        low, high = scale(maps.own_KHW)
        axis.imshow(maps.own_KHW[k], cmap=COLOURS, vmin=low, vmax=high, interpolation="nearest")
        axis.set_xlabel(between(maps.own_KHW[k]))

    made = (Strip(f"Grad-CAM\n{_size(maps.grad_cam_KHW)}", grad_cam),)
    return made if maps.own_KHW is None else (*made, Strip(f"own map\n{_size(maps.own_KHW)}", own))


def scale(maps_KHW: NDArray[np.float32]) -> tuple[float, float]:
    """The ends of the colours of a column of maps."""
    return min(0.0, float(maps_KHW.min())), max(0.0, float(maps_KHW.max()))


def draw_maps(title: str, images: Strip, columns: Sequence[Column], rows: int) -> Figure:
    """Draw a page-wide sheet; columns that do not fit continue in another band below."""
    bands = _bands(columns)
    widths = [SPACE * len(band) + 2 * MARGIN for band in bands]
    panels = [1 + sum(column.panels for column in band) for band in bands]
    side = min(LARGEST, *((PAGE - w) / n - GAP for w, n in zip(widths, panels, strict=True)))
    # about 15 letters fit above a panel of one inch
    labels = {c: textwrap.wrap(c.label, max(8, int(15 * side * c.panels))) for c in columns}
    head = HEAD + LINE * (max(map(len, labels.values()), default=1) - 1)
    band_height = head + rows * (side + FOOT)
    lines = textwrap.wrap(title, 110)
    start = MARGIN + LINE * len(lines)
    height = start + len(bands) * band_height + MARGIN
    figure = Figure(figsize=(PAGE, height))
    figure.set_layout_engine("none")

    def write(x: float, y: float, text: str, **more: Any) -> None:
        figure.text(x / PAGE, 1 - y / height, text, **more)

    write(MARGIN, start, "\n".join(lines), fontsize=8)
    for number, band in enumerate(bands):
        x, top = MARGIN, start + number * band_height + head
        for column in (Column("", (images,)), *band):
            middle = x + (column.panels * (side + GAP) - GAP) / 2
            label = "\n".join(labels.get(column, ()))
            write(middle, top - 0.4, label, fontsize=7, ha="center", va="baseline")
            if not column.strips:
                centre = top + (band_height - head - FOOT) / 2
                look = {"rotation": 90, "ha": "center", "va": "center", "color": "#777777"}
                write(middle, centre, column.why, fontsize=7, **look)
            for place, strip in enumerate(column.strips):
                for k in range(rows):
                    left, bottom = x + place * (side + GAP), top + side + k * (side + FOOT)
                    box = (left / PAGE, 1 - bottom / height, side / PAGE, side / height)
                    with mpl.rc_context(STYLE):
                        axis = figure.add_axes(box, xticks=[], yticks=[])
                        axis.spines[:].set_visible(False)
                        strip.draw(axis, k)
                        if k == 0:
                            axis.set_title(strip.head)
            x += column.panels * (side + GAP) + SPACE
    return figure


def overlay(
    image_HWC: NDArray[np.uint8], cam_HW: NDArray[np.float32], largest: float
) -> NDArray[np.float64]:
    """A Grad-CAM in colour over the image in grey: RGB from 0 to 1; each value is a rectangle.

    ``largest`` has the last colour. It does not use matplotlib's alpha, because PDF and PNG show
    transparency differently.
    """
    finer = math.ceil(64 / min(image_HWC.shape[:2]))
    grey_HW = image_HWC.mean(2).repeat(finer, 0).repeat(finer, 1) / 255
    rows, columns = (
        np.arange(size) * known // size
        for known, size in zip(cam_HW.shape, grey_HW.shape, strict=True)
    )
    heat_HW3 = mpl.colormaps[COLOURS](cam_HW[rows][:, columns] / (largest or 1))[..., :3]
    mixed_HW3: NDArray[np.float64] = (1 - HEAT) * grey_HW[..., None] + HEAT * heat_HW3
    return mixed_HW3


def between(values: NDArray[np.float32]) -> str:
    """The smallest and the largest value, to two digits of the larger magnitude."""
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    decimals = max(0, 1 - math.floor(math.log10(largest))) if largest else 0
    return f"{low:.{decimals}f}…{high:.{decimals}f}".replace("-", "−")


def _size(maps_KHW: NDArray[np.float32]) -> str:
    """The positions of a column of maps, and the range of its colours."""
    ends = between(np.array(scale(maps_KHW), np.float32))
    return f"{maps_KHW.shape[1]}×{maps_KHW.shape[2]}\n{ends}"


def _bands(columns: Sequence[Column]) -> list[list[Column]]:
    """Distribute columns evenly over as few bands of at most ``STRIPS`` panels as possible."""
    total = sum(column.panels for column in columns)
    most = max(2, math.ceil(total / math.ceil(total / STRIPS)))
    bands: list[list[Column]] = [[]]
    for column in columns:
        if bands[-1] and sum(c.panels for c in bands[-1]) + column.panels > most:
            bands.append([])
        bands[-1].append(column)
    return bands
