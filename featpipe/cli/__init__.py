"""The command line: the only place that prints or sets an exit code."""

from featpipe.cli.main import main

__all__ = ["main"]
