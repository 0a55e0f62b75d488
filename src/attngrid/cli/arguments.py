"""The declaration of commands, and their common arguments: STUDY and durations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attngrid.study.schema import Study

GROUPS = ("your study", "the steps that Snakemake calls", "evidence")
YOUR_STUDY, STEPS, EVIDENCE = GROUPS

# The names and the options of ``ArgumentParser.add_argument``.
Argument = tuple[tuple[str, ...], dict[str, Any]]
Run = Callable[..., Iterable[object] | None]


@dataclass(frozen=True)
class Command:
    """A command in a group of the help page. Its function takes the arguments by name.

    The docstring of the function is the help. Each item that the function returns is a line.
    """

    group: str
    run: Run
    arguments: tuple[Argument, ...]


# All commands by name; ``command`` fills it.
COMMANDS: dict[str, Command] = {}


def argument(*names: str, **options: Any) -> Argument:
    """An argument of a command, as for ``ArgumentParser.add_argument``."""
    return names, options


# ``main`` replaces its text by the Study.
STUDY = argument("study", metavar="STUDY", nargs="?", help="see `attngrid --help`")


def command(group: str, *arguments: Argument) -> Callable[[Run], Run]:
    """Register a function as the command with its name."""

    def register(run: Run) -> Run:
        COMMANDS[run.__name__.rstrip("_")] = Command(group, run, arguments)
        return run

    return register


def read_study(text: str | None) -> Study:
    """Load the study that the argument STUDY names."""
    from attngrid.study.schema import find_study_file, load_study

    return load_study(find_study_file(text))


def duration(text: str) -> float:
    """``90s``, ``30m`` or ``1.5h`` in seconds."""
    match = re.fullmatch(r"(\d+\.?\d*)([smh])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}; needs a time such as 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
