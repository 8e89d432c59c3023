"""CIFAR-10 and CIFAR-100: 32 × 32 colour images, 50 000 to train, 10 000 to test.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The binary version is
read (and downloaded): it needs no pickle. Where there is only the Python version, as torchvision
leaves it, its pickles are read after their MD5 sums were checked, by an unpickler that knows
nothing but NumPy arrays.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.download import RemoteArchive, check_digests, check_size, locate
from featpipe.datasets.source import ArraySource, Identity, ImageSource, row_ids
from featpipe.errors import DataError

SIDE = 32


@dataclass(frozen=True)
class Layout:
    """One published version of a dataset."""

    folder: str
    files: dict[str, tuple[str, ...]]  # of the splits, in order
    names: str  # file of the class names
    label_bytes: int = 0  # before the pixels of each image, the fine label last; 0 for pickles
    label: str = ""  # key of a pickle
    names_key: str = ""  # key of the class names in a pickle


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
    n_classes: ClassVar[int] = 10
    binary: ClassVar[Layout] = Layout(
        folder="cifar-10-batches-bin",
        files={
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        names="batches.meta.txt",
        label_bytes=1,
    )
    pickled: ClassVar[Layout] = Layout(
        folder="cifar-10-batches-py",
        files={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        names="batches.meta",
        label="labels",
        names_key="label_names",
    )
    # Those of the pickles and of the archive are published by torchvision and by the author; those
    # of the binary files were taken from public projects that check them.
    md5: ClassVar[dict[str, str]] = {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    }

    def open(self, split: str) -> ImageSource:
        """Read one split into memory (150 MB at most)."""
        # The version in the first folder that has either; where there is none, the binary one.
        folders = self.options.folders(self.binary.folder, self.pickled.folder)
        binary, pickled = (locate(folders, v.files[split]) for v in (self.binary, self.pickled))
        if pickled and not (binary and folders.index(binary) <= folders.index(pickled)):
            layout, folder = self.pickled, pickled
            checked = (*layout.files[split], layout.names)
        else:
            layout, checked = self.binary, self.binary.files[split]
            both = {name for names in layout.files.values() for name in names}
            folder = self.archive.find(self, [*checked, layout.names], both.__contains__)
        digests = check_digests(folder, {name: self.md5[name] for name in checked}, self.options)
        parts = [_read(folder / name, layout) for name in layout.files[split]]
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        file = folder / layout.names
        if layout is self.pickled:
            classes = tuple(map(str, load_plain_pickle(file).get(layout.names_key, ())))
        else:
            text = file.read_bytes().decode("ascii", "replace") if file.is_file() else ""
            classes = tuple(text.split())
        if len(classes) != self.n_classes:
            raise DataError(
                "The file of the class names is missing or not complete.",
                where=file,
                expected=f"{self.n_classes} names",
                got=f"{len(classes)} names",
            )
        identity = Identity(self.name, split, classes, row_ids(split, len(pixels)), labels)
        return ArraySource(identity, pixels, digests, folder)


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
    n_classes = 100
    binary = Layout(
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        names="fine_label_names.txt",
        label_bytes=2,
    )
    pickled = Layout(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        names="meta",
        label="fine_labels",
        names_key="fine_label_names",
    )
    md5: ClassVar[dict[str, str]] = {
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    }


def _read(path: Path, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one file: images, each stored as three planes row by row, and labels."""
    data: Any
    labels: Any
    if layout.label_bytes:
        fields = [("labels", np.uint8, (layout.label_bytes,)), ("data", np.uint8, 3 * SIDE * SIDE)]
        check_size(path, np.dtype(fields).itemsize)
        records = np.fromfile(path, dtype=np.dtype(fields))
        data, labels = records["data"], records["labels"][:, -1]
    else:
        batch = load_plain_pickle(path)
        data, labels = batch.get("data"), batch.get(layout.label)
        if (
            not isinstance(data, np.ndarray)
            or data.shape[1:] != (3 * SIDE * SIDE,)
            or labels is None
        ):
            raise DataError(
                "The file is not a batch of images.",
                where=path,
                expected=f"data of shape (n, {3 * SIDE * SIDE}) and {layout.label}",
                got=f"the keys {', '.join(sorted(batch))}",
            )
    pixels = data.astype(np.uint8, copy=False).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return pixels, np.asarray(labels, dtype=np.uint8)


# The functions that an array's own pickle names, taken from one: their module has moved between
# NumPy 1 and 2, and the published files name the old place.
_RECONSTRUCT = np.empty(0, dtype=np.uint8).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ALLOWED[module, name]


def load_plain_pickle(path: Path) -> dict[str, Any]:
    """Return the dict that a pickle file holds; byte strings of Python 2 become str.

    A pickle is a program: whoever unpickles a foreign file runs it. Nothing but dicts, lists,
    strings, numbers and NumPy arrays is built here.

    Raises
    ------
    DataError
        If the file holds anything else than a dict of arrays and plain values.
    """
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="latin1").load()
    except Exception as error:
        # Damaged pickles raise almost anything: UnpicklingError, EOFError, IndexError, KeyError …
        raise DataError(
            "The file is refused: it is no pickle of plain arrays.",
            where=path,
            got=f"{type(error).__name__}: {error}",
        ) from error
    if not isinstance(content, dict):
        raise DataError("The file does not hold a dict.", where=path, got=type(content).__name__)
    return content
