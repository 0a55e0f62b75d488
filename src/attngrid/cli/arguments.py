"""What the commands share: the groups of the help page, STUDY, and durations."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attngrid.study.schema import Study

YOUR_STUDY = "your study"
STEPS = "the steps that Snakemake calls"
EVIDENCE = "evidence"


class Commands:
    """The commands of ``attngrid``, each in a group of the help page."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(
            required=True, prog="attngrid", metavar="COMMAND", help=argparse.SUPPRESS
        )
        self.groups: dict[str, dict[str, str]] = {YOUR_STUDY: {}, STEPS: {}, EVIDENCE: {}}

    @property
    def names(self) -> list[str]:
        """Every command."""
        return [name for group in self.groups.values() for name in group]

    def add(
        self, group: str, command: Callable[[argparse.Namespace], None], *, study: bool = False
    ) -> argparse.ArgumentParser:
        """Register a function; the command has its name and docstring.

        With ``study`` the first argument is STUDY, which may be left out.
        """
        name, about = command.__name__.rstrip("_"), command.__doc__ or ""
        parser = self._parsers.add_parser(name, description=about)
        parser.set_defaults(command=command)
        add_verbosity(parser)
        if study:
            parser.add_argument("study", metavar="STUDY", nargs="?", help="see `attngrid --help`")
        self.groups[group][name] = about
        return parser

    def help(self) -> str:
        """The commands by group, a line each."""
        lines = []
        for group, commands in self.groups.items():
            lines += [f"{group}:", *(f"  {name:12}{about}" for name, about in commands.items()), ""]
        return "\n".join(lines)


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``-v`` and ``-q``; only a given one sets ``level``."""
    kind = parser.add_mutually_exclusive_group()
    level: dict[str, Any] = {"action": "store_const", "dest": "level", "default": argparse.SUPPRESS}
    kind.add_argument("-v", "--verbose", const=logging.DEBUG, help="print details, too", **level)
    kind.add_argument("-q", "--quiet", const=logging.WARNING, help="print no progress", **level)


def study_file(arguments: argparse.Namespace) -> Path:
    """The configuration that STUDY stands for."""
    from attngrid.study.find import find_study_file

    return find_study_file(arguments.study)


def read_study(arguments: argparse.Namespace) -> Study:
    """The study that STUDY stands for."""
    from attngrid.study.schema import load_study

    return load_study(study_file(arguments))


def duration(text: str) -> float:
    """``90``, ``90s``, ``30m`` or ``2h`` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; 90s, 30m or 2h")
    return seconds
