"""``torchvision:CLASS``: the image classification datasets of ``torchvision.datasets``.

torchvision lists files and labels, and fetches and unpacks if that is allowed; image files are
decoded here, as for all datasets. Only classes that read plain data are offered, as their source
code was checked: classes of later versions are added after the same check.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.datasets import DATASETS, IMAGENET, naming
from featpipe.datasets.dataset import Dataset, DatasetOptions
from featpipe.datasets.images import FileSource
from featpipe.datasets.source import UNLABELLED, ArraySource, Identity, ImageSource, row_ids
from featpipe.errors import DataError, DownloadError, UnknownNameError, UsageError
from featpipe.lazy import Lazy
from featpipe.provenance import package_version

datasets = Lazy("torchvision.datasets")

# Image files, listed by a class that accepts a ``loader``: since torchvision 0.22.
FILES = (
    "CLEVRClassification", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "Flowers102", "Food101",
    "Imagenette", "Places365", "RenderedSST2", "StanfordCars", "SUN397",
)  # fmt: skip
# Image files of classes that accept none: pairs of file and label.
LISTED: dict[str, Callable[[Any], Iterable[tuple[str | Path, int]]]] = {
    "Caltech101": lambda found: (
        (f"{found.root}/101_ObjectCategories/{found.categories[y]}/image_{number:04d}.jpg", y)
        for number, y in zip(found.index, found.y, strict=True)
    ),
    "Caltech256": lambda found: (
        (f"{found.root}/256_ObjectCategories/{found.categories[y]}/{y + 1:03d}_{number:04d}.jpg", y)
        for number, y in zip(found.index, found.y, strict=True)
    ),
    "GTSRB": lambda found: found._samples,
    "OxfordIIITPet": lambda found: zip(found._images, found._labels, strict=True),
}
# Arrays of images of one size.
ARRAYS = (
    "FakeData", "FashionMNIST", "FER2013", "KMNIST", "MNIST", "PCAM", "QMNIST", "SEMEION", "SVHN",
    "USPS",
)  # fmt: skip
OFFERED = (*FILES, *LISTED, *ARRAYS)
# Splits that overlap another one or have no labels: opened only by name.
MORE_SPLITS = {
    "CLEVRClassification": ("test",),
    "FGVCAircraft": ("trainval",),
    "Places365": ("train-challenge", "test"),
    "SVHN": ("extra",),
}
REFUSED = {
    "CIFAR10": "it unpickles its files; cifar10 reads them without",
    "CIFAR100": "it unpickles its files; cifar100 reads them without",
    "ImageNet": "it reads its class names with torch.load; name its images folder:PATH",
    **dict.fromkeys(("LSUN", "LSUNClass"), "it unpickles a list of keys from the current folder"),
    "PhotoTour": "it reads its patches with torch.load",
    "STL10": "stl10 reads it, with its official folds",
    **dict.fromkeys(("ImageFolder", "DatasetFolder"), "folder:PATH reads such folders"),
    "EMNIST": "a name cannot say which of its six sets of classes is meant",
    "INaturalist": "a name cannot say which of its versions is meant; name its images folder:PATH",
    "Omniglot": "its two sets have different classes",
    "LFWPeople": "its training and test images show different people",
    "CelebA": "its labels are forty attributes at once",
}


@DATASETS.register
class TorchVision(Dataset):
    """torchvision:CLASS, a classification dataset of torchvision.datasets (downloads)."""

    name = "torchvision"
    argument_name = "CLASS"

    def __init__(self, argument: str, options: DatasetOptions) -> None:
        if reason := REFUSED.get(argument):
            raise UsageError(f"{argument} of torchvision is not used: {reason}.")
        if argument not in OFFERED:
            what = f"torchvision has no image classification dataset {argument!r} known here."
            raise UnknownNameError(what, argument, OFFERED)
        super().__init__(argument, options)
        self.more_splits = MORE_SPLITS.get(argument, ())

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The values of the parameter ``train`` or ``split``; ``all`` if it has neither."""
        if "train" in self._parameters:
            return ("train", "test")
        if "split" not in self._parameters:
            return ("all",)
        known: list[str] = []
        try:  # a signature does not list the values; each class checks this argument first
            self._class(root=os.devnull, split="?")
        except ValueError as error:
            known = re.findall(r"'([\w-]+)'", str(error).partition("Valid values are")[2])
        splits = [name for name in naming.ordered_splits(known) if name not in self.more_splits]
        return tuple(sorted(splits, key=lambda name: not name.startswith("train")))

    @classmethod
    def origins(cls, argument: str, split: str) -> Mapping[str, str]:
        """Return the origins of the class."""
        drawn = argument == "Imagenette"
        return {IMAGENET: "Imagenette is a part of ImageNet"} if drawn else {}

    def open(self, split: str) -> ImageSource:
        """Open one split: image files, or all images in memory."""
        root, found, samples = self._find(split)
        is_array = self.argument in ARRAYS
        ids: Sequence[str] = row_ids(split, len(found))
        if not is_array:  # some lists have no order
            samples = [(os.path.relpath(path, root).replace(os.sep, "/"), y) for path, y in samples]
            samples.sort(key=lambda sample: naming.natural_key(sample[0]))
            ids = [path for path, _ in samples]
        targets = [UNLABELLED if y is None else int(y) for _, y in samples]
        if self.argument == "PCAM":  # 7 GB, one array in a file: read row by row
            parts = found._FILES[split]
            files = [found._base_folder / parts[key][0] for key in ("images", "targets")]
            images, of_images = (found.h5py.File(f)[k] for f, k in zip(files, "xy", strict=True))
            targets = of_images[:, 0, 0, 0]
        names = getattr(found, "classes", None) or getattr(found, "categories", None)
        classes = tuple(name if isinstance(name, str) else ", ".join(name) for name in names or ())
        labels = np.array(targets, dtype=np.int64)
        classes = classes or naming.classes_by_number(labels, root)
        identity = Identity(self.spec, split, classes, ids, labels)
        if not is_array:
            return FileSource(identity, root, self.options)
        if self.argument == "PCAM":
            return ArraySource(identity, images, self.options.digests(files), files[0])
        images = [image if image.mode == "L" else image.convert("RGB") for image, _ in samples]
        return ArraySource(identity, np.stack(images))

    @cached_property
    def _class(self) -> Any:
        if not hasattr(datasets, self.argument):
            raise UsageError(f"This version of torchvision has no dataset {self.argument!r}.")
        return getattr(datasets, self.argument)

    @cached_property
    def _parameters(self) -> set[str]:
        names = set(inspect.signature(self._class).parameters)
        if "kwargs" in names:
            names |= set(inspect.signature(self._class.__base__).parameters)
        if self.argument in FILES and "loader" not in names:
            what = f"This version of torchvision does not list the files of {self.argument}."
            upgrade = "pip install --upgrade torch torchvision"
            hint = f"{upgrade}, or unpack its images into a folder for each class: folder:PATH"
            got, expected = package_version("torchvision"), "torchvision 0.22 or newer"
            raise UsageError(what, expected=expected, got=got, next_step=hint)
        return names

    def _find(self, split: str) -> tuple[Path, Any, list[Any]]:
        """Return the folder that holds a split, torchvision's dataset of it, and its samples."""
        folders = [*self.options.folders("torchvision"), self.options.raw]
        reasons = []
        for folder in folders:
            if old := list(folder.glob(f"{self.argument}/processed/*.pt")):
                what = "torchvision would read a file of its old versions with torch.load; refused."
                raise DataError(what, where=old[0], next_step=f"remove {old[0].parent}")
            # Caltech's classes would create the folder that they look for.
            looked_for = folder / (self.argument.lower() if "Caltech" in self.argument else "")
            if looked_for.is_dir() or "root" not in self._parameters:
                try:
                    return folder, *self._make(folder, split)
                except (RuntimeError, FileNotFoundError) as error:
                    reasons.append(f"{folder}: {error}")
                except Exception as error:  # anything, if a file is damaged
                    what = f"torchvision cannot read its dataset {self.argument}."
                    got = f"{type(error).__name__}: {error}"
                    raise DataError(what, where=folder, got=got) from error
        if not self.options.download or "download" not in self._parameters:
            expected = f"the files of {split!r}, as torchvision.datasets.{self.argument} keeps them"
            hint = "allow the download if torchvision has one, or name its root with --data DIR"
            tried = "; ".join(reasons) or None
            raise self.not_found(folders, expected, got=tried, next_step=hint)
        root = self.options.raw / "torchvision"
        root.mkdir(parents=True, exist_ok=True)
        self.options.progress.note(f"{self.spec} is not here: torchvision fetches it to {root}")
        try:
            return root, *self._make(root, split, download=True)
        except Exception as error:  # torchvision documents no exceptions
            what = f"torchvision could not fetch its dataset {self.argument}."
            got = f"{type(error).__name__}: {error}"
            hint = "fetch it by another way and name its root folder with --data DIR"
            raise DownloadError(what, where=root, got=got, next_step=hint) from error

    def _make(self, root: Path, split: str, *, download: bool = False) -> tuple[Any, list[Any]]:
        """Return torchvision's dataset and its samples: image or path, and label."""
        settings: dict[str, Any] = {"root": str(root), "train": split == "train", "split": split}
        settings |= {"loader": str, "download": download}  # str: paths instead of images
        found = self._class(**{k: v for k, v in settings.items() if k in self._parameters})
        if self.argument in LISTED:
            return found, list(LISTED[self.argument](found))
        rows = 0 if self.argument == "PCAM" else len(found)
        return found, [found[row] for row in range(rows)]
