"""Results: one JSON file per evaluated method, with its predictions (npz) beside it."""

from __future__ import annotations

import json
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import short_name, slug
from featpipe.errors import ResultError, did_you_mean
from featpipe.workspace import atomic_write, user_path

SCHEMA_VERSION = 2  # 1 is that of featpipe 0.1
_DAMAGED = (
    OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, AttributeError,
)  # fmt: skip


class OldResultError(ResultError):
    """A result that featpipe 0.1 wrote."""


@dataclass
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
    files: dict[str, str] = field(default_factory=dict)  # names of the files beside the JSON
    # What only some methods have: low-shot curve, search table, training history, label map.
    extra: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    path: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Short unique name: the file name without its ending."""
        return self.path.stem if self.path else self.key[:12]

    def save(self, path: Path) -> Path:
        """Write the JSON file, atomically; a number that is not finite is a ValueError."""
        content = {name: getattr(self, name) for name in _TYPES}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        self.path = path
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result.

        Raises
        ------
        ResultError
            If the file is missing, damaged, of another schema or (OldResultError) of featpipe 0.1.
        """
        path = Path(path)
        repair = f"delete it and run its command again: rm {str(path)!r}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResultError(
                "There is no such result.", where=path, next_step="featpipe results"
            ) from None
        except (OSError, ValueError) as error:
            raise ResultError(
                f"The result cannot be read: {error}", where=path, next_step=repair
            ) from error
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema == 1:
            command = content.get("command")
            raise OldResultError(
                "This result was written by featpipe 0.1, whose keys were made otherwise.",
                where=path,
                next_step=f"run its command again{f' ({command})' if command else ''}, then delete "
                "this file or move it elsewhere",
            )
        if schema != SCHEMA_VERSION:
            raise ResultError(
                "This is not a result of this version of featpipe.",
                where=path,
                expected=f"schema {SCHEMA_VERSION}",
                got=f"schema {schema}",
            )
        if wrong := _wrong_keys(content):
            raise ResultError(
                "The result is damaged: its keys, or their types, are not those of a result.",
                where=path,
                got=", ".join(sorted(wrong)),
                next_step=repair,
            )
        return cls(**content, path=path)

    def predictions(self) -> PredictionTable:
        """Read the predictions that are stored beside the JSON."""
        if self.path is None:
            raise ResultError("This result was not saved, so it has no predictions file.")
        name = self.files.get("predictions")
        if not name or Path(name).name != name:
            raise ResultError(
                "This result names no predictions file beside it.", where=self.path, got=name
            )
        return PredictionTable.load(self.path.with_name(name))


_TYPES = {name: get_origin(hint) or hint for name, hint in get_type_hints(Result).items()}
del _TYPES["path"]


def _wrong_keys(content: dict[str, Any]) -> set[str]:
    """Return the keys that are missing, unknown, or hold what no result holds there."""
    wrong = {
        name
        for name in content.keys() | _TYPES.keys()
        if not isinstance(content.get(name), _TYPES.get(name, ()))
    }
    if not wrong:
        accuracy = content["summary"].get("accuracy")
        measured = isinstance(accuracy, dict) and {"value", "low", "high"} <= accuracy.keys()
        wrong |= set() if measured and "metrics" in content["summary"] else {"summary"}
        wrong |= set() if isinstance(content["dataset"].get("name"), str) else {"dataset"}
    return wrong


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
        except _DAMAGED as error:
            why = "no NumPy file" if "pickle" in str(error) else error
            raise ResultError(f"The predictions are damaged: {why}", where=path) from error
        return table


def scan_results(folder: Path) -> tuple[list[Result], list[ResultError]]:
    """Return the results in a folder, sorted by name, and what is wrong with the others.

    Those of featpipe 0.1 are among the errors, as :class:`OldResultError`.
    """
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
    """Return the results that a command means.

    ``names`` are paths or names of results in the folder; without them all are taken but those of
    featpipe 0.1, about which ``note`` gets one line.

    Raises
    ------
    ResultError
        If a name fits nothing, a file is damaged, or no result is left.
    """
    results, errors = scan_results(folder) if not names else ([], [])
    results += [Result.load(_locate(folder, name)) for name in names or ()]
    for error in errors:
        if not isinstance(error, OldResultError):
            raise error
    if old := [Path(error.details["where"]).name for error in errors]:
        note(
            f"ignored {len(old)} results written by featpipe 0.1: {', '.join(old)}; run their "
            f"commands again, then delete the files or move them out of {folder}"
        )
    found = [r for r in results if dataset in (None, r.dataset["name"])]
    if not found:
        known = sorted({r.dataset["name"] for r in results})
        raise ResultError(
            "There is no result yet." if not results else f"There is no result on {dataset!r}.",
            where=folder,
            got=f"results on {', '.join(known)}" if known else None,
            next_step="featpipe svm, or featpipe demo",
        )
    return found


def latest_result(folder: Path, method: str, dataset: str | None = None) -> Result | None:
    """Return the newest result of a method: on this dataset or, if there is none, on any."""
    here = f"{slug(short_name(dataset))}-" if dataset else ""
    paths = [(p.name.startswith(here), p.stat().st_mtime, p) for p in folder.glob("*.json")]
    for *_, path in sorted(paths, reverse=True):
        if f"-{method}-" in path.name:
            with suppress(ResultError):
                result = Result.load(path)
                if result.method == method:
                    return result
    return None


def _locate(folder: Path, name: str) -> Path:
    path = user_path(name)
    if path.suffix == ".json" and path.exists():
        return path
    if (folder / f"{name}.json").exists():
        return folder / f"{name}.json"
    known = [path.stem for path in sorted(folder.glob("*.json"))]
    raise ResultError(
        f"There is no result {str(name)!r}.",
        where=folder,
        got=", ".join(known) or "no result at all",
        next_step=did_you_mean(str(name), known) or "featpipe results",
    )
