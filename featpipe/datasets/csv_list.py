"""``csv:PATH``: images listed in a table with the columns path, label and perhaps split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featpipe.datasets.base import ImageSource
from featpipe.datasets.definition import Dataset, DatasetOptions
from featpipe.datasets.listing import natural_key
from featpipe.datasets.sources import FileSource, Identity, label_names
from featpipe.errors import DataError
from featpipe.registry import did_you_mean


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    line: int
    path: str
    label: str
    split: str


class CsvList(Dataset):
    """Paths are relative to the CSV file; an empty label means unlabelled.

    Classes are the labels of the whole table in natural order, so that a label means the same in
    every split. Other columns are of no concern.
    """

    takes_path = "PATH"

    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """Values of the column ``split``, or ``all`` where there is no such column."""
        return ordered_splits(row.split for row in _read(options.resolve(path)))

    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """List the images of one split."""
        table = options.resolve(path)
        every = _read(table)
        rows = [row for row in every if row.split == split]
        _check_files(table, rows)
        classes = tuple(sorted({row.label for row in every if row.label}, key=natural_key))
        labels = label_names([row.label for row in rows], classes)
        identity = Identity(f"csv:{path}", split, classes, [row.path for row in rows], labels)
        return FileSource(identity, table.parent, options, table)


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


def _read(table: Path) -> list[Row]:
    """Read the table; the byte-order mark that spreadsheets write is no part of a name."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_header(table, reader.fieldnames or [])
            has_split = "split" in (reader.fieldnames or [])
            rows = [_row(table, reader.line_num, values, has_split) for values in reader]
    except OSError as error:
        raise DataError("The CSV cannot be read.", where=table, got=error.strerror) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "The file is not a CSV in UTF-8.", where=table, got=error, next_step="export it anew"
        ) from error
    if not rows:
        raise DataError("The CSV lists no images.", where=table, got="a header only")
    return rows


def _row(table: Path, line: int, values: dict[str, str | None], has_split: bool) -> Row:
    path, label = values["path"], values["label"]
    split = values["split"] if has_split else "all"
    if not path or label is None or not split:
        raise DataError(
            "A line of the CSV is not complete.",
            where=f"{table}, line {line}",
            expected="path, label (may be empty)" + (" and split" if has_split else ""),
            got=", ".join(str(value) for value in values.values() if value),
        )
    return Row(line, path.strip(), label.strip(), split.strip())


def _check_header(table: Path, header: Sequence[str]) -> None:
    for name in ("path", "label"):
        if name not in header:
            only = header[0] if len(header) == 1 else ""
            separator = next((char for char in ";\t|" if char in only), None)
            hint = "separate the columns by commas" if separator else did_you_mean(name, header)
            raise DataError(
                f"The CSV has no column {name!r}.",
                where=table,
                expected="a first line with path,label or path,label,split",
                got=",".join(header) or "an empty file",
                next_step=hint.strip() or None,
            )


def _check_files(table: Path, rows: list[Row]) -> None:
    first_line: dict[str, int] = {}
    for row in rows:
        if row.path in first_line:
            raise DataError(
                "An image is listed twice in one split.",
                where=f"{table}, lines {first_line[row.path]} and {row.line}",
                got=row.path,
            )
        first_line[row.path] = row.line
    missing = [row for row in rows if not (table.parent / row.path).is_file()]
    if missing:
        named = [f"line {row.line}: {row.path}" for row in missing[:5]]
        more = [f"and {len(missing) - 5} more"] if len(missing) > 5 else []
        raise DataError(
            f"{len(missing)} file(s) that the CSV names are missing.",
            where=table,
            expected=f"paths relative to {table.parent}",
            got="; ".join(named + more),
        )
