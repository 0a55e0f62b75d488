"""Figures: their content with and without records, and equal bytes for equal data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import ttest_ind

import attngrid
from attngrid.analysis.frames import COUNTS, collect, write_results
from attngrid.core.validation import validate
from attngrid.records.status import write_status
from attngrid.render.figures import FIGURES, NO_BASELINE, NOTHING, STYLE, write_figure
from attngrid.study.cell import MODEL_KEY
from attngrid.study.schema import Study
from made_up import cells_with, enter_study_folder, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    enter_study_folder(tmp_path, monkeypatch)
    return validate(Study, tiny, "tiny.yaml")


def drawn(figure: Figure) -> str:
    return " ".join(t.get_text() for axis in figure.axes for t in (*axis.texts, axis.title))


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_without_records_says_so(study: Study, name: str) -> None:
    figure = FIGURES[name](collect(study))
    assert NOTHING in drawn(figure)


def test_gains_are_differences_of_means_with_scipys_welch_interval(
    tiny: dict[str, Any], study: Study
) -> None:
    """The best model is at the top, controls are hollow, CAM shares a row with SE."""
    tiny["grid"][0] |= {"attentions": ["none", "se", "cam", "csm", "none_wide:csm", "maf"]}
    compared = validate(Study, tiny, "t")
    errors = {"none": (50.0, 52.0), "se": (45.0, 49.0), "csm": (60.0, 61.0)}
    for name, by_seed in (errors | {"none_wide:csm": (48.0, 50.0)}).items():
        for cell, error in zip(cells_with(compared, name), by_seed, strict=True):
            fake_record(cell, error)
    (axis,) = FIGURES["gains"](collect(compared)).axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == [
        *("MAF, n = 0", "CSM, n = 2", "baseline, n = 2"),
        *("wide (CSM's params), n = 2", "SE = CAM, n = 2"),
    ]
    by_marker = {line.get_marker(): [] for line in axis.lines}
    for line in axis.lines:
        by_marker[line.get_marker()].append(line)
    marks = {line.get_ydata()[0]: line for kind in "os" for line in by_marker[kind]}
    assert {y: mark.get_xdata()[0] for y, mark in marks.items()} == {1: -9.5, 2: 0, 3: 2, 4: 4}
    assert [y for y, mark in marks.items() if mark.get_markerfacecolor() == "white"] == [3]
    seeds = [list(line.get_xdata()) for line in by_marker["."]]
    assert seeds == [[-9, -10], [1, -1], [3, 1], [6, 2]]
    intervals = [list(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2]
    welch = ttest_ind([55, 51], [50, 48], equal_var=False).confidence_interval(0.95)
    assert pytest.approx([welch.low, welch.high]) in intervals
    assert [text.get_text() for text in axis.texts] == ["--"]


def test_gains_without_a_baseline_say_so(study: Study) -> None:
    for cell in cells_with(study, "se"):
        fake_record(cell, 10.0)
    assert NO_BASELINE in drawn(FIGURES["gains"](collect(study)))


def test_ordering_draws_mean_and_standard_deviation_of_the_test_curves(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0]["attentions"] = ["csm", "csm_sam_first"]
    ordered = validate(Study, tiny, "t")
    for cell in ordered.cells:
        fake_record(cell, 50.0 + cell.seed, 20.0 + 2 * cell.seed)
    (axis,) = FIGURES["ordering"](collect(ordered)).axes
    first, second = axis.lines
    assert first.get_label() == "CAM first (CSM), n = 2"
    assert second.get_label() == "SAM first, n = 2"
    assert list(first.get_xdata()) == [1, 2]
    assert list(first.get_ydata()) == [49.5, 79.0]
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(79 + 2**0.5)


def test_mafs_published_curve_has_a_separate_panel(tiny: dict[str, Any], study: Study) -> None:
    (published,) = FIGURES["maf_curve"](collect(study)).axes  # and no empty half
    validation = published.lines[0].get_ydata()
    assert (len(validation), max(validation)) == (100, 73.128)  # as its authors' README says
    tiny["grid"][0] |= {"backbones": ["mobilenet_v1"], "attentions": ["maf_c"]}
    run = validate(Study, tiny, "t")
    for cell in run.cells:
        fake_record(cell, 50.0 + cell.seed, 20.0 + 2 * cell.seed)
    published, ours = FIGURES["maf_curve"](collect(run)).axes
    assert list(ours.lines[0].get_ydata()) == [49.5, 79.0]
    assert list(published.lines[0].get_ydata()) == list(validation)


def test_modules_has_a_separate_panel_for_the_published_bars(study: Study) -> None:
    for cell in study.cells:
        fake_record(cell, 12.0 + cell.seed)
    published, ours = FIGURES["modules"](collect(study)).axes
    assert [bar.get_height() for bar in published.patches] == [24.55, 23.21, 23.47, 22.78]
    assert [bar.get_height() for bar in ours.patches] == [12.5, 12.5]  # none and cam
    for axis in (published, ours):  # the first and the last bar do not touch the spines
        low, high = axis.get_xlim()
        assert low < -0.4
        assert high > 3.4
    ticks = [label.get_text() for label in ours.get_xticklabels()]
    assert ticks == ["baseline\nn = 2", "CAM\nn = 2", "SAM\nn = 0", "CSM\nn = 0"]
    assert [text.get_text() for text in ours.texts] == ["--", "--"]


def test_a_missing_bar_shows_the_state_and_each_tick_the_number_of_seeds(study: Study) -> None:
    none, cam = cells_with(study, "none"), cells_with(study, "cam")
    fake_record(none[0], 12.0)
    write_status(cam[0].status, "diverged", "x")
    ours = FIGURES["modules"](collect(study)).axes[1]
    ticks = [label.get_text() for label in ours.get_xticklabels()]
    assert ticks[:2] == ["baseline\nn = 1", "CAM\nn = 0"]
    assert ours.texts[0].get_text() == "diverged"


def test_every_attention_has_its_colour_and_aliases_share_a_point(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0]["attentions"] = attngrid.list_attentions()
    every = validate(Study, tiny, "t")
    for cell in every.cells:
        fake_record(cell, 12.0)
    (Path("results/tiny") / "complexity.csv").write_text(counted(every))
    (legend,) = FIGURES["accuracy_macs"](collect(every)).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "SE = CAM" in labels
    assert len(labels) == len(attngrid.list_attentions()) - 1 + 1  # CAM is SE; one backbone
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    assert len(set(colours)) == len(colours) == len(labels) - 1


def counted(study: Study) -> str:
    """A complexity table with made-up counts."""
    rows = [",".join([*map(str, cell.model_key), "1000", "2000", "3000"]) for cell in study.cells]
    return "\n".join([",".join([*MODEL_KEY, *COUNTS]), *dict.fromkeys(rows)]) + "\n"


@pytest.mark.slow
def test_every_text_is_in_the_figure_and_legible_at_a_columns_width(
    tiny: dict[str, Any], study: Study
) -> None:
    """A figure is as wide as a column, with many panels as a page, so it is not scaled in print."""
    tiny["grid"][0] |= {"attentions": ["none", "cam", "sam", "csm", "csm_sam_first", "maf_c"]}
    tiny["grid"][0] |= {"backbones": ["resnet18", "mobilenet_v1"]}
    for recipes in (["tiny"], ["tiny", "a_recipe_with_a_long_name"]):
        tiny["recipes"]["a_recipe_with_a_long_name"] = tiny["recipes"]["tiny"]
        tiny["grid"][0]["recipes"] = recipes
        both = validate(Study, tiny, "t")
        for cell in both.cells:
            fake_record(cell, 50.0 + cell.seed, 20.0)
        (Path("results/tiny") / "complexity.csv").write_text(counted(both))
        results = collect(both)
        for name in sorted({*FIGURES} - {"maps"}):
            with matplotlib.style.context(STYLE, after_reset=True):
                check_legible(FIGURES[name](results), name)


def check_legible(figure: Figure, name: str) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    assert width in (3.3, 6.6), name
    sizes = {t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()}
    assert min(sizes) >= 7, name
    drawn = figure.get_tightbbox(canvas.get_renderer())
    assert drawn.x0 >= -0.01, name
    assert drawn.y0 >= -0.01, name
    assert drawn.x1 <= width + 0.01, name
    assert drawn.y1 <= height + 0.01, name


@pytest.mark.slow
def test_the_users_settings_change_no_figure_and_stay(study: Study, tmp_path: Path) -> None:
    for cell in study.cells:
        fake_record(cell, 12.0 + cell.seed)
    results = collect(study)
    _, png = study.figure_files("modules")
    write_figure(study, "modules", results)
    before = png.read_bytes()
    theirs = {"font.size": 20, "axes.grid": False, "savefig.dpi": 30, "savefig.bbox": "tight"}
    with mpl.rc_context({**theirs, "text.usetex": True, "figure.facecolor": "red"}):
        write_figure(study, "modules", results)
        assert mpl.rcParams["font.size"] == 20
    assert png.read_bytes() == before


@pytest.mark.slow
def test_a_notebooks_backend_and_a_matplotlibrc_change_no_figure(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in study.cells:
        fake_record(cell, 12.0 + cell.seed)
    study.write_snapshot()
    write_results(study, collect(study))
    made = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "attngrid.cli", "figure", study.snapshot, "modules"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made.append([file.read_bytes() for file in study.figure_files("modules")])
        Path("matplotlibrc").write_text("font.size: 20\ntext.usetex: True\n")
        monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    assert made[0] == made[1]


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(study: Study) -> None:
    results = collect(study)
    first = {}
    for _ in range(2):
        write_figure(study, "modules", results)
        for file in study.figure_files("modules"):
            assert first.setdefault(file, file.read_bytes()) == file.read_bytes()
