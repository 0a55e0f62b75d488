"""How a command is declared, and what the commands share: STUDY and durations."""

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

    The docstring of the function is the help. What the function returns is printed, a line each.
    """

    group: str
    run: Run
    arguments: tuple[Argument, ...]


# By name; the files of the stages fill it.
COMMANDS: dict[str, Command] = {}


def argument(*names: str, **options: Any) -> Argument:
    """An argument of a command, as ``ArgumentParser.add_argument`` takes it."""
    return names, options


# The function takes the Study itself.
STUDY = argument("study", metavar="STUDY", nargs="?", help="see `attngrid --help`")


def command(group: str, *arguments: Argument) -> Callable[[Run], Run]:
    """Make a function a command of its name."""

    def register(run: Run) -> Run:
        COMMANDS[run.__name__.rstrip("_")] = Command(group, run, arguments)
        return run

    return register


def read_study(text: str | None) -> Study:
    """The study that STUDY stands for."""
    from attngrid.study.schema import find_study_file, load_study

    return load_study(find_study_file(text))


def duration(text: str) -> float:
    """``90s``, ``30m`` or ``1.5h`` in seconds."""
    match = re.fullmatch(r"(\d+\.?\d*)([smh])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}; 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
