"""The command line."""

from attngrid.cli.main import main

__all__ = ["main"]
