"""Where methods fail: confused classes, confident errors, heat maps, images nobody gets right."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import mode

from featpipe.files import open_regular
from featpipe.finetuning.explain import read_explanations
from featpipe.reporting.data import Group, Method, ReportData
from featpipe.reporting.images import GroupImages, Thumbnail, ThumbnailSheet
from featpipe.reporting.sections import SECTIONS, Content, Section, percent, render

_PAIRS = 6  # confused pairs shown of each method
_PER_PAIR = 6  # thumbnails of each
_RIVALS = 5  # methods that the best one is held against


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
            methods = [failures(method, images, data.sheet, limit) for method in group.methods]
            part: dict[str, Any] = {"group": group, "images": images, "methods": methods}
            above = shown_ids(methods[0])
            part["always_wrong"], part["above"] = always_wrong(group, images, limit, above)
            part["several_models"] = not all(method.answers_once for method in group.methods)
            part["disagreements"] = disagreements(group, images, limit)
            groups.append(part)

        def errors(method: Method) -> list[dict[str, Any]]:
            rows, sure = np.sort(method.wrong), method.confidence
            return [
                {
                    "id": method.table.ids[row],
                    "true": method.columns[method.table.true[row]],
                    "answer": method.columns[method.predicted[row]],
                    "confidence": None if sure is None else round(float(sure[row]), 6),
                }
                for row in rows
            ]

        html = render("failures.html.j2", groups=groups)
        return Content(html, tables={"errors": data.frame(errors)})


def failures(
    method: Method, images: GroupImages, sheet: ThumbnailSheet, limit: int
) -> dict[str, Any]:
    """Return the galleries of one method; an image is in one of them only."""
    row_of = {image_id: row for row, image_id in enumerate(method.table.ids.tolist())}
    explained = []
    for title, overlays in explanations(method, sheet):
        shown = []
        for key in list(overlays)[:limit]:
            seen = as_seen(method, key, images, sheet)
            item = _item(method, row_of[key], images)
            shown.append(replace(item, thumbnail=seen, overlay=overlays[key]))
        explained += [(title, shown)] if shown else []
    above = {item.id for _, shown in explained for item in shown}
    confused = confused_pairs(method, images, limit, above)
    already = above | {item.id for pair in confused for item in pair["shown"]}
    others = [row for row in method.wrong if str(method.table.ids[row]) not in already]
    return {
        "method": method,
        "explanations": explained,
        "confused": confused,
        "errors": [_item(method, row, images) for row in others[:limit]],
        "n_others": len(others),
    }


def shown_ids(failed: dict[str, Any]) -> set[str]:
    """Return the ids of the images in the galleries of one method."""
    lists = [shown for _, shown in failed["explanations"]]
    lists += [pair["shown"] for pair in failed["confused"]] + [failed["errors"]]
    return {item.id for items in lists for item in items}


def confused_pairs(
    method: Method, images: GroupImages, limit: int, above: Set[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the pairs of classes taken for each other most often, in one direction each.

    Images that are shown ``above`` are counted only.
    """
    matrix = np.array(method.metrics["confusion"])
    errors, wrong = matrix.copy(), method.wrong
    np.fill_diagonal(errors, 0)
    pairs = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]:
        true, answer = np.unravel_index(cell, errors.shape)
        if errors[true, answer]:
            alike = (method.table.true[wrong] == true) & (method.predicted[wrong] == answer)
            rows = [row for row in wrong[alike] if str(method.table.ids[row]) not in above]
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
    group: Group, images: GroupImages, limit: int, above: Set[str] = frozenset()
) -> tuple[tuple[int, list[GalleryItem]], int]:
    """Return how many images no model of any method gets right, some of them, and how many of all.

    First those on whose wrong class most methods agree; not those that are shown ``above``, which
    are counted.
    """
    rows = np.flatnonzero((group.share_right == 0).all(axis=0))
    answers, votes = mode(group.predicted[:, rows], axis=0)
    items, of = [], len(group.methods)
    order = np.argsort(-votes, kind="stable")
    new = [place for place in order if str(group.ids[rows[place]]) not in above]
    for place in new[:limit]:
        n, answer = votes[place], group.columns[answers[place]]
        agree = f"all {of} methods agree" if n == of else f"{n} of {of} methods agree"
        items.append(_group_item(group, rows[place], answer, images, agree))
    return (len(rows), items), len(rows) - len(new)


def disagreements(group: Group, images: GroupImages, limit: int) -> list[dict[str, Any]]:
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


def explanations(method: Method, sheet: ThumbnailSheet) -> list[tuple[str, dict[str, Thumbnail]]]:
    """Embed the heat maps of a result: title, and overlays by image id."""
    found, tested = [], set(method.table.ids.tolist())
    for one in read_explanations(method.result.path) if method.result.path else ():
        overlays = {}
        for item in one.items:
            try:
                with open_regular(one.folder / item.file) as stream, Image.open(stream) as picture:
                    pixels = np.array(picture.convert("RGB"))
            except (OSError, ValueError):
                continue
            if item.id in tested:
                key = f"{method.anchor}/{one.folder.name}/{item.id}"
                overlays[item.id] = sheet.add(key, pixels)
        found.append((f"{one.method} at {one.layer}, opacity {one.strength:g}", overlays))
    return found


def as_seen(
    method: Method, image_id: str, images: GroupImages, sheet: ThumbnailSheet
) -> Thumbnail | None:
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
    return sheet.add(f"{method.anchor}/seen/{image_id}", np.array(seen))


def _item(method: Method, row: int, images: GroupImages) -> GalleryItem:
    """Return a test image with what a method answered, and how confident it was."""
    image_id, remark = str(method.table.ids[row]), ""
    if method.confidence is not None:
        value = float(method.confidence[row])
        remark = f"{percent(value, 1)} %" if method.has_probabilities else f"margin {value:.3g}"
    true, answer = method.table.true[row], method.predicted[row]
    names = method.columns[true], method.columns[answer]
    return GalleryItem(image_id, *names, images.thumbnail(image_id), remark)


def _group_item(
    group: Group, row: int, answer: str, images: GroupImages, remark: str = ""
) -> GalleryItem:
    image_id, true = str(group.ids[row]), group.classes[group.true[row]]
    return GalleryItem(image_id, true, answer, images.thumbnail(image_id), remark)
