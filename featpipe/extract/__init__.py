"""Embed a dataset with a frozen backbone into sealed feature stores.

Importing this package brings neither torch nor NumPy; :mod:`featpipe.extract.engine` does the work.
"""

from featpipe.extract.step import Extract, ImageStep

__all__ = ["Extract", "ImageStep"]
