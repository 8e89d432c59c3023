"""Embed a dataset with a frozen backbone into sealed feature stores; no torch until it runs."""

from featpipe.extraction.step import Extract, ImageStep

__all__ = ["Extract", "ImageStep"]
