"""``digits``: scikit-learn's 1797 handwritten digits, 8 × 8 pixels; always available offline.

Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI machine learning
repository, 1998 (its test set). The values 0..16 are scaled to 0..255; nothing is enlarged here.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.selection import stratified_split
from featpipe.datasets.source import ArraySource, Identity, ImageSource


@DATASETS.register
class Digits(Dataset):
    """scikit-learn's handwritten digits, 8 × 8, always offline, split 70:30 by seed."""

    name = "digits"
    splits = ("train", "test")

    def open(self, split: str) -> ImageSource:
        """Read one split into memory, without importing the package that its table comes with.

        On two slow cores the import took 5 to 6 s and the reading 0.02 s, and a second run that
        finds its features up to date should answer in less than one.
        """
        package = find_spec("sklearn")
        assert package is not None
        assert package.origin is not None
        with gzip.open(Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.int64)
        values, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
        ids = [f"digits/{row:04d}" for row in range(len(labels))]
        rows = stratified_split(ids, labels, 0.3, self.options.seed)[split == "test"]
        pixels = np.rint(values[rows] * (255 / 16)).astype(np.uint8)
        chosen, classes = [ids[row] for row in rows], tuple("0123456789")
        return ArraySource(Identity(self.name, split, classes, chosen, labels[rows]), pixels)
