"""Datasets by name: ``open_source("stl10", "train", options)`` gives images with identity.

Nothing here imports torch; a dataset's module is imported when the dataset is used.
"""

from __future__ import annotations

from featpipe.datasets.dataset import (
    DATASETS,
    Dataset,
    DatasetOptions,
    PathDataset,
    SourceRequest,
    open_source,
    short_name,
    slug,
    splits_of,
)
from featpipe.datasets.selection import Subset, class_balanced_rows
from featpipe.datasets.source import UNLABELLED, ArraySource, Identity, ImageSource, row_ids

__all__ = [
    "DATASETS",
    "UNLABELLED",
    "ArraySource",
    "Dataset",
    "DatasetOptions",
    "Identity",
    "ImageSource",
    "PathDataset",
    "SourceRequest",
    "Subset",
    "class_balanced_rows",
    "open_source",
    "row_ids",
    "short_name",
    "slug",
    "splits_of",
]
