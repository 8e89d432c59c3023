"""Dogs vs. Cats: photographs of cats and dogs, as Kaggle's competition of 2013 hands them out."""

from __future__ import annotations

import os
import re

import numpy as np

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.folder import natural_key
from featpipe.datasets.images import FileSource
from featpipe.datasets.selection import stratified_split
from featpipe.datasets.source import Identity, ImageSource
from featpipe.errors import DataError

CLASSES = ("cat", "dog")
TEST_SHARE = 0.3
_IMAGE = re.compile(r"(cat|dog)\.\d+\.jpg", re.IGNORECASE)


@DATASETS.register
class DogsVsCats(Dataset):
    """Kaggle's cats and dogs, split 70:30 by seed.

    ``train/cat.N.jpg`` and ``train/dog.N.jpg``, split within each class. The competition's own
    test images have no labels, so the labelled ones are split.
    """

    name = "dogs-vs-cats"
    splits = ("train", "test")

    def open(self, split: str) -> ImageSource:
        """List the images and take the rows of one split."""
        folders = [folder / "train" for folder in self.options.folders(self.name)]
        for folder in filter(os.path.isdir, folders):
            if names := [name for name in os.listdir(folder) if _IMAGE.fullmatch(name)]:
                break
        else:
            raise self.not_found(
                folders,
                "cat.N.jpg and dog.N.jpg",
                next_step="Kaggle gives it to registered users only: accept the rules at "
                "https://www.kaggle.com/c/dogs-vs-cats, download train.zip, unpack it and name "
                "the folder that holds train/ with --data DIR",
            )
        names.sort(key=natural_key)
        labels = [CLASSES.index(name[:3].lower()) for name in names]
        if missing := [name for label, name in enumerate(CLASSES) if label not in labels]:
            raise DataError(
                "One of the two classes has no images.",
                where=folder,
                expected="cat.N.jpg and dog.N.jpg",
                got=f"no {missing[0]}.N.jpg",
            )
        rows = stratified_split(names, labels, TEST_SHARE, self.options.seed)[split == "test"]
        chosen = [names[row] for row in rows]
        identity = Identity(self.name, split, CLASSES, chosen, np.array(labels)[rows])
        return FileSource(identity, folder, self.options)
