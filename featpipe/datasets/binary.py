"""CIFAR and STL-10: official files of raw bytes, checked against the published MD5 sums.

CIFAR is 32 × 32, 50 000 images to train and 10 000 to test: Krizhevsky, "Learning multiple layers
of features from tiny images", 2009. STL-10 is 96 × 96, 5000 to train, 8000 to test and 100 000
unlabelled: Coates, Lee and Ng, "An analysis of single-layer networks in unsupervised feature
learning", AISTATS 2011.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import CIFAR10_TRAIN, DATASETS, IMAGENET
from featpipe.datasets.dataset import Dataset, read_list
from featpipe.datasets.download import RemoteArchive, checked, locate
from featpipe.datasets.source import UNLABELLED, ArraySource, Identity, ImageSource, row_ids
from featpipe.errors import DataError
from featpipe.files import open_regular


@DATASETS.register
class Cifar10(Dataset):
    """CIFAR-10, 32 × 32, ten classes (downloads)."""

    name = "cifar10"
    splits = ("train", "test")
    archive: ClassVar[RemoteArchive] = RemoteArchive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        megabytes=170,
    )
    pickled_folder: ClassVar[str] = "cifar-10-batches-py"  # of the version that is not read
    n_classes: ClassVar[int] = 10
    class_names: ClassVar[str] = "batches.meta.txt"
    label_bytes: ClassVar[int] = 1  # before the pixels of each image, the fine label last
    drawn_from: ClassVar[Mapping[str, str]] = {CIFAR10_TRAIN: "the test images are some of them"}
    # The sum of the archive is published by the author; those of its files were taken from public
    # projects that check them.
    md5: ClassVar[dict[str, dict[str, str]]] = {
        "train": {
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        },
        "test": {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    }

    def open(self, split: str) -> ImageSource:
        """Read one split into memory (150 MB at most)."""
        files = self.md5[split]
        pickles = [Path(name).stem for name in files]  # as torchvision leaves them
        pickled = locate(self.options.folders(self.pickled_folder), pickles)
        binary = locate(self.options.folders(self.archive.folder), list(files))
        if pickled and not binary and not self.options.download:
            # A pickle is a program, which unpickling runs.
            what = f"Only the pickled {self.name} is here, and featpipe opens no pickles."
            expected, hint = f"the binary version: {', '.join(files)}", self.archive.how_to_get
            raise DataError(what, where=pickled, expected=expected, next_step=hint)
        every = {name for names in self.md5.values() for name in names}
        folder = self.archive.find(self, [*files, self.class_names], every.__contains__)
        # Each image is three planes, row by row.
        fields = [("labels", np.uint8, self.label_bytes), ("planes", np.uint8, (3, 32, 32))]
        with checked(folder, files, self.options) as digests:
            records = np.concatenate([_records(folder / name, np.dtype(fields)) for name in files])
        labels = records["labels"].reshape(len(records), -1)[:, -1]
        names = folder / self.class_names
        text = read_list(names).decode("ascii", "replace") if names.is_file() else ""
        classes = tuple(text.split())
        if len(classes) != self.n_classes:
            what, got = "The file of the class names is missing or not complete.", len(classes)
            expected = f"{self.n_classes} names"
            raise DataError(what, where=names, expected=expected, got=f"{got} names")
        identity = Identity(self.name, split, classes, row_ids(split, len(labels)), labels)
        return ArraySource(identity, records["planes"].transpose(0, 2, 3, 1), digests, folder)

    @classmethod
    def origins(cls, argument: str, split: str) -> Mapping[str, str]:
        """Return the origins of the training split; no weights were trained on the test split."""
        return cls.drawn_from if split == "train" else {}


@DATASETS.register
class Cifar100(Cifar10):
    """CIFAR-100, 32 × 32, 100 fine classes (downloads)."""

    name = "cifar100"
    archive = RemoteArchive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        megabytes=169,
    )
    pickled_folder = "cifar-100-python"
    n_classes = 100
    class_names = "fine_label_names.txt"
    label_bytes = 2
    drawn_from: ClassVar[Mapping[str, str]] = {}
    md5: ClassVar[dict[str, dict[str, str]]] = {
        "train": {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15"},
        "test": {"test.bin": "4499cfba6c016c1be1438163640a0898"},
    }


STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
_FOLDS = "fold_indices.txt"


@DATASETS.register
class Stl10(Dataset):
    """STL-10, 96 × 96, ten classes, ten official folds (downloads)."""

    name = "stl10"
    splits = ("train", "test")
    more_splits = ("unlabeled",)
    drawn_from: ClassVar[Mapping[str, str]] = {
        IMAGENET: "STL-10's images were drawn from ImageNet's labelled ones"
    }
    archive: ClassVar[RemoteArchive] = RemoteArchive(
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        md5="91f7769df0f17e558f3565bffb0c7dfb",
        folder="stl10_binary",
        megabytes=2640,
    )
    md5: ClassVar[dict[str, dict[str, str]]] = {  # as published
        "train": {
            "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "5a34089d4802c674881badbb80307741",
        },
        "test": {
            "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        },
        "unlabeled": {"unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4"},
    }

    def open(self, split: str) -> ImageSource:
        """Map one split; a download keeps both labelled ones, as the other will be needed next."""
        files = [*self.md5[split], *([_FOLDS] if split == "train" else [])]
        labelled = {*self.md5["train"], *self.md5["test"], _FOLDS, "class_names.txt"}
        folder = self.archive.find(self, files, labelled.__contains__)
        published = {name: self.md5[split].get(name) for name in files}
        images = folder / f"{split}_X.bin"
        with checked(folder, published, self.options) as digests:
            planes = _records(images, np.dtype((np.uint8, (3, 96, 96))))
            labels = np.full(len(planes), UNLABELLED)
            if split != "unlabeled":
                file = folder / f"{split}_y.bin"
                labels = np.frombuffer(read_list(file), dtype=np.uint8).astype(np.int64) - 1
                if not labels.size or labels.min() < 0 or labels.max() >= len(STL10_CLASSES):
                    expected = f"one byte from 1 to {len(STL10_CLASSES)} per image"
                    what = "The label file holds something else than labels."
                    raise DataError(what, where=file, expected=expected)
            folds = _read_folds(folder / _FOLDS) if split == "train" else ()
        pixels = planes.transpose(0, 3, 2, 1)  # channel, column, row → row, column, channel
        ids = row_ids(split, len(pixels))
        identity = Identity(self.name, split, STL10_CLASSES, ids, labels, folds)
        return ArraySource(identity, pixels, digests, images)


def _read_folds(file: Path) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of the official training folds: one line each, counted from 0."""
    lines = read_list(file).decode("ascii", "replace").splitlines()
    try:
        folds = tuple(np.array(ln.split(), dtype=np.int64) for ln in lines if ln.strip())
        if not folds:
            raise ValueError("the file is empty")
        return folds
    except (ValueError, OverflowError) as error:
        what = f"The official folds of STL-10 cannot be read: {error}."
        hint = f"copy {_FOLDS} from the official archive next to train_X.bin"
        raise DataError(what, where=file, next_step=hint) from error


def _records(path: Path, record: np.dtype[Any]) -> NDArray[Any]:
    """Map a file of images; it must hold a whole number of them, and at least one."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0 or size % record.itemsize:
            what = "The file does not hold a whole number of images."
            expected = f"a multiple of {record.itemsize} bytes"
            raise DataError(what, where=path, expected=expected, got=f"{size} bytes")
        base, shape = record.subdtype or (record, ())
        return np.memmap(stream, base, "r", shape=(size // record.itemsize, *shape))
