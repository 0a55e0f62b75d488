"""``attngrid``: parser, messages and exit codes. Only the commands import heavy packages."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from attngrid import __version__
from attngrid.cli import analysis, measure, render, study, train
from attngrid.cli.arguments import COMMANDS, GROUPS, read_study
from attngrid.core.errors import AttngridError, UnknownNameError

STAGES = (study, train, measure, render, analysis)  # importing them fills COMMANDS

DESCRIPTION = """\
Train a grid of backbones, attention modules and seeds, and make its tables and figures.

STUDY is a configuration (config/cifar100.yaml), a resolved one (results/demo/study.json) or a
study's name (demo). Without it the commands read what Snakemake reads: config/config.yaml, or
study.yaml in a study folder. CELL is a cell's id, or the beginning of one."""


def configure_logging(level: int = logging.INFO) -> None:
    """Print the package's messages of this level or above on stderr."""
    logging.raiseExceptions = False  # a closed stderr does not end a training
    logger = logging.getLogger("attngrid")
    logger.setLevel(level)
    logger.handlers = [logging.StreamHandler()]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    # accepted before and after the command, so only a given flag sets the level
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    level: dict[str, Any] = {"action": "store_const", "dest": "level"}
    flags.add_argument("-v", "--verbose", const=logging.DEBUG, help="print details, too", **level)
    flags.add_argument("-q", "--quiet", const=logging.WARNING, help="print no progress", **level)
    lines = []
    for group in GROUPS:
        members = sorted(name for name, command in COMMANDS.items() if command.group == group)
        lines += [
            f"{group}:",
            *(f"  {name:12}{COMMANDS[name].run.__doc__}" for name in members),
            "",
        ]
    top = argparse.ArgumentParser(
        prog="attngrid",
        usage="attngrid [-v | -q] COMMAND ...",
        description=DESCRIPTION,
        epilog="\n".join([*lines, "`attngrid COMMAND --help` explains a command's arguments."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags],
    )
    top.add_argument("--version", action="version", version=f"attngrid {__version__}")
    parsers = top.add_subparsers(
        required=True, prog="attngrid", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, command in COMMANDS.items():
        one = parsers.add_parser(name, description=command.run.__doc__, parents=[flags])
        one.set_defaults(command=name)
        for names, options in command.arguments:
            one.add_argument(*names, **options)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error that the user can fix is one message, not a traceback."""
    # a notebook's backend may not be installed here, and figures are only written to files
    os.environ["MPLBACKEND"] = "agg"
    argv, top = sys.argv[1:] if argv is None else argv, parser()
    # no option before the command takes a value
    name = next((word for word in argv if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        top.error(str(UnknownNameError("command", name, COMMANDS)))
    arguments = vars(top.parse_args(argv))
    run = COMMANDS[arguments.pop("command")].run
    configure_logging(arguments.pop("level", logging.INFO))
    try:
        if "study" in arguments:
            arguments["study"] = read_study(arguments["study"])
        for line in run(**arguments) or ():
            print(line)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except BrokenPipeError:
        if name == "train":  # a training prints nothing to stdout
            raise
        # stdout has no reader any more; the interpreter's last flush needs an open file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AttngridError as error:
        with suppress(OSError):
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            print(f"attngrid: error: {error}{notes}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    finally:
        _drop_unwritten_messages()
    return 0


def _drop_unwritten_messages() -> None:
    """Forget what stderr cannot take, as on a full disk; the last flush would make it exit 120."""
    try:
        if sys.stderr is not None:  # it may be closed
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
