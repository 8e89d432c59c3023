"""Datasets by name. Nothing here imports NumPy; a dataset's module is imported when it is used."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from featpipe.errors import MissingExtraError, UnknownNameError
from featpipe.registry import Registry

if TYPE_CHECKING:
    from featpipe.datasets.dataset import Dataset

__all__ = [
    "CIFAR10_TRAIN",
    "DATASETS",
    "IMAGENET",
    "check_installed",
    "short_name",
    "slug",
    "spec_of_path",
    "split_spec",
]

# Labelled images that weights are trained on and that datasets were drawn from, by one name.
IMAGENET = "ImageNet-1k"
CIFAR10_TRAIN = "CIFAR-10's training images"


class _Datasets(Registry["type[Dataset]"]):
    def canonical(self, name: str) -> str:
        """Return the name; whoever names a path instead is told how datasets are named."""
        try:
            return super().canonical(name)
        except UnknownNameError as error:
            if spec := spec_of_path(name):
                error.details["next"] = f"did you mean {spec!r}?"
            raise


def spec_of_path(path: str | os.PathLike[str]) -> str | None:
    """Return the dataset that a path means: a folder, a CSV or a NumPy archive; else ``None``."""
    kind = {".csv": "csv", ".npz": "npz"}.get(os.path.splitext(path)[1].lower())
    kind = "folder" if os.path.isdir(path) else kind if os.path.isfile(path) else None
    return kind and f"{kind}:{os.fspath(path)}"


DATASETS = _Datasets(
    "dataset",
    {
        "stl10": "featpipe.datasets.binary",
        "cifar10": "featpipe.datasets.binary",
        "cifar100": "featpipe.datasets.binary",
        "tiny-imagenet": "featpipe.datasets.folder",
        "dogs-vs-cats": "featpipe.datasets.folder",
        "folder": "featpipe.datasets.folder",
        "csv": "featpipe.datasets.tables",
        "npz": "featpipe.datasets.tables",
        "torchvision": "featpipe.datasets.torchvision",
        "hf": "featpipe.datasets.hf",
        "images": "featpipe.datasets.given",
        "digits": "featpipe.datasets.digits",
    },
)


def split_spec(spec: str) -> tuple[str, str, type[Dataset] | None]:
    """Return name, argument and class of a dataset as the user names it.

    The class is ``None`` without an argument, and where the package that brings it is missing.
    """
    name, _, argument = spec.partition(":")
    try:
        return name, argument, DATASETS.get(name) if argument else None
    except UnknownNameError:
        return name, argument, None


def check_installed(spec: str) -> None:
    """Raise ``MissingExtraError`` unless what a dataset is read with is installed."""
    name = spec.partition(":")[0]
    needed = DATASETS.get(name).requires if name in DATASETS else None  # else a folder, or unknown
    if needed and find_spec(needed[0]) is None:
        raise MissingExtraError(*needed)


def short_name(spec: str) -> str:
    """Return the name of a dataset as manifests and results hold it.

    Examples
    --------
    >>> short_name("folder:/home/me/My photos"), short_name("stl10")
    ('folder:My photos', 'stl10')
    """
    name, argument, kind = split_spec(spec)
    return f"{name}:{kind.short(argument)}" if kind else spec


def slug(name: str) -> str:
    """Return the name of a dataset, or another name, as part of a path.

    Examples
    --------
    >>> slug("folder:/home/me/My photos"), slug("stl10"), slug("npz:data/toy.npz")
    ('folder-My-photos', 'stl10', 'npz-toy')
    """
    name, argument, kind = split_spec(name)
    parts = [name, kind.stem(argument) if kind else argument]
    return "-".join(re.sub(r"[^\w]+", "-", part).strip("-") for part in parts if part).strip("-")
