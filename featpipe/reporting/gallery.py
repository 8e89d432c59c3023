"""Where methods fail: confused classes, confident errors, heat maps, images nobody gets right."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import mode

from featpipe.files import open_regular
from featpipe.finetuning.explain import read_explanations
from featpipe.reporting.data import Group, Method, ReportData
from featpipe.reporting.images import Images, Thumbnail
from featpipe.reporting.sections import SECTIONS, Content, Section, percent, render

_PAIRS = 6  # confused pairs shown of each method
_PER_PAIR = 6  # thumbnails of each
_RIVALS = 5  # methods that the best one is compared with


@dataclass(frozen=True)
class GalleryItem:
    """One image in a gallery, with the overlay of a heat map where there is one."""

    id: str
    true: str
    answer: str
    thumbnail: Thumbnail | None
    remark: str = ""
    overlay: Thumbnail | None = None


@SECTIONS.register
class Failures(Section):
    """Which images are misclassified, and as what."""

    name = "failures"
    title = "Where it fails"

    def content(self, data: ReportData) -> Content:
        """Return galleries of each method, and of the methods of a group together."""
        limit, groups = data.report.gallery, []
        for group in data.groups:
            images = data.images(group)
            methods = [failures(method, images, limit) for method in group.methods]
            part: dict[str, Any] = {"group": group, "images": images, "methods": methods}
            part["several_models"] = not all(method.answers_once for method in group.methods)
            part["always_wrong"] = always_wrong(group, images, limit, methods[0]["ids"])
            part["disagreements"] = disagreements(group, images, limit)
            groups.append(part)

        def errors(method: Method) -> Iterator[dict[str, Any]]:
            sure = method.confidence
            for row in np.sort(method.wrong):
                image_id, true, answer = _answer(method, row)
                confidence = None if sure is None else round(float(sure[row]), 6)
                yield {"id": image_id, "true": true, "answer": answer, "confidence": confidence}

        html = render("failures.html.j2", groups=groups)
        return Content(html, tables={"errors": data.frame(errors)})


def failures(method: Method, images: Images, limit: int) -> dict[str, Any]:
    """Return the galleries of one method, and their ``ids``; an image is in one of them only."""
    explained = explanations(method, images, limit)
    above = {item.id for _, shown in explained for item in shown}
    confused = confused_pairs(method, images, limit, above)
    above |= {item.id for pair in confused for item in pair["shown"]}
    others = [row for row in method.wrong if method.table.ids[row] not in above]
    errors = [_item(method, row, images) for row in others[:limit]]
    return {
        "method": method,
        "explanations": explained,
        "confused": confused,
        "errors": errors,
        "n_others": len(others),
        "ids": above | {item.id for item in errors},
    }


def confused_pairs(
    method: Method, images: Images, limit: int, above: Set[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the pairs of classes taken for each other most often, in one direction each.

    Images that are shown ``above`` are only counted.
    """
    matrix = np.array(method.metrics["confusion"])
    errors, wrong = matrix.copy(), method.wrong
    np.fill_diagonal(errors, 0)
    pairs = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]:
        true, answer = np.unravel_index(cell, errors.shape)
        if errors[true, answer]:
            alike = (method.table.true[wrong] == true) & (method.predicted[wrong] == answer)
            rows = [row for row in wrong[alike] if method.table.ids[row] not in above]
            pairs.append(
                {
                    "true": method.columns[true],
                    "answer": method.columns[answer],
                    "count": errors[true, answer],
                    "share": errors[true, answer] / matrix[true].sum(),
                    "above": int(alike.sum()) - len(rows),
                    "shown": [_item(method, row, images) for row in rows[: min(_PER_PAIR, limit)]],
                }
            )
    return pairs


def always_wrong(
    group: Group, images: Images, limit: int, above: Set[str] = frozenset()
) -> dict[str, Any]:
    """Return the ``count`` of images that no model of any method gets right, and some to be shown.

    First those on whose wrong class most methods agree; not those that are shown ``above``, which
    are counted.
    """
    rows = np.flatnonzero((group.share_right == 0).all(axis=0))
    answers, votes = mode(group.predicted[:, rows], axis=0)
    items, of = [], len(group.methods)
    order = np.argsort(-votes, kind="stable")
    new = [place for place in order if group.ids[rows[place]] not in above]
    for place in new[:limit]:
        n, answer = votes[place], group.columns[answers[place]]
        agree = f"all {of} methods agree" if n == of else f"{n} of {of} methods agree"
        items.append(_group_item(group, rows[place], answer, images, agree))
    return {"count": len(rows), "above": len(rows) - len(new), "shown": items}


def disagreements(group: Group, images: Images, limit: int) -> list[dict[str, Any]]:
    """Return images that the best method gets right and another one wrong, and the reverse."""
    each = max(1, limit // 4) if limit else 0
    right, wrong = group.share_right == 1, group.share_right == 0
    parts = []
    for rival, method in enumerate(group.methods[1 : _RIVALS + 1], start=1):
        sides = []
        for winner, loser in ((0, rival), (rival, 0)):
            rows = np.flatnonzero(right[winner] & wrong[loser])
            columns, predicted = group.methods[loser].columns, group.predicted[loser]
            shown = [_group_item(group, r, columns[predicted[r]], images) for r in rows[:each]]
            title = group.methods[winner].title
            sides.append({"winner": title, "count": len(rows), "shown": shown})
        if any(side["count"] for side in sides):
            parts.append({"rival": method.title, "sides": sides})
    return parts


def explanations(method: Method, images: Images, limit: int) -> list[tuple[str, list[GalleryItem]]]:
    """Return the heat maps that are stored beside a result: title, and images with overlays."""
    row_of = {image_id: row for row, image_id in enumerate(method.table.ids.tolist())}
    found = []
    for one in read_explanations(method.result.path) if method.result.path else ():
        shown: dict[str, GalleryItem] = {}
        for item in one.items:
            if item.id not in row_of or len(shown) == limit:
                continue
            try:
                with open_regular(one.folder / item.file) as stream:
                    pixels = np.array(Image.open(stream).convert("RGB"))
            except (OSError, ValueError):
                continue
            overlay = images.sheet.add(f"{method.anchor}/{one.folder.name}/{item.id}", pixels)
            plain, seen = _item(method, row_of[item.id], images), as_seen(method, item.id, images)
            shown[item.id] = replace(plain, thumbnail=seen, overlay=overlay)
        if shown:
            title = f"{one.method} at {one.layer}, opacity {one.strength:g}"
            found.append((title, [*shown.values()]))
    return found


def as_seen(method: Method, image_id: str, images: Images) -> Thumbnail | None:
    """Return the part of a test image that the network saw, in its proportions."""
    image = images.read(image_id)
    if image is None:
        return None
    prepared = method.result.extra.get("network", {}).get("preprocessing", {})
    fit, (height, width) = prepared.get("fit"), image.shape[:2]
    share = 1 if fit in ("whole", "fill") else prepared.get("crop", 1) / prepared.get("resize", 1)
    if width == height and share == 1:
        return images.thumbnail(image_id)
    size = (width, height) if fit in ("whole", "squash") else (min(width, height),) * 2
    left, top = (width - share * size[0]) / 2, (height - share * size[1]) / 2
    side, box = max(1, round(share * max(size))), (left, top, width - left, height - top)
    seen = Image.fromarray(image).resize((side, side), box=box)
    return images.sheet.add(f"{method.anchor}/seen/{image_id}", np.array(seen))


def _answer(method: Method, row: int) -> tuple[str, str, str]:
    """Return the id of a test image, its class and what a method answered."""
    true, answer = method.table.true[row], method.predicted[row]
    return str(method.table.ids[row]), method.columns[true], method.columns[answer]


def _item(method: Method, row: int, images: Images) -> GalleryItem:
    """Return a test image with what a method answered, and how confident it was."""
    (image_id, true, answer), remark = _answer(method, row), ""
    if method.confidence is not None:
        value = float(method.confidence[row])
        remark = f"{percent(value, 1)} %" if method.has_probabilities else f"margin {value:.3g}"
    return GalleryItem(image_id, true, answer, images.thumbnail(image_id), remark)


def _group_item(
    group: Group, row: int, answer: str, images: Images, remark: str = ""
) -> GalleryItem:
    image_id, true = str(group.ids[row]), group.classes[group.true[row]]
    return GalleryItem(image_id, true, answer, images.thumbnail(image_id), remark)
