"""Tables, figures and the report, and from a table's row back to its records."""

from __future__ import annotations

import argparse
import logging

from attngrid.cli.arguments import EVIDENCE, STEPS, YOUR_STUDY, Commands, read_study
from attngrid.cli.measure import update_maps


def table(arguments: argparse.Namespace) -> None:
    """Write a study's tables, or those named, as LaTeX, Markdown and CSV."""
    from attngrid.render.current import write_tables

    write_tables(read_study(arguments), arguments.names)


def figure(arguments: argparse.Namespace) -> None:
    """Draw a study's figures, or those named, as PDF and PNG."""
    from attngrid.render.current import write_figures

    write_figures(read_study(arguments), arguments.names)


def report(arguments: argparse.Namespace) -> None:
    """Write the page that shows a study's tables and figures."""
    from attngrid.render.current import write_page

    write_page(read_study(arguments))


def current(arguments: argparse.Namespace) -> None:
    """Collect whatever records exist and render everything; train nothing."""
    from attngrid.measure.maps_file import with_weights
    from attngrid.render.current import render_current

    study = read_study(arguments)
    if "maps" in study.figures and with_weights(study):
        try:
            update_maps(study)
        except Exception as error:  # a user's module may raise anything; the rest is rendered
            logging.getLogger(__name__).warning("no new attention maps: %s", error)
    render_current(study, arguments.ended)


def explain(arguments: argparse.Namespace) -> None:
    """Print the chain from a table's row to its records and the commands that make them."""
    from attngrid.render.trace import explain as chain

    for line in chain(arguments.row):
        print(line)


def register(commands: Commands) -> None:
    """Add these commands."""
    for command in (table, figure):
        names = commands.add(STEPS, command, study=True)
        names.add_argument("names", metavar="NAME", nargs="*", help="without one, all")
    commands.add(STEPS, report, study=True)
    ended = commands.add(YOUR_STUDY, current, study=True)
    ended.add_argument("--ended", action="store_true", help="no cell of the study runs any more")
    row = commands.add(EVIDENCE, explain)
    row.add_argument("row", metavar="TABLE:ROW", help="tables/demo.grid.tex:ResNet-18")
