"""A data source whose argument is text: ``shapes:dark/bright*30``."""

import numpy as np

from featpipe.datasets.dataset import Dataset
from featpipe.datasets.source import ArraySource, Identity, ImageSource, row_ids
from featpipe.errors import UsageError


class Shapes(Dataset):
    """shapes:NAME/NAME*N, N grey images, as many classes as names."""

    name = "shapes"
    argument_name = "QUERY"

    def open(self, split: str) -> ImageSource:
        """Draw all images."""
        names, _, number = self.argument.partition("*")
        if not number.isdecimal():
            raise UsageError("How many shapes?", got=self.spec, expected="shapes:dark/bright*30")
        classes = tuple(names.split("/"))
        labels = np.arange(int(number)) % len(classes)
        noise = np.random.default_rng(self.options.seed).integers(0, 30, (len(labels), 8, 8))
        pixels = (noise + 200 * labels[:, None, None] // len(classes)).astype(np.uint8)
        return ArraySource(
            Identity(self.spec, split, classes, row_ids(split, len(labels)), labels), pixels
        )
