"""A dataset of another package: one class, found by an entry point."""

import numpy as np

from featpipe.datasets.dataset import Dataset
from featpipe.datasets.source import ArraySource, Identity, ImageSource, row_ids


class Rings(Dataset):
    """Rings and discs, 16 × 16, drawn by seed."""

    name = "rings"
    splits = ("train", "test")

    def open(self, split: str) -> ImageSource:
        """Draw one split."""
        rng = np.random.default_rng([self.options.seed, self.splits.index(split)])
        labels = np.arange(20) % 2
        radius = np.hypot(*(np.mgrid[:16, :16] - 7.5))
        outside = rng.uniform(4, 7, 20)[:, None, None]
        inside = np.where(labels == 0, 2.0, 0.0)[:, None, None]
        pixels = np.where((radius < outside) & (radius >= inside), 255, 0).astype(np.uint8)
        identity = Identity(self.spec, split, ("ring", "disc"), row_ids(split, 20), labels)
        return ArraySource(identity, pixels)
