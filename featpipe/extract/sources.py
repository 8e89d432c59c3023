"""Which images were asked for, so that a report can open the same images again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featpipe.datasets import DatasetOptions, Subset, class_balanced_rows, open_source
from featpipe.datasets.base import ImageSource
from featpipe.fingerprint import FileHashes
from featpipe.steps.old import Context, ImageStep


@dataclass(frozen=True)
class SourceRequest:
    """The options that say which images a store is made from.

    Parameters
    ----------
    dataset : str
        Name, or ``kind:PATH``.
    data : Path or None
        Folder to look for the dataset in.
    classes : str or None
        Only these classes.
    split_seed : int
        Seed of splits that the dataset itself leaves open, and of ``limit``.
    limit : int or None
        Only so many images of a split, spread evenly over the classes.
    """

    dataset: str
    data: Path | None = None
    classes: str | None = None
    split_seed: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, step: ImageStep) -> SourceRequest:
        """Return what a step asks for."""
        return cls(step.dataset, step.data, step.classes, step.split_seed, step.limit)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-like values from which the request can be made again, anywhere."""
        kind, colon, path = self.dataset.partition(":")
        values = asdict(self)
        if path:
            named = DatasetOptions(data=self.data).resolve(path)
            values["dataset"] = f"{kind}{colon}{named.resolve()}"
        if self.data is not None:
            values["data"] = str(self.data.resolve())
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SourceRequest:
        """Return the request that :meth:`as_dict` wrote down."""
        data = values.get("data")
        return cls(**{**values, "data": None if data is None else Path(data)})

    def moved(self, data: Path) -> SourceRequest:
        """Return the request for a dataset that lies in another folder now."""
        kind, _, path = self.dataset.partition(":")
        if not path:
            return replace(self, data=data)
        inside = data / Path(path).name
        return replace(self, dataset=f"{kind}:{inside if inside.exists() else data}", data=None)

    def options(self, context: Context, *, download: bool = False) -> DatasetOptions:
        """Return how the dataset is to be opened in a workspace."""
        return DatasetOptions(
            data=self.data,
            raw=context.workspace.raw,
            hashes=FileHashes(context.workspace.hashes),
            classes=self.classes,
            seed=self.split_seed,
            download=download,
            progress=context.progress,
        )

    def open(self, split: str, options: DatasetOptions) -> ImageSource:
        """Open one split.

        Raises
        ------
        DataError
            If the images are not there, or not what they should be.
        """
        source = open_source(self.dataset, split, options)
        if self.limit is None or self.limit >= len(source):
            return source
        return Subset(source, class_balanced_rows(source.labels, self.limit, self.split_seed))
