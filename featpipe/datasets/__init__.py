"""Datasets by name: ``open_source("stl10", "train", options)`` gives images with identity.

Nothing here imports torch; a dataset's module is imported when the dataset is used.
"""

from __future__ import annotations

from featpipe.datasets.base import UNLABELLED, ImageSource
from featpipe.datasets.definition import Dataset, DatasetOptions, unknown_split
from featpipe.datasets.subset import Subset, class_balanced_rows, keep_classes
from featpipe.errors import UsageError
from featpipe.registry import OldRegistry

__all__ = [
    "DATASETS",
    "UNLABELLED",
    "Dataset",
    "DatasetOptions",
    "ImageSource",
    "Subset",
    "class_balanced_rows",
    "open_source",
    "splits_of",
]

DATASETS = OldRegistry("dataset")
for _name, _target, _summary in (
    ("stl10", "stl10:Stl10", "STL-10, 96 × 96, ten classes, ten official folds (downloads)"),
    ("cifar10", "cifar:Cifar10", "CIFAR-10, 32 × 32, ten classes (downloads)"),
    ("cifar100", "cifar:Cifar100", "CIFAR-100, 32 × 32, 100 fine classes (downloads)"),
    ("tiny-imagenet", "tiny_imagenet:TinyImageNet", "Tiny-ImageNet, 64 × 64, 200 (downloads)"),
    ("dogs-vs-cats", "dogs_vs_cats:DogsVsCats", "Kaggle's cats and dogs, split 70:30 by seed"),
    ("folder", "folder:Folder", "folder:PATH, a folder of images per class"),
    ("csv", "csv_list:CsvList", "csv:PATH, a table with the columns path, label[, split]"),
    ("npz", "npz:Npz", "npz:PATH, a NumPy archive with images and labels"),
    ("digits", "digits:Digits", "scikit-learn's handwritten digits, 8 × 8, always offline"),
):
    DATASETS.add(_name, f"featpipe.datasets.{_target}", _summary)


def splits_of(spec: str, options: DatasetOptions) -> tuple[str, ...]:
    """Return the splits meant for training and evaluation, the training split first.

    Parameters
    ----------
    spec : str
        Dataset as the user names it: ``"stl10"``, ``"folder:photos"``.
    options : DatasetOptions

    Raises
    ------
    UnknownNameError
        If there is no such dataset.
    UsageError
        If a path is missing or there is one too many.
    DataError
        If the splits are told by files and those cannot be read.
    """
    dataset, path = _parse(spec)
    return dataset.splits(path, options)


def open_source(spec: str, split: str, options: DatasetOptions) -> ImageSource:
    """Open one split of a dataset: found, checked, fingerprinted, ready to be read.

    Parameters
    ----------
    spec : str
        Dataset as the user names it: ``"stl10"``, ``"folder:photos"``.
    split : str
    options : DatasetOptions

    Returns
    -------
    source : ImageSource

    Raises
    ------
    UnknownNameError
        If there is no such dataset, split or class.
    DataError
        If the dataset is missing, damaged or laid out otherwise.

    Examples
    --------
    >>> digits = open_source("digits", "test", DatasetOptions(seed=0))
    >>> len(digits), digits.read(0).shape
    (539, (8, 8, 3))
    """
    dataset, path = _parse(spec)
    splits = (*dataset.splits(path, options), *dataset.more_splits)
    if split not in splits:
        raise unknown_split(spec, split, splits)
    source = dataset.open(path, split, options)
    if options.classes is not None and not dataset.selects_classes:
        return keep_classes(source, options.classes)
    return source


def _parse(spec: str) -> tuple[Dataset, str]:
    name, _, path = spec.partition(":")
    dataset: Dataset = DATASETS.load(name)()
    if dataset.takes_path and not path:
        raise UsageError(
            f"The dataset {name!r} needs a path.", got=spec, expected=f"{name}:{dataset.takes_path}"
        )
    if path and not dataset.takes_path:
        raise UsageError(f"The dataset {name!r} takes no path.", got=spec, expected=name)
    return dataset, path
