"""Embed a dataset with a frozen backbone into sealed feature stores."""

from featpipe.extract.command import run_extract
from featpipe.extract.engine import ExtractOptions, extract_source

__all__ = ["ExtractOptions", "extract_source", "run_extract"]
