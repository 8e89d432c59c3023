"""``csv:PATH``, images listed in a table, and ``npz:PATH``, images in a NumPy archive."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import PathDataset, refuse_missing
from featpipe.datasets.folder import natural_key
from featpipe.datasets.images import FileSource
from featpipe.datasets.source import UNLABELLED, ArraySource, Identity, ImageSource
from featpipe.errors import DataError, did_you_mean

_SHAPES = "(n, height, width), (n, height, width, 1) or (n, height, width, 3)"


def ordered_splits(names: Iterable[str]) -> tuple[str, ...]:
    """Return split names, the usual ones first.

    Examples
    --------
    >>> ordered_splits(["val", "extra", "train", "val", "test"])
    ('train', 'test', 'val', 'extra')
    """
    usual = ["train", "test", "val"]
    rest = sorted(set(names), key=natural_key)
    return tuple(sorted(rest, key=(usual + rest).index))


class _Row(NamedTuple):
    """One line of a CSV."""

    line: int
    path: str
    label: str
    split: str


@DATASETS.register
class CsvList(PathDataset):
    """csv:PATH, a table with the columns path, label[, split].

    Paths are relative to the CSV file; an empty label means unlabelled. Classes are the labels
    of the whole table in natural order, so that a label means the same in every split. Other
    columns have no effect.
    """

    name = "csv"

    @cached_property
    def _rows(self) -> list[_Row]:
        table, rows = self.path, []
        try:
            # The byte-order mark that spreadsheets write is no part of a name.
            with table.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                header = list(reader.fieldnames or [])
                for name in [name for name in ("path", "label") if name not in header]:
                    fused = len(header) == 1 and any(mark in header[0] for mark in ";\t|")
                    hint = "separate the columns by commas" if fused else did_you_mean(name, header)
                    raise DataError(
                        f"The CSV has no column {name!r}.",
                        where=table,
                        expected="a first line with path,label or path,label,split",
                        got=",".join(header) or "an empty file",
                        next_step=hint,
                    )
                for values in reader:
                    path, label, split = values["path"], values["label"], values.get("split", "all")
                    if not path or label is None or not split:
                        raise DataError(
                            "A line of the CSV is not complete.",
                            where=f"{table}, line {reader.line_num}",
                            expected=", ".join(name for name in _Row._fields[1:] if name in header),
                            got=", ".join(str(value) for value in values.values() if value),
                        )
                    rows.append(_Row(reader.line_num, path.strip(), label.strip(), split.strip()))
        except OSError as error:
            raise DataError("The CSV cannot be read.", where=table, got=error.strerror) from error
        except (UnicodeDecodeError, csv.Error) as error:
            what = "The file is not a CSV in UTF-8."
            raise DataError(what, where=table, got=error, next_step="export it again") from error
        if not rows:
            raise DataError("The CSV lists no images.", where=table, got="a header only")
        return rows

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the column ``split``, or ``all`` where there is no such column."""
        return ordered_splits(row.split for row in self._rows)

    def open(self, split: str) -> ImageSource:
        """List the images of one split."""
        table = self.path
        rows = [row for row in self._rows if row.split == split]
        first: dict[str, int] = {}
        for row in rows:
            if first.setdefault(row.path, row.line) != row.line:
                where = f"{table}, lines {first[row.path]} and {row.line}"
                what = "An image is listed twice in one split."
                raise DataError(what, where=where, got=row.path)
        missing = [row for row in rows if not (table.parent / row.path).is_file()]
        refuse_missing(
            [f"line {row.line}: {row.path}" for row in missing],
            f"{len(missing)} file(s) that the CSV names are missing.",
            table,
            f"paths relative to {table.parent}",
        )
        classes = tuple(sorted({row.label for row in self._rows if row.label}, key=natural_key))
        label_of = {"": UNLABELLED, **{name: label for label, name in enumerate(classes)}}
        labels = [label_of[row.label] for row in rows]
        identity = Identity(self.spec, split, classes, [row.path for row in rows], labels)
        return FileSource(identity, table.parent, self.options, table)


@DATASETS.register
class Npz(PathDataset):
    """npz:PATH, a NumPy archive with images and labels.

    Arrays ``images`` (uint8), ``labels``, and perhaps ``classes``, ``ids`` and ``split``. Without
    ``classes`` the classes are called ``"0"``, ``"1"`` …; without ``ids`` an image is called by
    its row in the file; without ``split`` there is one split, ``all``.
    """

    name = "npz"

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the array ``split``, or ``all`` where there is none."""
        arrays = _load(self.path, ["split"])
        return ordered_splits(_texts(arrays["split"])) if "split" in arrays else ("all",)

    def open(self, split: str) -> ImageSource:
        """Read the images of one split into memory."""
        arrays = _load(self.path, ["images", "labels", "classes", "ids", "split"])
        refused = partial(DataError, where=self.path)
        if (images := arrays.get("images")) is None:
            raise refused("There is no array 'images'.", expected=f"shape {_SHAPES}")
        if images.dtype != np.uint8:
            raise refused(
                "The images do not have 8 bits per channel.",
                expected="uint8, 0 to 255",
                got=images.dtype,
                next_step="for values from 0 to 1: np.rint(images * 255).astype(np.uint8)",
            )
        planes_last = images.ndim == 4 and images.shape[-1] in (1, 3)
        if not (images.ndim == 3 or planes_last) or 0 in images.shape:
            planes_first = images.ndim == 4 and images.shape[1] in (1, 3)
            raise refused(
                "The array 'images' has another shape than images.",
                expected=_SHAPES,
                got=images.shape,
                next_step="images.transpose(0, 2, 3, 1)" if planes_first else None,
            )
        if planes_last and images.shape[-1] == 1:
            images = images[..., 0]
        expected = "integers of shape (n,); -1 for unlabelled images"
        if (labels := arrays.get("labels")) is None:
            raise refused("There is no array 'labels'.", expected=expected)
        if not np.issubdtype(labels.dtype, np.integer):
            raise refused("The labels are not integers.", expected=expected, got=labels.dtype)
        rows = np.arange(len(images))
        for name in [name for name in ("labels", "ids", "split") if name in arrays]:
            if arrays[name].shape != rows.shape:
                what = f"The array {name!r} does not have one value for each image."
                raise refused(what, expected=f"shape {rows.shape}", got=arrays[name].shape)
        names = _texts(arrays["classes"]) if "classes" in arrays else numbered(labels)
        ids = _texts(arrays["ids"]) if "ids" in arrays else [f"{row:05d}" for row in rows]
        if "split" in arrays:
            rows = np.flatnonzero(np.array(_texts(arrays["split"])) == split)
        chosen = [ids[row] for row in rows]
        identity = Identity(self.spec, split, tuple(names), chosen, labels[rows])
        return ArraySource(identity, images[rows], self.options.digests([self.path]), self.path)


def numbered(labels: NDArray[Any]) -> tuple[str, ...]:
    """Return the names of classes that are known by their numbers only."""
    return tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))


def _load(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read those of the named arrays that exist."""
    arrays: dict[str, NDArray[Any]] = {}
    name = ""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            what, expected = "The file holds a single array.", "an .npz with named arrays"
            raise DataError(what, where=file, expected=expected)
        with archive:
            for name in filter(archive.files.__contains__, names):
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError("The file does not exist.", where=file) from None
    except DataError:
        raise
    except Exception as error:
        # ValueError, OSError, EOFError, BadZipFile, zlib.error …; MemoryError where a header
        # promises more than there is memory, RuntimeError where an entry is encrypted.
        if name and "allow_pickle" in str(error):
            raise DataError(
                f"The array {name!r} holds Python objects, which could run code when they are "
                "read; refused.",
                where=file,
                next_step="write texts as fixed-width strings: np.array(names, dtype=str)",
            ) from None
        got = "no NumPy file" if "pickle" in str(error) else error
        what = "The file is not a NumPy archive, or it is damaged."
        raise DataError(what, where=file, got=got) from error
    return arrays


def _texts(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return [str(value) for value in values.ravel().tolist()]
