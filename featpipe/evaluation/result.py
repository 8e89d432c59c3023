"""Results: one JSON file per evaluated method, with its predictions (npz) beside it."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import short_name, slug
from featpipe.errors import ResultError, UsageError, did_you_mean
from featpipe.files import read_json
from featpipe.fingerprint import FileHashes, sealed_json, unsealed
from featpipe.lazy import Lazy
from featpipe.notebook import html_table
from featpipe.workspace import atomic_write, user_path

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazy("pandas")  # takes time, and few want it

SCHEMA_VERSION = 2  # 1 is that of featpipe 0.1
_AGAIN = "run its command again with --force"
_ROUNDING = 1e-9  # numbers that differ by less are equal


class OldResultError(ResultError):
    """A result that featpipe 0.1 wrote."""


class ChangedResultError(ResultError):
    """A result whose content is not what was written; ``result`` is its present content."""

    def __init__(self, result: Result, why: ValueError) -> None:
        got = None
        with suppress(ResultError, LookupError, ValueError):
            got = result.misstated(PredictionTable.load(result.predictions_path))
        what, advice = f"The result cannot be trusted: {why}.", f"undo the change, or {_AGAIN}"
        super().__init__(what, where=result.path, got=got, next_step=advice)
        self.result = result


@dataclass(repr=False)
class Result:
    """Everything that is known about one evaluated method; these are the keys of its JSON file."""

    method: str  # name of the step ("svm", "zeroshot", "finetune")
    title: str  # its name in tables
    key: str  # fingerprint of the settings and of the stores: equal keys, equal numbers
    dataset: dict[str, Any]  # name, classes, other (can it be predicted), test (of which rows)
    settings: dict[str, Any]  # the resolved step
    protocol: dict[str, Any]  # how rows were split, in words and as data
    splits: list[dict[str, Any]]  # per trained model: rows, choice, convergence, metrics, seconds
    summary: dict[str, Any]  # metrics over all splits, with intervals
    cost: dict[str, Any]  # seconds, parameters and bytes
    stores: list[dict[str, Any]]  # path, fingerprint, layer, manifest and run of each store used
    environment: dict[str, Any]  # versions and hardware
    created: str  # when, ISO 8601
    command: str = ""  # that made it
    notes: list[str] = field(default_factory=list)  # what a reader of the numbers must know
    files: dict[str, str] = field(default_factory=dict)  # names of its predictions, of its model
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of each of these files
    # What only some methods have: low-shot curve, search table, training history, label map.
    extra: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    path: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Short unique name: the file name without its ending."""
        return self.path.stem if self.path else self.key[:12]

    def __repr__(self) -> str:
        return f"Result({self.name!r}, accuracy {self._accuracy})"

    def _repr_html_(self) -> str:
        facts = {"protocol": self.protocol["name"], "accuracy % (95 % interval)": self._accuracy}
        facts |= {"dataset": self.dataset["name"], "name": self.name}
        return html_table(self.title, [facts], self.notes)

    @property
    def _accuracy(self) -> str:
        value, low, high = (100 * self.summary["accuracy"][k] for k in ("value", "low", "high"))
        return f"{value:.2f} ({low:.2f}–{high:.2f})"

    def table(self) -> pd.DataFrame:
        """Return one row for each prediction, with the names of the classes, and the scores."""
        made, names = self.predictions(), np.array([*self.dataset["classes"], "other"])
        facts = {"id": made.ids[made.row], "split": made.split, "true": names[made.true[made.row]]}
        facts |= {"predicted": names[made.predicted], "correct": made.correct}
        scores = {} if made.scores is None else dict(zip(names, made.scores.T, strict=False))
        facts |= {f"score {name}": column for name, column in scores.items()}
        return pd.DataFrame(facts)

    def save(self, path: Path) -> Path:
        """Write the JSON file, atomically; a number that is not finite is a ValueError."""
        text = sealed_json({name: getattr(self, name) for name in _TYPES})
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.path = path
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result and compare its content with the digest in it.

        Raises
        ------
        ResultError
            If the file is missing, damaged, changed after it was written (ChangedResultError) or of
            another version (of 0.1: OldResultError).
        """
        path = Path(path)
        advice = f"delete it and run its command again: rm {str(path)!r}"
        refused = partial(ResultError, where=path, next_step=advice)
        try:
            content = read_json(path)
        except FileNotFoundError:
            what, advice = "There is no such result.", "featpipe results"
            raise ResultError(what, where=path, next_step=advice) from None
        except (OSError, ValueError, RecursionError) as error:
            raise refused(f"The result cannot be read: {error}") from error
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema == 1:
            command = content.get("command")
            raise OldResultError(
                "This result was written by featpipe 0.1, which computed keys differently.",
                where=path,
                next_step=f"run its command again{f' ({command})' if command else ''}, then delete "
                "this file or move it elsewhere",
            )
        if schema != SCHEMA_VERSION:
            what, expected = "This is not a result of this version of featpipe.", SCHEMA_VERSION
            raise refused(what, expected=f"schema {expected}", got=f"schema {schema}")
        changed = None
        try:
            content = unsealed(content)
        except ValueError as error:
            changed = error
            content.pop("digest", None)
        if wrong := _wrong_keys(content):
            what = "The result is damaged: its keys, or their types, are not those of a result."
            raise refused(what, got=", ".join(sorted(wrong)))
        result = cls(**content, path=path)
        if changed is not None:
            raise ChangedResultError(result, changed)
        return result

    @property
    def predictions_path(self) -> Path:
        """The file of the predictions; a ``ResultError`` if there is none."""
        if self.path is None:
            raise ResultError("This result was not saved, so it has no predictions file.")
        if not (name := self.files.get("predictions")):
            what = "This result names no predictions file beside it."
            raise ResultError(what, where=self.path, got=name)
        return self.path.with_name(name)

    def predictions(self) -> PredictionTable:
        """Read the predictions beside the JSON.

        Raises
        ------
        ResultError
            If they are missing, changed, damaged, or of another accuracy than the result states.
        """
        self.check_file("predictions", self.predictions_path)
        table = PredictionTable.load(self.predictions_path)
        if got := self.misstated(table):
            what = "The result is damaged: its accuracy is not that of its predictions."
            raise ResultError(what, where=self.path, got=got, next_step=_AGAIN)
        return table

    def check_file(self, kind: str, path: Path, hashes: FileHashes | None = None) -> None:
        """Refuse a file of the result that is missing or was changed after it was written.

        ``kind`` is its key in :attr:`files`; ``hashes`` may remember the digest.
        """
        what, stated = f"The file of the {kind} of the result {self.name}", self.digests.get(kind)
        try:
            digest = (hashes or FileHashes()).one(path)
        except OSError as error:
            what = f"{what} cannot be read: {error.strerror}."
            raise ResultError(what, where=path, next_step=_AGAIN) from None
        if digest != stated:
            what = f"{what} was changed after it was written."
            expected, got = (f"SHA-256 {one}" for one in (stated, digest))
            raise ResultError(what, where=path, expected=expected, got=got, next_step=_AGAIN)

    def misstated(self, table: PredictionTable) -> str | None:
        """Return the accuracy stated and that of the predictions, in words; ``None`` if equal."""
        stated = self.summary["accuracy"]["value"]
        if len(table.row) and abs(table.accuracy - stated) <= _ROUNDING:
            return None
        return f"an accuracy of {stated:.6f}; the predictions give {table.accuracy:.6f}"


_TYPES = {name: get_origin(hint) or hint for name, hint in get_type_hints(Result).items()}
del _TYPES["path"]


def _wrong_keys(content: dict[str, Any]) -> set[str]:
    """Return the keys that are missing, unknown, or hold values of a wrong type."""
    wrong = {
        name
        for name in content.keys() | _TYPES.keys()
        if not isinstance(content.get(name), _TYPES.get(name, ()))
    }
    if wrong:
        return wrong
    summary, accuracy = content["summary"], content["summary"].get("accuracy")
    measured = isinstance(accuracy, dict) and all(
        isinstance(accuracy.get(name), int | float) and math.isfinite(accuracy[name])
        for name in ("value", "low", "high")
    )
    names = content["files"].values()
    fits = {
        "summary": measured and isinstance(summary.get("metrics"), dict),
        "dataset": isinstance(content["dataset"].get("name"), str),
        "files": all(isinstance(name, str) and Path(name).name == name for name in names),
        "digests": all(isinstance(digest, str) for digest in content["digests"].values()),
        **{key: all(isinstance(e, dict) for e in content[key]) for key in ("splits", "stores")},
    }
    return {name for name, right in fits.items() if not right}


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of all splits of a result.

    There are n distinct test rows and m predictions: a test row that ten models were tested on has
    ten.
    """

    ids: NDArray[np.str_]  # of the test rows, (n,)
    true: NDArray[np.int64]  # their classes, (n,)
    row: NDArray[np.int64]  # which test row a prediction is for, (m,)
    split: NDArray[np.int64]  # which split's model made it, (m,)
    predicted: NDArray[np.int64]  # (m,); the number of classes means "other"
    scores: NDArray[np.float32] | None = None  # decision values or probabilities, (m, columns)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, of shape (m,)."""
        return self.predicted == self.true[self.row]

    @property
    def accuracy(self) -> float:
        """Share of right predictions, every test row with the same weight."""
        n = len(self.ids)
        right = np.bincount(self.row, weights=self.correct, minlength=n)
        return float(np.mean(right / np.bincount(self.row, minlength=n).clip(1)))

    def only_splits(self, numbers: Sequence[int]) -> PredictionTable:
        """Return the predictions of some splits, numbered as before; test rows all stay."""
        kept = np.isin(self.split, numbers)
        scores = None if self.scores is None else self.scores[kept]
        row, split, predicted = self.row[kept], self.split[kept], self.predicted[kept]
        return PredictionTable(self.ids, self.true, row, split, predicted, scores)

    def save(self, path: Path) -> None:
        """Write an npz file whose bytes depend on nothing but its content."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        # numpy dates every member 1980, so the clock does not show.
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> PredictionTable:
        """Read predictions; nothing is unpickled."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                table = cls(**{name: arrays[name] for name in arrays.files})
            n, m = len(table.ids), len(table.row)
            shapes = {"ids": (n,), "true": (n,), "row": (m,), "split": (m,), "predicted": (m,)}
            for name, shape in shapes.items():
                values = getattr(table, name)
                if values.shape != shape or values.dtype.kind != ("U" if name == "ids" else "i"):
                    raise ValueError(f"{name} is {values.dtype} of shape {values.shape}")
            if m and not 0 <= table.row.min() <= table.row.max() < n:
                raise ValueError(f"row does not index {n} ids")
            if table.scores is not None and (table.scores.ndim != 2 or len(table.scores) != m):
                raise ValueError(f"scores is of shape {table.scores.shape}")
        except FileNotFoundError:
            raise ResultError("The predictions of a result are missing.", where=path) from None
        except Exception as error:  # NumPy raises whatever its parts raise on damaged files
            why = "no NumPy file" if "pickle" in str(error) else error
            raise ResultError(f"The predictions are damaged: {why}", where=path) from error
        return table


def as_results(given: Any) -> list[Result]:
    """Return what was given as results, one or several, as a list."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    results = list(given) if several else [given]
    if wrong := [each for each in results if not isinstance(each, Result)]:
        expected = "what evaluate returns, or Result.load(PATH)"
        got = ", ".join(type(each).__name__ for each in wrong)
        raise UsageError("Only results can be compared or reported.", expected=expected, got=got)
    if not results:
        expected = "a list of results, as evaluate() and finetune() return them"
        raise UsageError("The list of results is empty.", expected=expected)
    return results


def scan_results(folder: Path) -> tuple[list[Result], list[ResultError]]:
    """Return the results in a folder, sorted by name, and what is wrong with the others."""
    results: list[Result] = []
    errors: list[ResultError] = []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(Result.load(path))
        except ResultError as error:
            errors.append(error)
    return results, errors


def find_results(
    folder: Path,
    names: Sequence[str] | None = None,
    dataset: str | None = None,
    note: Callable[[str], object] = warnings.warn,
) -> list[Result]:
    """Return the results that a command means; a name that fits nothing is a ``ResultError``.

    ``names`` are paths or names of results in the folder; without them all are taken but those of
    featpipe 0.1, about which ``note`` gets one line.
    """
    results, errors = scan_results(folder) if not names else ([], [])
    results += [Result.load(locate_result(folder, name)) for name in names or ()]
    for error in errors:
        if not isinstance(error, OldResultError):
            raise error
    if old := [Path(error.details["where"]).name for error in errors]:
        note(
            f"ignored {len(old)} results written by featpipe 0.1: {', '.join(old)}; run their "
            f"commands again, then delete the files or move them out of {folder}"
        )
    wanted = short_name(dataset) if dataset else None
    found = [r for r in results if wanted in (None, r.dataset["name"])]
    made_by = Counter(r.extra.get("recipe", {}).get("name", "single commands") for r in found)
    if not names and len(made_by) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in sorted(made_by.items()))
        note(
            f"using all {len(found)} results in the workspace ({counts}); for one recipe alone: "
            "featpipe run RECIPE --only compare; for the latest of some: featpipe compare svm knn"
        )
    if not found:
        known = sorted({r.dataset["name"] for r in results})
        what = f"There is no result on {dataset!r}." if results else "There is no result yet."
        got, advice = f"results on {', '.join(known)}", "featpipe svm, or featpipe demo"
        raise ResultError(what, where=folder, got=got if known else None, next_step=advice)
    return found


def latest_result(folder: Path, method: str, dataset: str | None = None) -> Result | None:
    """Return the newest result of a method: on this dataset or, if there is none, on any."""
    here = f"{slug(short_name(dataset))}-" if dataset else ""
    named = folder.glob(f"*-{method}-*.json")
    paths = [(path.name.startswith(here), path.stat().st_mtime, path) for path in named]
    for *_, path in sorted(paths, reverse=True):
        with suppress(ResultError):
            if (result := Result.load(path)).method == method:
                return result
    return None


def latest_named(paths: Iterable[Path], name: str) -> Path | None:
    """Return the file of this name, or the newest whose name has these parts one after another."""
    part = f"-{name}-".lower()
    alike = [path for path in paths if part in f"-{path.stem}-".lower()]
    return max(alike, key=lambda path: (path.stem == name, path.stat().st_mtime_ns), default=None)


def locate_result(folder: Path, name: str) -> Path:
    """Return the file of a result, given its path or its name in a folder.

    A part of a name, such as ``"svm"`` or ``"resnet50-svm"``, means the latest result of it.
    """
    path = user_path(name)
    if path.suffix == ".json" and path.exists():
        return path
    if found := latest_named(folder.glob("*.json"), str(name)):
        return found
    known = [path.stem for path in sorted(folder.glob("*.json"))]
    parts = [*known, *dict.fromkeys(part for stem in known for part in stem.split("-"))]
    got = ", ".join(known) or "no result at all"
    advice = did_you_mean(str(name), parts) or "featpipe results"
    raise ResultError(f"There is no result {str(name)!r}.", where=folder, got=got, next_step=advice)
