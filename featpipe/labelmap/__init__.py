"""Label maps: the classes of a source classifier → the classes of a dataset, plus "other".

A map is a CSV file that a person can review: one row for every source class, keyed by the class's
id (for ImageNet its WordNet id) and never by its position. ``docs/labelmaps.md`` describes the
format, ``README.md`` in this folder how the built-in maps were made.
"""

from featpipe.labelmap.file import OTHER, Row
from featpipe.labelmap.mapping import IDENTITY, LabelMap, SourceClasses, builtin_maps, for_pair

__all__ = ["IDENTITY", "OTHER", "LabelMap", "Row", "SourceClasses", "builtin_maps", "for_pair"]
