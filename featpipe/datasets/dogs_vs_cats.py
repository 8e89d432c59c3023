"""Dogs vs. Cats: photographs of cats and dogs, as Kaggle's competition of 2013 hands them out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from featpipe.datasets.base import ImageSource
from featpipe.datasets.definition import Dataset, DatasetOptions
from featpipe.datasets.listing import natural_key
from featpipe.datasets.obtain import missing_dataset
from featpipe.datasets.sources import FileSource, Identity
from featpipe.datasets.subset import stratified_split
from featpipe.errors import DataError

CLASSES = ("cat", "dog")
TEST_SHARE = 0.3
_IMAGE = re.compile(r"(cat|dog)\.\d+\.jpg", re.IGNORECASE)


class DogsVsCats(Dataset):
    """``train/cat.N.jpg`` and ``train/dog.N.jpg``, split 70:30 within each class by the seed.

    The competition's own test images have no labels, so the labelled ones are split.
    """

    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """Training and test split."""
        return ("train", "test")

    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """List the images and take the rows of one split."""
        folder, names = self._find(options)
        labels = [CLASSES.index(name[:3].lower()) for name in names]
        if missing := [name for label, name in enumerate(CLASSES) if label not in labels]:
            raise DataError(
                "One of the two classes has no images.",
                where=folder,
                expected="cat.N.jpg and dog.N.jpg",
                got=f"no {missing[0]}.N.jpg",
            )
        rows = stratified_split(names, labels, TEST_SHARE, options.seed)[split == "test"]
        chosen = [names[row] for row in rows]
        identity = Identity("dogs-vs-cats", split, CLASSES, chosen, np.array(labels)[rows])
        return FileSource(identity, folder, options, folder)

    def _find(self, options: DatasetOptions) -> tuple[Path, list[str]]:
        """Return the first folder that has such images, and their names in natural order."""
        folders = [folder / "train" for folder in options.folders("dogs-vs-cats")]
        for folder in folders:
            if folder.is_dir():
                names = [name for name in os.listdir(folder) if _IMAGE.fullmatch(name)]
                if names:
                    return folder, sorted(names, key=natural_key)
        raise missing_dataset(
            "dogs-vs-cats",
            folders,
            "cat.N.jpg and dog.N.jpg",
            "Kaggle gives it to registered users only: accept the rules at "
            "https://www.kaggle.com/c/dogs-vs-cats, download train.zip, unpack it and name the "
            "folder that holds train/ with --data DIR",
        )
