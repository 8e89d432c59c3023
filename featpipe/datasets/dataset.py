"""Datasets by name: what a dataset is, how it is named, and how its splits are opened."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from featpipe.datasets import DATASETS, check_installed, split_spec
from featpipe.datasets.selection import Subset, class_balanced_rows, groups_of, keep_classes
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError, UnknownNameError, UsageError, nearest_path
from featpipe.files import read_regular
from featpipe.fingerprint import FileHashes
from featpipe.progress import SILENT, Progress
from featpipe.urls import plain_path, protocol_of
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.steps import Context

MOST_LIST_BYTES = 1 << 26


@dataclass(frozen=True)
class DatasetOptions:
    """Where a dataset is looked for and how it is opened."""

    data: Path | None = None  # where to look first: the dataset's own folder or the one above it
    raw: Path = Path("data/raw")  # where to look second, and where downloads go
    hashes: FileHashes = field(default_factory=FileHashes)  # so that files are not read again
    classes: str | None = None  # only these: "first:50" or names separated by commas
    seed: int = 0  # of the splits that a dataset does not prescribe
    group_by: str | None = None  # rule for the groups that must not be split
    download: bool = False  # whether a missing dataset may be fetched from its publisher
    progress: Progress = SILENT  # of downloads, unpacking and hashing

    def folders(self, *names: str) -> list[Path]:
        """Return the folders where a dataset with these folder names may be, best first."""
        if self.data is not None and not self.data.exists():
            hint = "correct --data, or leave it out to use the workspace's own folder"
            hint = nearest_path(self.data, folder=True) or hint
            raise DataError("The data folder does not exist.", where=self.data, next_step=hint)
        first = [] if self.data is None else [self.data, *(self.data / name for name in names)]
        return [*first, *(self.raw / name for name in names)]

    def resolve(self, path: str) -> Path:
        """Return the path that the user named, below the data folder if it exists there."""
        named = user_path(path)
        below = [folder / named for folder in self.folders()]
        return next((path for path in below if path.exists()), named)

    def digests(self, paths: Sequence[str | Path], algorithm: str = "sha256") -> list[str]:
        """Return the content hashes of files; progress is shown only if any has to be read."""
        with _translate_os_errors(), ExitStack() as stack:
            show, total = self.progress.task, len(paths)
            task = cache(lambda: stack.enter_context(show("checking files", total)))
            return self.hashes.many(paths, algorithm, lambda: task().advance())

    @contextmanager
    def unchanged(self, paths: Sequence[Path]) -> Iterator[None]:
        """Refuse files that change in the block: what it hashed is what it read or mapped."""
        with _translate_os_errors(next(iter(paths), None)):
            before = [stamp_of(path) for path in paths]
            yield
            pairs = zip(paths, before, strict=True)
            changed = [path for path, stamp in pairs if stamp_of(path) != stamp]
        if changed:
            what = "A file of the dataset was changed while it was read."
            raise DataError(what, where=changed[0], next_step="run again when nothing changes it")


def stamp_of(path: str | Path) -> tuple[int, ...]:
    """Return values that differ once a file was changed or replaced."""
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextmanager
def _translate_os_errors(path: Path | None = None) -> Iterator[None]:
    """Turn OSError into a DataError that names its file, or ``path`` if it has none."""
    try:
        yield
    except OSError as error:
        what, got = "A file of the dataset cannot be read.", error.strerror or error
        raise DataError(what, where=error.filename or path, got=got) from error


def read_list(path: Path) -> bytes:
    """Return the content of a small file that belongs to a dataset."""
    with _translate_os_errors(path):
        return read_regular(path, MOST_LIST_BYTES)


def refuse_missing(
    missing: Sequence[str], what: str, where: object, expected: str, next_step: str | None = None
) -> None:
    """Raise DataError if anything is missing; it names the first five."""
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        got = f"missing: {', '.join(missing[:5])}{more}"
        raise DataError(what, where=where, expected=expected, got=got, next_step=next_step)


class Dataset(ABC):
    """A dataset that is requested by name; opening a split gives an :class:`ImageSource`.

    To add one, derive a class, give it a ``name``, write :meth:`open` and register it: with
    ``@DATASETS.register``, or as an entry point of the group ``featpipe.datasets``. The first
    line of its docstring is what ``featpipe datasets`` shows. ``argument`` is what follows the
    colon of ``"name:ARGUMENT"``.
    """

    name: ClassVar[str]
    argument_name: ClassVar[str | None] = None  # in messages ("PATH"); None if it takes none
    requires: ClassVar[tuple[str, str] | None] = None  # an optional package, and its extra
    more_splits: tuple[str, ...] = ()  # not meant for training and evaluation
    selects_classes: ClassVar[bool] = False  # whether `open` itself applies `options.classes`
    # Labelled images from which its own were drawn, and a clause that explains it:
    # {"ImageNet-1k": "STL-10's images were drawn from ImageNet's labelled ones"}
    drawn_from: ClassVar[Mapping[str, str]] = {}

    def __init__(self, argument: str, options: DatasetOptions) -> None:
        self.argument, self.options = argument, options

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits for training and evaluation, the training split first."""
        return ("all",)

    @abstractmethod
    def open(self, split: str) -> ImageSource:
        """Open one split, known to be one of the dataset's."""

    @property
    def spec(self) -> str:
        """The dataset as the user names it."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    def not_found(self, folders: Iterable[Path], expected: str, **details: Any) -> DataError:
        """Return the error for a dataset that is in none of the folders."""
        where = "looked in " + ", ".join(map(str, folders))
        what = f"The dataset {self.spec!r} is not here."
        return DataError(what, where=where, expected=expected, **details)

    @classmethod
    def origins(cls, argument: str, split: str) -> Mapping[str, str]:
        """Return :attr:`drawn_from` of one split."""
        return cls.drawn_from

    @classmethod
    def path_in(cls, argument: str, data: Path | None = None) -> str:
        """Return the path with which an argument begins; ``""`` if it names no file or folder."""
        return ""

    @classmethod
    def short(cls, argument: str) -> str:
        """Return the argument for manifests, which do not depend on where a folder is."""
        path = cls.path_in(argument)
        if not path:
            return argument
        here = protocol_of(path) is None
        named = user_path(plain_path(path)).resolve() if here else PurePosixPath(path)
        return named.name + argument[len(path) :]

    @classmethod
    def stem(cls, argument: str) -> str:
        """Return the argument as a part of file names; special characters become ``-``."""
        return cls.short(argument)

    @classmethod
    def absolute(cls, argument: str, data: Path | None) -> str:
        """Return the argument so that it means the same in every folder."""
        if protocol_of(argument):
            return argument
        path = cls.path_in(argument, data)
        found = str(DatasetOptions(data=data).resolve(plain_path(path)).resolve()) if path else ""
        return found + argument[len(path) :]

    @classmethod
    def moved(cls, argument: str, data: Path) -> str:
        """Return the argument for a dataset that was moved into a folder, or is that folder."""
        path = cls.path_in(argument)
        inside = data / Path(path).name
        found = str((inside if inside.exists() else data).resolve()) if path else ""
        return found + argument[len(path) :]


class PathDataset(Dataset):
    """A dataset whose argument is the path of a file or folder, known by its last part."""

    argument_name = "PATH"

    @property
    def path(self) -> Path:
        """The path, below the data folder if it exists there."""
        if protocol_of(self.argument):
            what = f"The dataset {self.name!r} is not read from a URL."
            hint = f"copy it to this machine, then --dataset {self.name}:PATH"
            expected = "a path; folder: and wds: take URLs"
            raise UsageError(what, expected=expected, got=self.spec, next_step=hint)
        return self.options.resolve(plain_path(self.argument))

    @classmethod
    def path_in(cls, argument: str, data: Path | None = None) -> str:
        """Return the argument."""
        return argument

    @classmethod
    def stem(cls, argument: str) -> str:
        """Return the last part of the path without its suffix."""
        return Path(argument).stem


def splits_of(spec: str, options: DatasetOptions) -> tuple[str, ...]:
    """Return the splits meant for training and evaluation, the training split first."""
    return _dataset(spec, options).splits


def open_source(spec: str, split: str, options: DatasetOptions) -> ImageSource:
    """Open one split of a dataset: found, checked, fingerprinted, ready to be read.

    Raises
    ------
    UnknownNameError
        If there is no such dataset, split or class.
    DataError
        If the dataset is missing, damaged or laid out otherwise.

    Examples
    --------
    >>> digits = open_source("digits", "test", DatasetOptions(seed=0))
    >>> len(digits), digits.read(0).shape
    (539, (8, 8, 3))
    """
    dataset = _dataset(spec, options)
    splits = (*dataset.splits, *dataset.more_splits)
    if split not in splits:
        raise UnknownNameError(f"The dataset {spec!r} has no split {split!r}.", split, splits)
    source = dataset.open(split)
    if options.group_by is not None:
        source.group(groups_of(source.ids, options.group_by), options.group_by)
    if options.classes is not None and not dataset.selects_classes:
        return keep_classes(source, options.classes)
    return source


def _dataset(spec: str, options: DatasetOptions) -> Dataset:
    name, _, argument = spec.partition(":")
    kind = DATASETS.get(name)
    check_installed(spec)
    if bool(argument) != bool(wanted := kind.argument_name):
        wrong = f"needs a {wanted.lower()}" if wanted else "takes no argument"
        expected = f"{name}:{wanted}" if wanted else name
        raise UsageError(f"The dataset {name!r} {wrong}.", got=spec, expected=expected)
    return kind(argument, options)


@dataclass(frozen=True)
class SourceRequest:
    """Which images a store is made from: options of every step that opens images."""

    dataset: str
    data: Path | None = None
    classes: str | None = None
    split_seed: int = 0
    limit: int | None = None
    group_by: str | None = None

    @classmethod
    def of(cls, step: Any) -> SourceRequest:
        """Return the request of a step that opens images."""
        return cls(**{item.name: getattr(step, item.name) for item in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-like values from which the request can be made again, anywhere."""
        name, argument, kind = split_spec(self.dataset)
        dataset = f"{name}:{kind.absolute(argument, self.data)}" if kind else self.dataset
        data = None if self.data is None else str(self.data.resolve())
        return {**asdict(self), "dataset": dataset, "data": data}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SourceRequest:
        """Return the request that :meth:`as_dict` describes."""
        return cls(**{**values, "data": values.get("data") and Path(values["data"])})

    def moved(self, data: Path | None) -> SourceRequest:
        """Return the request for a dataset that was moved to a folder, if one is named."""
        if data is None:
            return self
        name, argument, kind = split_spec(self.dataset)
        dataset = f"{name}:{kind.moved(argument, data)}" if kind else self.dataset
        return replace(self, dataset=dataset, data=data)

    def options(self, context: Context, *, download: bool = False) -> DatasetOptions:
        """Return the options for opening the dataset in a workspace."""
        return DatasetOptions(
            data=self.data,
            raw=context.workspace.raw,
            hashes=FileHashes(context.workspace.hashes),
            classes=self.classes,
            seed=self.split_seed,
            group_by=self.group_by,
            download=download,
            progress=context.progress,
        )

    def open_all(
        self, splits: Sequence[str] | None, context: Context, *, download: bool
    ) -> list[ImageSource]:
        """Open some splits, by default every labelled one."""
        options = self.options(context, download=download)
        return [self.open(split, options) for split in splits or splits_of(self.dataset, options)]

    def open(self, split: str, options: DatasetOptions) -> ImageSource:
        """Open one split; ``limit`` images of it, spread evenly over the classes."""
        source = open_source(self.dataset, split, options)
        if self.limit is None or self.limit >= len(source):
            return source
        return Subset(source, class_balanced_rows(source.labels, self.limit, self.split_seed))
