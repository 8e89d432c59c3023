"""STL-10: 96 × 96 colour images of ten classes, 5000 to train, 8000 to test, 100 000 unlabelled.

Coates, Lee and Ng, "An analysis of single-layer networks in unsupervised feature learning",
AISTATS 2011. The official binary files are read as they are: image after image, the red, green
and blue plane of each, every plane column by column.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.download import RemoteArchive, check_digests, check_size
from featpipe.datasets.source import UNLABELLED, ArraySource, Identity, ImageSource, row_ids
from featpipe.errors import DataError

CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
SIDE = 96
_FOLDS = "fold_indices.txt"


@DATASETS.register
class Stl10(Dataset):
    """STL-10, 96 × 96, ten classes, ten official folds (downloads).

    Only the files of the split asked for must exist.
    """

    name = "stl10"
    splits = ("train", "test")
    more_splits = ("unlabeled",)
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
        """Map one split; its files are checked against the published sums once.

        A download keeps both labelled splits, whichever was asked for: they are a seventh of the
        archive, and whoever asks for the one wants the other next. The unlabelled images are
        kept only when they were asked for.
        """
        files = [*self.md5[split], *([_FOLDS] if split == "train" else [])]
        labelled = {*self.md5["train"], *self.md5["test"], _FOLDS, "class_names.txt"}
        folder = self.archive.find(self, files, labelled.__contains__)
        sums = {name: self.md5[split].get(name) for name in files}
        digests = check_digests(folder, sums, self.options)
        images = folder / f"{split}_X.bin"
        check_size(images, 3 * SIDE * SIDE)
        planes = np.memmap(images, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE)
        pixels = planes.transpose(0, 3, 2, 1)  # channel, column, row → row, column, channel
        labels = np.full(len(pixels), UNLABELLED)
        if split != "unlabeled":
            file = folder / f"{split}_y.bin"
            labels = np.fromfile(file, dtype=np.uint8).astype(np.int64) - 1
            if not labels.size or labels.min() < 0 or labels.max() >= len(CLASSES):
                raise DataError(
                    "The label file holds something else than labels.",
                    where=file,
                    expected=f"one byte from 1 to {len(CLASSES)} per image",
                )
        folds: tuple[NDArray[np.int64], ...] = ()
        if split == "train":
            # A line each, 0-based rows.
            lines = (folder / _FOLDS).read_text(encoding="ascii", errors="replace").splitlines()
            try:
                folds = tuple(np.array(ln.split(), dtype=np.int64) for ln in lines if ln.strip())
                what = "" if folds else "The file of the official folds is empty."
            except ValueError as error:
                what = f"The official folds of STL-10 cannot be read: {error}."
            if what:
                next_step = f"copy {_FOLDS} from the official archive next to train_X.bin"
                raise DataError(what, where=folder / _FOLDS, next_step=next_step)
        identity = Identity(self.name, split, CLASSES, row_ids(split, len(pixels)), labels, folds)
        return ArraySource(identity, pixels, digests, images)
