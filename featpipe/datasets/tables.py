"""``csv:PATH``, images listed in a table, and ``npz:PATH``, images in a NumPy archive."""

from __future__ import annotations

import csv
import io
import math
import os
import struct
import zipfile
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from featpipe.datasets import DATASETS, naming
from featpipe.datasets.dataset import PathDataset, refuse_missing
from featpipe.datasets.images import FileSource
from featpipe.datasets.source import ArraySource, Identity, ImageSource
from featpipe.errors import DataError, did_you_mean, nearest_path
from featpipe.files import open_regular
from featpipe.workspace import restore_cell

_SHAPES = "(n, height, width), (n, height, width, 1) or (n, height, width, 3)"

_MOST_ROWS = 20_000_000  # each takes some 100 bytes of memory besides its pixels
_SINGLE_ARRAY = b"\x93NUMPY"
_BLOCK_BYTES = 1 << 20


class _Row(NamedTuple):
    """One line of a CSV."""

    line: int
    path: str
    label: str
    split: str
    group: str


_COLUMNS = _Row._fields[1:]


@DATASETS.register
class CsvList(PathDataset):
    """csv:PATH, a table with the columns path[, label][, split][, group].

    Paths are relative to the CSV file; an empty label means unlabelled, and so does no such column.
    Classes are the labels of the whole table, so that a label means the same in every split. No
    split divides the images of a group. Other columns have no effect.
    """

    name = "csv"
    _grouped = False  # whether the table has a column group

    @cached_property
    def _rows(self) -> list[_Row]:
        table, rows = self.path, []
        try:
            # utf-8-sig: spreadsheets write a byte-order mark.
            with io.TextIOWrapper(open_regular(table), "utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                header = list(reader.fieldnames or [])
                self._check_header(header)
                self._grouped = "group" in header
                for values in reader:
                    path, label = values["path"], values.get("label", "")
                    split, group = values.get("split", "all"), values.get("group", "none")
                    if not path or label is None or not split or not group:
                        where = f"{table}, line {reader.line_num}"
                        expected = ", ".join(name for name in _COLUMNS if name in header)
                        got = ", ".join(str(value) for value in values.values() if value)
                        what = "A line of the CSV is not complete."
                        raise DataError(what, where=where, expected=expected, got=got)
                    cells = [restore_cell(cell.strip()) for cell in (path, label, split, group)]
                    rows.append(_Row(reader.line_num, *cells))
        except OSError as error:
            near = nearest_path(table) if isinstance(error, FileNotFoundError) else None
            what = "The CSV cannot be read."
            raise DataError(what, where=table, got=error.strerror, next_step=near) from error
        except (UnicodeDecodeError, csv.Error) as error:
            what = "The file is not a CSV in UTF-8."
            raise DataError(what, where=table, got=error, next_step="export it again") from error
        if not rows:
            raise DataError("The CSV lists no images.", where=table, got="a header only")
        return rows

    def _check_header(self, header: list[str]) -> None:
        refused = partial(DataError, where=self.path, got=",".join(header) or "an empty file")
        if twice := [name for name in _COLUMNS if header.count(name) > 1]:
            what = f"The CSV has {header.count(twice[0])} columns called {twice[0]!r}."
            raise refused(what, expected="one of each name")
        missing = [name for name in _COLUMNS if name not in header]
        others = set(header) - set(_COLUMNS)
        # A column whose name is nearly right is a typing error, not a column to be ignored.
        meant = [name for name in missing if get_close_matches(name, others, cutoff=0.75)]
        for name in meant or [name for name in missing if name == "path"]:
            fused = len(header) == 1 and any(mark in header[0] for mark in ";\t|")
            raise refused(
                f"The CSV has no column {name!r}.",
                expected="a first line such as path,label or path,label,split,group",
                next_step="separate columns by commas" if fused else did_you_mean(name, header),
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the column ``split``, or ``all`` where there is no such column."""
        return naming.ordered_splits(row.split for row in self._rows)

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
        absent = [row for row in rows if not os.path.lexists(table.parent / row.path)]
        missing = [f"line {row.line}: {row.path}" for row in absent]
        what = f"{len(missing)} file(s) that the CSV names are missing."
        refuse_missing(missing, what, table, f"paths relative to {table.parent}")
        every = (row.label or None for row in self._rows)
        classes, labels = naming.classes_by_name([row.label or None for row in rows], every)
        identity = Identity(self.spec, split, classes, [row.path for row in rows], labels)
        source = FileSource(identity, table.parent, self.options, table)
        if self._grouped:
            source.group([row.group for row in rows], "the column group")
        return source


@DATASETS.register
class Npz(PathDataset):
    """npz:PATH, a NumPy archive with images and labels.

    Arrays ``images`` (uint8), ``labels``, and perhaps ``classes`` (default: ``"0"``, ``"1"`` …),
    ``ids`` (default: rows in the file) and ``split`` (default: ``all``).
    """

    name = "npz"

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the array ``split``, or ``all`` where there is none."""
        names = _load(self.path, ["split"]).get("split")
        return ("all",) if names is None else naming.ordered_splits(_texts(names, self.path))

    def open(self, split: str) -> ImageSource:
        """Read the images of one split into memory."""
        with self.options.unchanged([self.path]):
            content = self.options.digests([self.path])
            arrays = _load(self.path, ["images", "labels", "classes", "ids", "split"])
        refused = partial(DataError, where=self.path)
        if (images := arrays.get("images")) is None:
            raise refused("There is no array 'images'.", expected=f"shape {_SHAPES}")
        if images.dtype != np.uint8:
            hint = "for values from 0 to 1: np.rint(images * 255).astype(np.uint8)"
            what, expected = "The images do not have 8 bits per channel.", "uint8, 0 to 255"
            raise refused(what, expected=expected, got=images.dtype, next_step=hint)
        planes_last = images.ndim == 4 and images.shape[-1] in (1, 3)
        if not (images.ndim == 3 or planes_last) or 0 in images.shape:
            planes_first = images.ndim == 4 and images.shape[1] in (1, 3)
            turn = "images.transpose(0, 2, 3, 1)" if planes_first else None
            what = "The array 'images' does not have the shape of images."
            raise refused(what, expected=_SHAPES, got=images.shape, next_step=turn)
        if planes_last and images.shape[-1] == 1:
            images = images[..., 0]
        expected = "integers of shape (n,); -1 for unlabelled images"
        if (labels := arrays.get("labels")) is None:
            raise refused("There is no array 'labels'.", expected=expected)
        if not np.issubdtype(labels.dtype, np.integer):
            raise refused("The labels are not integers.", expected=expected, got=labels.dtype)
        for name in [name for name in ("labels", "ids", "split") if name in arrays]:
            if arrays[name].shape != (one_each := images.shape[:1]):
                what = f"The array {name!r} does not have one value for each image."
                raise refused(what, expected=f"shape {one_each}", got=arrays[name].shape)
        rows = np.arange(len(images))
        others = arrays.keys() - {"images", "labels"}
        texts = {name: _texts(arrays[name], self.path) for name in others}
        named = "classes" in texts
        names = texts["classes"] if named else naming.classes_by_number(labels, self.path)
        ids = texts["ids"] if "ids" in texts else [f"{row:05d}" for row in rows]
        if "split" in texts:
            rows = np.flatnonzero(np.array(texts["split"]) == split)
        chosen = [ids[row] for row in rows]
        identity = Identity(self.spec, split, tuple(names), chosen, labels[rows])
        return ArraySource(identity, images, content, self.path, rows)


def _load(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read those of the named arrays that exist; what is not compressed is mapped."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with open_regular(file) as stream:
            if stream.read(len(_SINGLE_ARRAY)) == _SINGLE_ARRAY:
                expected = "an .npz with named arrays"
                raise DataError("The file holds a single array.", expected=expected)
            with zipfile.ZipFile(stream) as archive:
                members = {info.filename: info for info in archive.infolist()}
                for name in names:
                    if (member := members.get(f"{name}.npy")) is not None:
                        arrays[name] = _array(stream, archive, member)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        what = "The file does not exist." if absent else "The archive cannot be read."
        near, got = nearest_path(file) if absent else None, None if absent else error.strerror
        raise DataError(what, where=file, got=got, next_step=near) from error
    except DataError as error:
        error.details = {"where": str(file), **error.details}
        raise
    except Exception as error:
        # BadZipFile, ValueError, EOFError, zlib.error …; RuntimeError where an entry is encrypted.
        what = "The file is not a NumPy archive, or it is damaged."
        raise DataError(what, where=file, got=error) from error
    return arrays


def _array(stream: BinaryIO, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array, or map it; its size is known before there is memory for it."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as entry:
        formats = np.lib.format
        first = formats.read_magic(entry) == (1, 0)  # later versions have a longer header
        read_header = formats.read_array_header_1_0 if first else formats.read_array_header_2_0
        shape, fortran, dtype = read_header(entry)
        start = entry.tell()
        if dtype.hasobject:
            what = f"The array {name!r} holds Python objects, which could run code when read."
            hint = "write texts as fixed-width strings: np.array(names, dtype=str)"
            raise DataError(what, next_step=hint)
        n_bytes = (count := math.prod(shape)) * dtype.itemsize
        promised = start + n_bytes
        if min(shape, default=0) < 0 or count > n_bytes or promised != member.file_size:
            raise ValueError(f"{name}: {member.file_size} bytes for {dtype} of shape {shape}")
        n_rows = shape[0] if name == "images" and shape else count
        if n_rows > _MOST_ROWS:
            what, expected = f"The array {name!r} has too many rows.", f"at most {_MOST_ROWS}"
            raise DataError(what, expected=expected, got=n_rows)
        if member.compress_type == zipfile.ZIP_STORED and n_bytes:
            while entry.read(_BLOCK_BYTES):  # at its end the checksum is compared
                pass
            # The zip header of a member ends with two fields whose lengths it gives.
            stream.seek(member.header_offset + 26)
            offset = stream.tell() + 4 + sum(struct.unpack("<HH", stream.read(4))) + start
            order: Literal["F", "C"] = "F" if fortran else "C"
            return np.memmap(stream, dtype, "r", offset, shape, order)
    free = psutil.virtual_memory().available
    try:
        if n_bytes > free:
            raise MemoryError
        with archive.open(member) as entry:
            array: NDArray[Any] = np.lib.format.read_array(entry, allow_pickle=False)
            entry.read(1)  # the checksum is compared at the end of the entry
            return array
    except MemoryError:
        what, got = f"The array {name!r} is too large to be unpacked.", f"{n_bytes / 1e6:,.0f} MB"
        expected = f"an array that fits into memory, of which {free / 1e6:,.0f} MB are free"
        hint = "save it with np.savez, uncompressed: it is then read from the disk as needed"
        raise DataError(what, expected=expected, got=got, next_step=hint) from None


def _texts(values: NDArray[Any], where: Path) -> list[str]:
    try:
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        return [str(value) for value in values.ravel().tolist()]
    except ValueError as error:  # bytes that are not UTF-8, or invalid code points
        raise DataError("An array of names holds no text.", where=where, got=error) from error
