"""Where methods fail: confused pairs, confident errors, images nobody gets right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from featpipe.report.formats import percent
from featpipe.report.images import Pictures, Thumbnail, read_overlay
from featpipe.report.material import Group, Method

_PAIRS = 6  # confused pairs shown of each method
_PER_PAIR = 4  # thumbnails of each
_RIVALS = 5  # methods that the best one is held against


@dataclass(frozen=True)
class Shot:
    """One image in a gallery.

    Parameters
    ----------
    id, true, answer : str
    sure : str
        Confidence in words of the method.
    thumbnail, overlay : Thumbnail or None
    """

    id: str
    true: str
    answer: str
    sure: str = ""
    thumbnail: Thumbnail | None = None
    overlay: Thumbnail | None = None


@dataclass(frozen=True)
class Confused:
    """A pair of classes that a method takes for each other, in one direction."""

    true: str
    answer: str
    images: int
    share: str
    shots: list[Shot]


def confused_pairs(method: Method, pictures: Pictures) -> list[Confused]:
    """Return the off-diagonal cells with most images, the largest first."""
    matrix = np.array(method.metrics["confusion"])
    total = matrix.sum(axis=1)
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    cells = [divmod(int(cell), errors.shape[1]) for cell in order]
    wrong = _wrong_rows(method)
    found = []
    for true, answer in cells:
        if not errors[true, answer]:
            continue
        rows = wrong[
            (method.table.true[wrong] == true) & (method.answers.predicted[wrong] == answer)
        ]
        found.append(
            Confused(
                method.columns[true],
                method.columns[answer],
                int(errors[true, answer]),
                percent(errors[true, answer] / total[true], 1),
                [_shot(method, int(row), pictures) for row in rows[:_PER_PAIR]],
            )
        )
    return found


def errors_by_confidence(method: Method, pictures: Pictures, limit: int) -> list[Shot]:
    """Return misclassified images, the surest errors first."""
    overlays = _overlays(method, pictures)
    shots = []
    for row in islice(_wrong_rows(method), limit):
        shots.append(_shot(method, int(row), pictures, overlays))
    return shots


def explained(method: Method, pictures: Pictures, limit: int) -> list[Shot]:
    """Return images with a stored Grad-CAM overlay, in the order of the result."""
    overlays = _overlays(method, pictures)
    places = {str(image_id): row for row, image_id in enumerate(method.table.ids)}
    known = [image_id for image_id in overlays if image_id in places]
    return [_shot(method, places[name], pictures, overlays) for name in known[:limit]]


def always_wrong(group: Group, pictures: Pictures, limit: int) -> tuple[int, list[Shot]]:
    """Return how many images no model of any method gets right, and some of them.

    First those on whose wrong class most methods agree.
    """
    rows = np.flatnonzero((group.share_right == 0).all(axis=0))
    votes = [np.bincount(group.predicted[:, row]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-int(votes[i].max()), int(rows[i])))
    columns = max((method.columns for method in group.methods), key=len)
    shots = []
    for i in order[:limit]:
        row, answer = int(rows[i]), int(votes[i].argmax())
        agree = f"{int(votes[i].max())} of {len(group.methods)} say so"
        shots.append(_plain_shot(group, row, columns[answer], agree, pictures))
    return len(rows), shots


def disagreements(group: Group, pictures: Pictures, limit: int) -> list[dict[str, Any]]:
    """Images that the best method gets right and another one wrong, and the reverse."""
    best, parts = group.methods[0], []
    each = max(1, limit // 4) if limit else 0
    for number, rival in enumerate(group.methods[1 : _RIVALS + 1], start=1):
        sides = []
        for winner, loser, name in ((0, number, best.title), (number, 0, rival.title)):
            rows = np.flatnonzero(
                (group.share_right[winner] == 1) & (group.share_right[loser] == 0)
            )
            answers = group.predicted[loser]
            columns = group.methods[loser].columns
            shots = [
                _plain_shot(group, int(row), columns[answers[row]], "", pictures)
                for row in rows[:each]
            ]
            sides.append({"winner": name, "count": len(rows), "shots": shots})
        parts.append({"rival": rival.title, "sides": sides})
    return parts


def _wrong_rows(method: Method) -> np.ndarray[Any, Any]:
    """Rows of the table that the first answer gets wrong, the surest first."""
    wrong = np.flatnonzero(method.answers.predicted != method.table.true)
    if method.confidence is None:
        return wrong
    return wrong[np.argsort(-method.confidence[wrong], kind="stable")]


def _shot(
    method: Method,
    row: int,
    pictures: Pictures,
    overlays: dict[str, Thumbnail] | None = None,
) -> Shot:
    image_id = str(method.table.ids[row])
    return Shot(
        image_id,
        method.columns[method.table.true[row]],
        method.columns[method.answers.predicted[row]],
        _sure(method, row),
        pictures.thumbnail(image_id),
        (overlays or {}).get(image_id),
    )


def _plain_shot(group: Group, row: int, answer: str, sure: str, pictures: Pictures) -> Shot:
    image_id = str(group.ids[row])
    true = group.classes[group.true[row]]
    return Shot(image_id, true, answer, sure, pictures.thumbnail(image_id))


def _sure(method: Method, row: int) -> str:
    if method.confidence is None:
        return ""
    value = float(method.confidence[row])
    return f"{percent(value, 1)} %" if method.probabilities else f"margin {value:.3g}"


def _overlays(method: Method, pictures: Pictures) -> dict[str, Thumbnail]:
    """Embed the stored Grad-CAM overlays of a method, by image id."""
    entries: Iterable[dict[str, str]] = method.result.extra.get("explanations") or []
    path = method.result.path
    if path is None:
        return {}
    found = {}
    for entry in entries:
        image = read_overlay(path.parent / entry["file"])
        if image is not None:
            key = f"{method.anchor}/overlay/{entry['id']}"
            found[str(entry["id"])] = pictures.sheet.add(key, image)
    return found
