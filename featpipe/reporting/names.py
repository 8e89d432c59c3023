"""What a page calls datasets and classes: names that people chose, WordNet's for its ids."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from featpipe.datasets import split_spec
from featpipe.datasets.dataset import MOST_LIST_BYTES, SourceRequest
from featpipe.errors import DataError
from featpipe.evaluation.result import Result
from featpipe.files import read_regular
from featpipe.labelmap.mapping import SourceClasses

_NAMED = 5
FILE = "class_names.csv"  # in the folder of the images, or beside what holds them


def dataset_name(spec: str) -> str:
    """Return what people call a dataset: of a folder its own name, without the kind of dataset."""
    _, argument, kind = split_spec(spec)
    return kind.stem(argument) if kind else spec


def class_names(
    result: Result, data: Path | None, note: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """Return class → what the page calls it, unique; identities and keys know nothing of it.

    ``note`` is told of names for classes that do not exist.

    Raises
    ------
    DataError
        If there is a ``class_names.csv`` that cannot be read as one.
    """
    wordnet = SourceClasses.load("imagenet")
    known = dict(zip(wordnet.ids, wordnet.names, strict=True))
    run = result.stores[-1]["run"] if result.stores else {}
    if source := run.get("source"):
        _, argument, kind = split_spec(SourceRequest.from_dict(source).moved(data).dataset)
        if kind and (place := Path(argument)).is_absolute():
            files = [p for p in (place / FILE, place.parent / FILE) if p.is_file()]
            given = _read(files[0]) if files else {}
            if unknown := sorted(given.keys() - {*result.dataset["classes"]}):
                some = ", ".join(unknown[:_NAMED]) + " …" * (len(unknown) > _NAMED)
                note(f"{files[0]} names classes that the results do not have: {some}")
            known |= given
    called = {name: known.get(name, name) for name in result.dataset["classes"]}
    counts = Counter(called.values())
    return {name: f"{new} ({name})" if counts[new] > 1 else new for name, new in called.items()}


def _read(path: Path) -> dict[str, str]:
    expected = "a header class,name and a line for each class, in UTF-8"
    try:
        text = read_regular(path, MOST_LIST_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(), strict=True))
        return {row["class"]: row["name"] for row in rows if row["name"].strip()}
    except (OSError, ValueError, csv.Error, KeyError, AttributeError) as error:
        got = f"no column {error}" if isinstance(error, KeyError) else error
        what = "The names of the classes cannot be read."
        raise DataError(what, where=path, expected=expected, got=got) from error
