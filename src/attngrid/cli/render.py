"""Commands that render tables, figures and the report, and explain a table's row."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attngrid.cli.arguments import EVIDENCE, STEPS, STUDY, YOUR_STUDY, argument, command
from attngrid.cli.measure import visualize

if TYPE_CHECKING:
    from attngrid.study.schema import Study

NAMES = argument("names", metavar="NAME", nargs="*", help="by default, all")


@command(STEPS, STUDY, NAMES)
def table(study: Study, names: list[str]) -> None:
    """Write all tables of a study, or some, as LaTeX, Markdown and CSV."""
    from attngrid.render.current import write_tables

    write_tables(study, names)


@command(STEPS, STUDY, NAMES)
def figure(study: Study, names: list[str]) -> None:
    """Draw all figures of a study, or some, as PDF and PNG."""
    from attngrid.render.current import write_figures

    write_figures(study, names)


@command(STEPS, STUDY)
def report(study: Study) -> None:
    """Write an HTML page with a study's tables and figures."""
    from attngrid.render.current import write_page

    write_page(study)


@command(
    YOUR_STUDY,
    STUDY,
    argument("--ended", action="store_true", help="no cell of the study runs any more"),
)
def current(study: Study, ended: bool) -> None:
    """Collect the existing records and render everything; train nothing."""
    from attngrid.measure.maps_file import with_weights
    from attngrid.render.current import render_current

    if "maps" in study.figures and with_weights(study):
        try:
            visualize(study)
        except Exception as error:  # a user's module may raise anything; the rest is rendered
            logging.getLogger(__name__).warning("no new attention maps: %s", error)
    render_current(study, ended)


@command(EVIDENCE, argument("row", metavar="TABLE:ROW", help="tables/demo.grid.tex:ResNet-18"))
def explain(row: str) -> Iterator[str]:
    """Print the records behind a table's row and the commands that make them."""
    from attngrid.render.trace import explain as chain

    return chain(row)
