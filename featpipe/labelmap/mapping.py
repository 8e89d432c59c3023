"""The map itself: from the columns of a classifier's logits to the classes of a dataset."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featpipe import fingerprint
from featpipe.errors import LabelMapError, UnknownNameError
from featpipe.labelmap.file import OTHER, MapFile, Row, quoted
from featpipe.workspace import user_path

FOLDER = Path(__file__).parent  # of the built-in maps and class lists
IDENTITY = "identity"
_SOURCE_FILES = {"imagenet": "imagenet_classes.csv", "glyphs": "glyph_classes.csv"}


@dataclass(frozen=True)
class SourceClasses:
    """The classes of a classifier, in the order of its logits."""

    ids: tuple[str, ...]  # one unique, stable id per class ("n02123045", "U+0041")
    names: tuple[str, ...]  # one readable name per class

    @classmethod
    def load(cls, name: str) -> SourceClasses:
        """Return the classes of ``"imagenet"`` (torchvision's order) or ``"glyphs"``."""
        if name not in _SOURCE_FILES:
            what = f"There is no list of source classes named {name!r}."
            raise UnknownNameError(what, name, _SOURCE_FILES)
        with (FOLDER / _SOURCE_FILES[name]).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return cls(tuple(r["source_id"] for r in rows), tuple(r["name"] for r in rows))

    @property
    def name(self) -> str | None:
        """Name of the built-in list with these ids in this order, or ``None``."""
        return next((n for n in _SOURCE_FILES if SourceClasses.load(n).ids == self.ids), None)


@dataclass(frozen=True)
class LabelMap:
    """Complete and unambiguous map from source classes to target classes plus "other".

    Examples
    --------
    >>> stl10 = LabelMap.load("imagenet_to_stl10")
    >>> stl10.without_source
    ('deer',)
    >>> stl10.sources["truck"][:2]
    ('fire engine', 'garbage truck')
    """

    name: str  # of the built-in map, or the file it was read from, or "identity"
    targets: tuple[str, ...]  # in the order of the dataset's labels
    rows: tuple[Row, ...]  # one per source class, in the order of the source's logits
    note: str = ""  # for every result that is made with the map

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        target_classes: Sequence[str] | None = None,
        source_ids: Sequence[str] | None = None,
    ) -> LabelMap:
        """Read a map; one that is not complete and unambiguous is a ``LabelMapError``.

        Parameters
        ----------
        name_or_path : str or path
            A name out of :func:`builtin_maps`, or a CSV file.
        target_classes : sequence of str, optional
            Classes of the dataset in label order, all in the map. Default: its own targets.
        source_ids : sequence of str, optional
            Ids of the classifier's columns in order, each with a row in the map. Default: those of
            the source that the file declares or else the file's own ids.
        """
        built_in = name_or_path in builtin_maps()
        path = FOLDER / f"{name_or_path}.csv" if built_in else user_path(name_or_path)
        if not path.exists():
            name, known = str(name_or_path), builtin_maps()
            what = f"There is no label map and no file named {name!r}."
            expected = f"{', '.join(known)}, or the path of a CSV file"
            raise UnknownNameError(what, name, known, expected=expected)
        read = MapFile.read(path)
        if source_ids is None and read.source:
            source_ids = SourceClasses.load(read.source).ids
        targets, rows = read.checked_targets(target_classes), read.checked_rows(source_ids)
        name = path.stem if path.parent == FOLDER else str(path)
        return cls(name, targets, rows, read.note)

    @classmethod
    def identity(cls, source: SourceClasses, target_classes: Sequence[str]) -> LabelMap | None:
        """Return the map of a dataset whose classes are classes of the source, else ``None``.

        Each class of the dataset must be the id of a source class or a name that only one of them
        has, and no two may be the same source class.
        """
        named, pairs = Counter(source.names), list(zip(source.ids, source.names, strict=True))
        ids = {name: source_id for source_id, name in pairs if named[name] == 1}
        ids |= zip(source.ids, source.ids, strict=True)
        target_of = {ids.get(target): target for target in target_classes}
        if {None, OTHER} & {*target_of, *target_classes}:
            return None
        if not 0 < len(target_of) == len(target_classes):  # none, or one class twice
            return None
        rows = (Row(0, each, name, target_of.get(each, OTHER), "") for each, name in pairs)
        return cls(IDENTITY, tuple(target_classes), tuple(rows))

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Names of the source classes of each target class and, last, of "other"."""
        return {
            target: tuple(row.source_name for row in self.rows if row.target == target)
            for target in (*self.targets, OTHER)
        }

    @property
    def without_source(self) -> tuple[str, ...]:
        """Target classes that no source class maps to: they can never be predicted."""
        mapped = {row.target for row in self.rows}
        return tuple(target for target in self.targets if target not in mapped)

    @property
    def disputed(self) -> dict[str, tuple[Row, ...]]:
        """Rows that could just as well have another target, in groups.

        Examples
        --------
        >>> [row.source_name for row in LabelMap.load("imagenet_to_stl10").disputed["wildcats"]]
        ['cougar', 'lynx']
        """
        rows = [row for row in self.rows if row.disputed]
        groups = dict.fromkeys(row.alternative[0] for row in rows)
        return {g: tuple(row for row in rows if row.alternative[0] == g) for g in groups}

    def otherwise(self, group: str) -> LabelMap:
        """Return the map with one group of disputed rows mapped to their other targets."""
        moved = {row: replace(row, target=row.alternative[1]) for row in self.disputed[group]}
        return replace(self, rows=tuple(moved.get(row, row) for row in self.rows))

    @property
    def fingerprint(self) -> str:
        """Hex digest of targets and disputed rows; names and reasons do not change it."""
        pairs = [(row.source_id, row.target) for row in self.rows]
        disputed = [(row.source_id, row.disputed) for row in self.rows if row.disputed]
        more = {"disputed": disputed} if disputed else {}
        return fingerprint.of_mapping({"targets": self.targets, "rows": pairs, **more})

    def columns(self) -> NDArray[np.int64]:
        """Return the target of each source class, shape (n_source,); ``len(targets)`` is other."""
        index = {target: i for i, target in enumerate((*self.targets, OTHER))}
        return np.array([index[row.target] for row in self.rows], dtype=np.int64)

    def probabilities(self, logits: ArrayLike, policy: str = "argmax") -> NDArray[np.float64]:
        """Return a probability for each target class and, last, for "other".

        Parameters
        ----------
        logits : array-like of shape (n, n_source)
        policy : {"argmax", "group", "restricted"}
            ``argmax``: the highest of all source classes decides. ``group``: probabilities are
            summed within each target class and within "other". ``restricted``: the highest of
            those source classes that map to a target class decides; "other" has probability 0.

        Returns
        -------
        probabilities : ndarray of shape (n, n_targets + 1), float64
            Under ``argmax`` and ``restricted`` a target's share is that of its most probable
            source class, normalised, so that the highest probability is always the prediction.
        """
        columns, n_targets = self.columns(), len(self.targets)
        values = np.asarray(logits, dtype=np.float64)
        if policy not in ("argmax", "group", "restricted"):
            raise ValueError(f"there is no policy {policy!r}")
        if values.shape[1] != len(columns):
            raise ValueError(f"the logits have {values.shape[1]} columns, the map {len(columns)}")
        if not np.isfinite(values).all():
            raise ValueError("the logits hold NaN or infinity")
        if policy == "restricted":
            values = np.where(columns < n_targets, values, -np.inf)
        source = np.exp(values - values.max(axis=1, keepdims=True))
        source /= source.sum(axis=1, keepdims=True)
        pool = np.sum if policy == "group" else np.max
        pooled = np.zeros((len(source), n_targets + 1))
        for target in set(columns.tolist()):
            pooled[:, target] = pool(source[:, columns == target], axis=1)
        return pooled / pooled.sum(axis=1, keepdims=True)


def builtin_maps() -> list[str]:
    """Return the names of the maps that come with featpipe."""
    return sorted(path.stem for path in FOLDER.glob("*_to_*.csv"))


def for_pair(source: SourceClasses, target_classes: Sequence[str]) -> LabelMap:
    """Return the map from a source to the classes of a dataset if the user names none.

    That is the built-in map with exactly these targets or, without one, the identity. A built-in
    map that is declared a variant of another is used by name only.
    """
    read = {name: MapFile.read(FOLDER / f"{name}.csv") for name in builtin_maps()}
    files = {name: file for name, file in read.items() if not file.variant_of}
    source_name = source.name or "these source classes"
    of_source = [name for name, file in files.items() if file.source == source_name]
    for name in of_source:
        if set(files[name].targets) == set(target_classes):
            return LabelMap.load(name, target_classes)
    if identity := LabelMap.identity(source, target_classes):
        return identity
    example = next(iter(of_source or sorted(files)))
    raise LabelMapError(
        f"There is no built-in label map from {source_name} to the classes of this dataset, "
        "and not every class is a class of the source.",
        expected=f"the classes of {', '.join(files)}; or ids or unambiguous names of the source",
        got=quoted(target_classes),
        next_step="write your own and pass it with --map FILE.csv; to start from a built-in one: "
        f"featpipe labelmap show {example}",
    )
