"""Datasets by name. Nothing here imports NumPy; a dataset's module is imported when it is used."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from featpipe import lazy, urls
from featpipe.errors import UnknownNameError
from featpipe.registry import Registry

if TYPE_CHECKING:
    from featpipe.datasets.dataset import Dataset

# Labelled images on which weights were trained and from which datasets were drawn, by one name.
IMAGENET = "ImageNet-1k"
CIFAR10_TRAIN = "CIFAR-10's training images"


class _Datasets(Registry["type[Dataset]"]):
    def canonical(self, name: str) -> str:
        """Return the name; the error for a path or URL suggests the name of its dataset."""
        try:
            return super().canonical(name)
        except UnknownNameError as error:
            if spec := spec_of_path(name):
                error.details["next"] = f"did you mean {spec!r}?"
            elif name in (*urls.PACKAGES, "https", "http", "file", "memory"):
                error.details["next"] = f"write folder:{name}://… or wds:{name}://…"
            raise


def spec_of_path(path: str | os.PathLike[str]) -> str | None:
    """Return the dataset at a path: a folder, CSV, NumPy or tar archive; else ``None``."""
    kinds = {".csv": "csv", ".npz": "npz", ".tar": "wds"}
    kind = kinds.get(os.path.splitext(path)[1].lower())
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
        "wds": "featpipe.datasets.wds",
        "torchvision": "featpipe.datasets.torchvision",
        "hf": "featpipe.datasets.hf",
        "images": "featpipe.datasets.given",
        "digits": "featpipe.datasets.digits",
    },
)


def split_spec(spec: str) -> tuple[str, str, type[Dataset] | None]:
    """Return name, argument and, if it has an argument and is known, class of a dataset."""
    name, _, argument = spec.partition(":")
    try:
        return name, argument, DATASETS.get(name) if argument else None
    except UnknownNameError:
        return name, argument, None


def check_installed(spec: str) -> None:
    """Raise ``MissingExtraError`` unless the packages that read a dataset are installed."""
    name, _, argument = spec.partition(":")
    known = name in DATASETS  # else a folder, or unknown
    needed = DATASETS.get(name).requires if known else None
    if needed:
        lazy.check_installed(*needed)
    urls.check_protocol(argument if known else spec)


def short_name(spec: str) -> str:
    """Return the name of a dataset for manifests and results: ``folder:My photos``."""
    name, argument, kind = split_spec(spec)
    return f"{name}:{kind.short(argument)}" if kind else spec


def slug(name: str) -> str:
    """Return the name of a dataset, or another name, as part of a path: ``folder-My-photos``."""
    name, argument, kind = split_spec(name)
    parts = [name, kind.stem(argument) if kind else argument]
    return "-".join(re.sub(r"[^\w]+", "-", part).strip("-") for part in parts if part).strip("-")
