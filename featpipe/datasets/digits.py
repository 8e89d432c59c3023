"""``digits``: scikit-learn's 1797 handwritten digits, 8 × 8 pixels; always available offline.

Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI machine learning
repository, 1998 (its test set). The values 0..16 are scaled to 0..255; nothing is enlarged here.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
        """Read one split into memory."""
        values, labels = load_values()
        ids = [f"digits/{row:04d}" for row in range(len(labels))]
        rows = stratified_split(ids, labels, 0.3, self.options.seed)[split == "test"]
        pixels = np.rint(values[rows] * (255 / 16)).astype(np.uint8)
        chosen, classes = [ids[row] for row in rows], tuple("0123456789")
        return ArraySource(Identity(self.name, split, classes, chosen, labels[rows]), pixels)


def load_values() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ink of shape (1797, 8, 8), 0..16, and the labels of shape (1797,).

    The table is read from the installed package without importing it: on two slow cores the
    import took 5 to 6 s and the reading 0.02 s, and a second run that finds its features up to
    date should answer in less than one.
    """
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    table = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(table, "rt") as stream:
        numbers = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    return numbers[:, :-1].reshape(-1, 8, 8), numbers[:, -1]
