"""``featpipe init``: a commented recipe for the user's own images, whatever their layout."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

import numpy as np

from featpipe.backbones import backbone_name, weights_file
from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError, UsageError, nearest_path
from featpipe.steps import Context, Outcome
from featpipe.steps.recipe import A_NAME, is_name, parse_recipe
from featpipe.workspace import atomic_write, neutralise_cell

_TABLES = (".csv", ".npz")
_FEW = 2  # one image of a class cannot both train and test
_TEMPLATE = Template("""\
# $name: three methods on the frozen features of $model, one report.
#
#   featpipe run $file --dry-run     what it would do
#   featpipe run $file               do it; run it again to continue after a stop
#   featpipe run $file --limit 100   a quick look first, at 100 images of each split
#
# Found: $found
name: $name

steps:
  # Embed every image once. Other backbones: featpipe models
  - step: extract
    model: $model$weights
    dataset: $dataset
    # on-error: skip       # go on where an image cannot be read, and say which
    # classes: $classes    # only some of the classes
    # Images of one patient, video or place belong on one side of every split:
    # group-by: folder     # the folder an image is in; or "regex:patient_([0-9]+)" of its path

  # Each method chooses its one hyper-parameter on validation rows, never on test rows.
  # $protocol
  - step: svm
    grid: {c: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}

  - step: logistic
    grid: {c: [1e-4, 1e-3, 1e-2, 1e-1, 1]}

  - step: knn
    grid: {k: [1, 3, 5, 10, 20]}

  # A list makes one task per value, for example five seeds of the same method:
  # - {step: svm, name: svm-seeds, seed: [1, 2, 3, 4, 5]}

  # Leaks, duplicates, doubtful labels and odd images: data/audits, and a part of the report.
  - step: audit

  - step: compare

  - step: report           # reports/$name.html
    gallery: 24            # images in each gallery at most
""")


def write_recipe(
    name: str,
    data: Path | None,
    model: str,
    weights: str | None,
    context: Context,
    test: Path | None = None,
) -> Outcome:
    """Write ``NAME.yaml`` into the current folder.

    ``name`` may end in ``.yaml``. ``data`` is a folder of class folders (below train and test or
    not), a CSV, an npz, or a folder with such a CSV; ``None``: the path is ``name``. With ``test``,
    both are folders, and ``NAME.csv`` lists the images of both.
    """
    target, folder = _target(name, data)
    backbone_name(model)
    if weights is not None:
        weights_file(model, weights)
    if test is not None:
        folder = _join(target.with_suffix(".csv"), folder, test, context)
    dataset = guess_layout(folder)
    sources = SourceRequest(dataset).open_all(None, context, download=False)
    first, classes = sources[0], sources[0].classes
    _need_classes(classes, folder)
    found = f"{len(classes)} classes, {len(first)} images, no test split"
    protocol = (
        "There is no test split, so a fifth of the images is held out; five-fold\n"
        "  # cross-validation instead: featpipe run … --set protocol=kfold:5"
    )
    if len(sources) > 1:
        parts = ", ".join(f"{len(source)} {source.split}" for source in sources)
        found = f"{len(classes)} classes, images: {parts}"
        protocol = f"Trained on {first.split!r}, tested once on {sources[1].split!r}."
    text = _TEMPLATE.substitute(
        name=target.stem,
        file=target,
        model=model,
        weights=f"\n    weights: {_quoted(weights)}" if weights else "",
        dataset=_quoted(dataset),
        found=found,
        classes=_quoted(",".join(classes[:2])),
        protocol=protocol,
    )
    parse_recipe(text, str(target), target.stem)
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    lines = [found, f"→ {target}", f"next: featpipe run {target}", *_advice(first, dataset, target)]
    facts = {"dataset": dataset, "splits": [source.split for source in sources]}
    return Outcome("done", "\n".join(lines), (target,), facts)


def _need_classes(classes: Sequence[str], folder: Path) -> None:
    """Refuse images without at least two classes."""
    if len(classes) < 2:
        found, got = "one class" if classes else "no labels", ", ".join(classes) or None
        what = f"The images have {found}, so there is nothing to classify."
        expected = "a folder of images for each class, not one of them"
        advice = f"for their embeddings alone: featpipe embed {folder} -o vectors.csv"
        raise DataError(what, where=folder, got=got, expected=expected, next_step=advice)


def _advice(source: ImageSource, dataset: str, recipe: Path) -> Iterator[str]:
    """Name classes with too few images, and say how to keep images together in a split."""
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
    if rare := [source.classes[label] for label in np.flatnonzero(counts < _FEW)]:
        yield f"fewer than {_FEW} images, too few to train and test: {', '.join(rare)}"
    kind, _, table = dataset.partition(":")
    if source.groups or kind not in ("folder", "csv"):
        return
    seen, how = "", f"add a column 'group' to {table}"
    if kind == "folder":
        nested = len({os.path.dirname(name) for name in source.ids}) > len(source.classes)
        seen, how = "the classes have subfolders: " * nested, f"set group-by in {recipe}"
    yield (
        f"{seen}if several images show the same patient, video or place, keep them on the same "
        f"side of every split: {how}"
    )


def _target(name: str, data: Path | None) -> tuple[Path, Path]:
    """Return the file of the recipe, and where its images are."""
    if data is None and Path(name).suffix.lower() in _TABLES and Path(name).is_file():
        name, data = Path(name).stem, Path(name)
    elif data is None and Path(name).is_dir():  # as the shell completes it, with a slash at the end
        name, data = Path(name).resolve().name, Path(name)
    target = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    _refuse_existing("recipe", target, f"use it (featpipe run {target}), or choose another name")
    if not is_name(target.stem):
        words = re.sub(r"[^A-Za-z0-9]+", "-", target.stem).strip("-").lower() or "NAME"
        hint = f"featpipe init {words} --data {shlex.quote(str(data or target.stem))}"
        raise UsageError(f"{target.stem!r} cannot be a name.", expected=A_NAME, next_step=hint)
    folder = data or target.with_suffix("")
    if data is None and not folder.is_dir():
        what = f"There is no folder or table of images called {str(folder)!r}."
        near = nearest_path(folder) or "correct the name"
        raise UsageError(what, next_step=f"{near}, or featpipe init {target.stem} --data FOLDER")
    return target, folder


def _refuse_existing(kind: str, path: Path, hint: str) -> None:
    if path.exists():
        raise UsageError(f"The {kind} exists already.", where=path, next_step=hint)


def guess_layout(data: Path) -> str:
    """Return how a folder or table of images is named for ``--dataset``."""
    if not data.exists():
        hint = nearest_path(data) or "correct --data"
        raise DataError("There are no such images.", where=data, next_step=hint)
    if data.is_file():
        if data.suffix.lower() not in _TABLES:
            expected = "a folder, a .csv or a .npz"
            raise DataError("This file lists no images.", where=data, expected=expected)
        return f"{data.suffix.lower()[1:]}:{data}"
    tables = []
    for path in sorted(data.glob("*.csv")):
        with (
            suppress(OSError, UnicodeDecodeError, csv.Error),
            path.open(encoding="utf-8-sig", newline="") as stream,
        ):
            if {"path", "label"} <= set(next(csv.reader(stream), [])):
                tables.append(path)
    if len(tables) > 1:
        what, got = "The folder holds several tables of images.", [t.name for t in tables]
        hint = f"say which: --data {tables[0]}"
        raise DataError(what, where=data, got=", ".join(got), next_step=hint)
    return f"csv:{tables[0]}" if tables else f"folder:{data}"


def _join(table: Path, train: Path, test: Path, context: Context) -> Path:
    """Write a CSV of the images in two folders: those that train, and those that test."""
    _refuse_existing("table", table, "choose another name, or remove it")
    rows, known = [("path", "label", "split")], None
    for split, folder in (("train", train), ("test", test)):
        request = SourceRequest(f"folder:{folder}")
        (source,) = request.open_all(("all",), context, download=False)
        known = known or source.classes
        _need_classes(known, folder)
        if unknown := sorted(set(source.classes) - set(known)):
            what = "The test images have classes that the training images do not have."
            expected, got = f"some of {', '.join(known)}", ", ".join(unknown)
            raise DataError(what, where=folder, expected=expected, got=got)
        for image, label in zip(source.ids, source.labels, strict=True):
            path = os.path.relpath(folder / image, table.parent)
            rows.append((path, source.classes[label] if label >= 0 else "", split))
    with atomic_write(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([neutralise_cell(cell) for cell in row] for row in rows)
    return table


def _quoted(text: str) -> str:
    """Return a text as YAML, quoted only where that is needed."""
    plain = all(char.isalnum() or char in "/._-:~+" for char in text) and ": " not in text
    return text if plain and not text.startswith(("-", "~")) else json.dumps(text)
