"""Read the CSV file of a label map and check every line of it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from featpipe.errors import LabelMapError, did_you_mean
from featpipe.files import read_regular
from featpipe.workspace import restore_cell

OTHER = "other"

_COLUMNS = ("source_id", "source_name", "target", "why", "disputed")
_REQUIRED = {"source_id", "target"}
_MOST_BYTES = 1 << 26
_LISTED = 5  # of many missing classes a message names this many


@dataclass(frozen=True)
class Row:
    """One line of a map: what becomes of one source class, and why."""

    line: int
    source_id: str
    source_name: str
    target: str
    why: str
    disputed: str = ""  # "GROUP: TARGET" where another target can be argued for, else empty

    @property
    def alternative(self) -> tuple[str, str]:
        """The group of rows that could be mapped differently together, and its other target."""
        group, _, target = self.disputed.rpartition(":")
        return group.strip(), target.strip()


@dataclass(frozen=True)
class MapFile:
    """A map as read, not yet compared with a source and a dataset."""

    path: Path
    source: str  # of the line "# source:"; empty if there is none
    variant_of: str  # likewise
    note: str  # likewise: a note for every result that is made with the map
    targets: tuple[str, ...]  # of the line "# targets:", or else every target that a row names
    targets_line: int | None
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> MapFile:
        """Read a file of notes (``# key: value, value``), a header row and one row per class."""
        notes: dict[str, list[str]] = defaultdict(list)
        targets_line = None
        header: list[str] = []
        rows: list[Row] = []
        for line, cells in _lines(path):
            if cells[0].startswith("#"):
                key, _, first = cells[0].lstrip("# ").partition(":")
                key = key.strip().lower()
                # A spreadsheet pads the line with empty cells; they are no values.
                notes[key] += filter(None, (first.strip(), *cells[1:]))
                if key == "targets" and targets_line is None:
                    targets_line = line
            elif not header:
                header = cells
                if missing := sorted(_REQUIRED.difference(cells)):
                    what, expected = f"lacks the column {quoted(missing)}", ",".join(_COLUMNS)
                    raise _wrong(what, path, line, expected=expected, got=",".join(cells))
            elif len(cells) != len(header):
                expected = f"{len(header)} cells; a cell that holds a comma needs double quotes"
                what = "has a line of another length than its header"
                raise _wrong(what, path, line, expected=expected, got=f"{len(cells)} cells")
            else:
                row = dict(zip(header, cells, strict=True))
                rows.append(Row(line, *(row.get(name, "") for name in _COLUMNS)))
        if not rows:
            expected = "a header with source_id and target, and a row for every source class"
            raise _wrong("is empty", path, expected=expected)
        named = dict.fromkeys(row.target for row in rows if row.target not in (OTHER, ""))
        targets = tuple(notes["targets"] or named)
        source, variant, note = (", ".join(notes[k]) for k in ("source", "variant of", "note"))
        return cls(path, source, variant, note, targets, targets_line, tuple(rows))

    def checked_targets(self, target_classes: Sequence[str] | None) -> tuple[str, ...]:
        """Return the target classes in the dataset's order.

        The map names exactly the classes that the dataset, or the map's own list, holds.
        """
        targets = self.targets if target_classes is None else tuple(target_classes)
        if OTHER in (*targets, *self.targets):
            what = f"A target class cannot be named {OTHER!r}, a label map's name for the rest."
            raise LabelMapError(what, where=self.path, next_step="rename the class in the dataset")
        disputed = [row for row in self.rows if row.disputed]
        for row in disputed:
            if not row.alternative[0]:
                what, got = "has a disputed row that names no group", row.disputed
                expected = "GROUP: TARGET, such as “antelopes: deer”, or nothing"
                raise _wrong(what, self.path, row.line, expected=expected, got=got)
        declared = [] if self.targets_line is None else self.targets
        lines = [(self.targets_line, target) for target in declared]
        lines += [(row.line, row.target) for row in self.rows]
        lines += [(row.line, row.alternative[1]) for row in disputed]
        known = [*(name for name in targets if name in self.targets), OTHER]
        for line, target in lines:
            if target not in known:
                raise self._unknown("target", target, known, line)
        if unmatched := [name for name in targets if name not in known]:
            written, (first, *rest) = io.StringIO(), targets
            csv.writer(written, lineterminator="").writerow([f"# targets: {first}", *rest])
            what = f"does not know {_some(unmatched, 'class', 'classes')} of the dataset"
            expected = f"rows that map to {quoted(unmatched)}, or, where no source class is meant, "
            expected += f"a line “{written.getvalue()}”"
            hint = "add them to the file, or choose another map with --map FILE.csv"
            raise _wrong(what, self.path, expected=expected, next_step=hint)
        return targets

    def checked_rows(self, source_ids: Sequence[str] | None) -> tuple[Row, ...]:
        """Return the rows in the order of the source's columns, or in their own for ``None``.

        There is exactly one for each.
        """
        own = [row.source_id for row in self.rows]
        known = dict.fromkeys(own if source_ids is None else source_ids)
        if known.keys().isdisjoint(own):
            what = "is for another source classifier: it has none of its classes"
            expected, got = (f"ids such as {quoted(ids)}" for ids in (known, own))
            hint = "choose another map with --map"
            raise _wrong(what, self.path, expected=expected, got=got, next_step=hint)
        by_id: dict[str, Row] = {}
        for row in self.rows:
            if row.source_id not in known:
                raise self._unknown("source", row.source_id, list(known), row.line)
            first = by_id.setdefault(row.source_id, row)
            if first is not row:
                what = f"has the source class {row.source_id!r} twice"
                raise _wrong(what, self.path, row.line, got=f"its first row is line {first.line}")
        if missing := [source_id for source_id in known if source_id not in by_id]:
            place = self.rows[0].line - 1
            for source_id in takewhile(by_id.__contains__, known):
                place = by_id[source_id].line
            what, where = _some(missing, "source class", "source classes"), f"after line {place}"
            expected, got = f"{len(known)} rows, one for every source class", f"{len(by_id)} rows"
            raise _wrong(f"lacks {what}", f"{self.path}, {where}", expected=expected, got=got)
        return tuple(by_id[source_id] for source_id in known)

    def _unknown(self, kind: str, name: str, known: list[str], line: int | None) -> LabelMapError:
        what, hint = f"has an unknown {kind} class: {name!r}", did_you_mean(name, known)
        expected = ", ".join(known) if len(known) < 20 else f"one of {len(known)} classes"
        return _wrong(what, self.path, line, expected=expected, next_step=hint)


def _wrong(what: str, path: object, line: int | None = None, **details: Any) -> LabelMapError:
    where = path if line is None else f"{path}, line {line}"
    return LabelMapError(f"The label map {what}.", where=where, **details)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every line that is not blank, with its number."""
    line = 1
    try:
        data = read_regular(path, _MOST_BYTES)
        text = data.decode("utf-8-sig")  # spreadsheets begin a UTF-8 file with a byte order mark
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        for raw in reader:
            cells = [restore_cell(cell.strip()) for cell in raw]
            if any(cells):
                yield line, cells
            line = reader.line_num + 1  # a quoted cell may hold line ends
    except OSError as error:
        raise _wrong("cannot be read", path, got=error.strerror) from None
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise _wrong("is not UTF-8 text", path, line, next_step="save it as CSV UTF-8") from None
    except csv.Error as error:
        raise _wrong("is not a readable CSV file", path, line, got=error) from None


def quoted(names: Iterable[str]) -> str:
    """Return names in quotes, and of many only the first few and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(repr(name) for name in listed[:_LISTED]) + more


def _some(names: Sequence[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many} ({quoted(names)})"
