"""``attngrid``: the parser, the messages and the exit codes. Heavy packages load in commands."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from attngrid import __version__
from attngrid.cli import analysis, measure, render, study, train
from attngrid.cli.arguments import Commands, add_verbosity
from attngrid.core.errors import AttngridError, UnknownNameError

DESCRIPTION = """\
Train a grid of backbones, attention modules and seeds, and make its tables and figures.

STUDY is a configuration (config/cifar100.yaml), a resolved one (results/demo/study.json) or a
study's name (demo). Without it the commands read what Snakemake reads: config/config.yaml, or
study.yaml in a study folder. CELL is a cell's id, or the beginning of one."""


class StderrLines(logging.Handler):
    """Messages as plain lines on stderr. A closed stderr ends no training."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        with suppress(OSError, ValueError):  # ValueError: closed by this process
            if sys.stderr is not None:
                print(self.format(record), file=sys.stderr, flush=True)


def configure_logging(level: int = logging.INFO) -> None:
    """Print the package's messages from this level on."""
    logger = logging.getLogger("attngrid")
    logger.setLevel(level)
    if not any(isinstance(handler, StderrLines) for handler in logger.handlers):
        logger.addHandler(StderrLines())


def _build() -> tuple[argparse.ArgumentParser, Commands]:
    top = argparse.ArgumentParser(
        prog="attngrid",
        usage="attngrid [-v | -q] COMMAND ...",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"attngrid {__version__}")
    add_verbosity(top)
    commands = Commands(top)
    for stage in (study, train, measure, render, analysis):
        stage.register(commands)
    top.epilog = commands.help() + "`attngrid COMMAND --help` explains a command's arguments."
    return top, commands


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return _build()[0]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    top, commands = _build()
    # no option before the command takes a value
    name = next((word for word in argv if not word.startswith("-")), None)
    if name is not None and name not in commands.names:
        top.error(str(UnknownNameError("command", name, commands.names)))
    return top.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error that the user can mend is one message, not a traceback."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    configure_logging(getattr(arguments, "level", logging.INFO))
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if arguments.command is train.train:  # not of stdout: a training prints nothing there
            raise
        # the reader of stdout has ended; the interpreter's last flush needs an open file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AttngridError as error:
        with suppress(OSError):
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            print(f"attngrid: error: {error}{notes}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    return 0
