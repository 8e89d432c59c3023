"""The command line: the only place that prints or sets an exit code."""

from featpipe.cli.main import main, program

__all__ = ["main", "program"]
