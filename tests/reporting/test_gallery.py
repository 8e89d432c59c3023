"""Galleries show where methods fail, and heat maps where a network looked."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featpipe.evaluation.result import Result
from featpipe.fingerprint import sealed_json
from featpipe.reporting.data import Group
from featpipe.reporting.gallery import always_wrong, as_seen, confused_pairs, disagreements
from featpipe.reporting.images import Images
from tests.reporting.conftest import CLASSES, Made, Page


@pytest.fixture(scope="module")
def shown(made: Made) -> tuple[Group, Images]:
    data = made.data()
    return data.groups[0], data.images(data.groups[0])


def test_confused_pairs_are_the_largest_cells(shown: tuple[Group, Images]) -> None:
    group, images = shown
    method = group.methods[-1]
    matrix = np.array(method.metrics["confusion"])
    np.fill_diagonal(matrix, 0)
    pairs = confused_pairs(method, images, 24)
    assert [pair["count"] for pair in pairs] == sorted(matrix.ravel(), reverse=True)[: len(pairs)]
    for pair in pairs:
        assert {(item.true, item.answer) for item in pair["shown"]} <= {
            (pair["true"], pair["answer"])
        }
        assert all(item.thumbnail for item in pair["shown"])


def test_what_nobody_gets_right(shown: tuple[Group, Images]) -> None:
    group, images = shown
    missed = always_wrong(group, images, 5)
    count, items = missed["count"], missed["shown"]
    assert missed["above"] == 0
    assert count == int((group.share_right == 0).all(axis=0).sum()) > 0
    assert len(items) == min(count, 5)
    n = len(group.methods)
    assert all(item.remark.endswith("methods agree") for item in items)
    votes = [n if "all" in item.remark else int(item.remark.split()[0]) for item in items]
    assert votes == sorted(votes, reverse=True)
    assert all(item.true != item.answer for item in items)
    others = always_wrong(group, images, 5, {items[0].id})
    assert (others["count"], others["above"]) == (count, 1)
    assert items[0].id not in {item.id for item in others["shown"]}


def test_disagreements_are_counted_on_both_sides(shown: tuple[Group, Images]) -> None:
    group, images = shown
    number = {method.title: rival for rival, method in enumerate(group.methods)}
    for part in disagreements(group, images, 8):
        rival = number[part["rival"]]
        best, other = group.share_right[0], group.share_right[rival]
        assert [side["count"] for side in part["sides"]] == [
            int(((best == 1) & (other == 0)).sum()),
            int(((best == 0) & (other == 1)).sum()),
        ]
        assert all(len(side["shown"]) <= 2 for side in part["sides"])


def test_a_gallery_of_no_images_is_left_out(made: Made, tmp_path: Path) -> None:
    page = Page(made.again(tmp_path / "r", gallery=0))
    assert "most confident first" not in page.text
    assert "Most confused" in page.text
    shown = [attrs["aria-label"] for tag, attrs in page.elements if attrs.get("class") == "thumb "]
    assert {str(label) for label in shown} == {f"An image of {name}" for name in CLASSES}


def test_errors_are_a_table(made: Made) -> None:
    errors = pd.read_csv(made.page.with_name("toy-tables") / "errors.csv")
    assert (errors["true"] != errors["answer"]).all()
    data = made.data()
    assert len(errors) == sum(len(method.wrong) for method in data.methods)


def explained(made: Made, folder: Path, pictures: dict[str, dict[str, bytes]]) -> Result:
    """Return a copy of the first result with explanations: layer → image id → picture."""
    path = made.results[0].path
    assert path is not None
    for name in ("svm.json", "svm.predictions.npz"):
        shutil.copy(path.with_name(name), folder)
    for layer, of_layer in pictures.items():
        place = folder / "svm.explained" / layer
        place.mkdir(parents=True)
        items = []
        for number, (image_id, picture) in enumerate(of_layer.items()):
            (place / f"{number}.png").write_bytes(picture)
            item = {"id": image_id, "file": f"{number}.png", "true": "cat", "predicted": "bird"}
            items.append({**item, "confidence": 0.9})
        content = {"layer": layer, "strength": 0.5, "method": "Grad-CAM", "items": items}
        (place / "explanation.json").write_text(sealed_json(content))
    return Result.load(folder / "svm.json")


def png(brightness: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), brightness, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_explanations_are_shown_layer_by_layer(made: Made, tmp_path: Path) -> None:
    table = made.results[0].predictions()
    wrong = [str(name) for name in table.ids[table.row[~table.correct][:2]]]
    first = {image_id: png(60 * number) for number, image_id in enumerate(wrong)}
    more = {image_id: png(60 * number + 40) for number, image_id in enumerate(wrong)}
    more["of another dataset"] = png(160)
    result = explained(made, tmp_path, {"layer3": first, "layer4": more})
    page = Page(made.again(tmp_path / "r", [result]))
    assert page.text.count("What SVM (one-vs-rest) looked at") == 1
    assert page.text.index("Grad-CAM at layer3, opacity 0.5, as stored") < page.text.index(
        "Grad-CAM at layer4"
    )
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.elements if tag == "svg"]
    assert {label for label in labels if "overlay" in label} == {
        f"Grad-CAM overlay of {image_id}" for image_id in wrong
    }
    plain = Page(made.again(tmp_path / "plain", [made.results[0]]))
    assert page.count("symbol") == plain.count("symbol") + 4


def test_a_picture_that_cannot_be_read_is_left_out(made: Made, tmp_path: Path) -> None:
    image_id = str(made.results[0].predictions().ids[0])
    result = explained(made, tmp_path, {"layer4": {image_id: b"no picture"}})
    page = Page(made.again(tmp_path / "r", [result]))
    assert "looked at" not in page.text


@pytest.mark.parametrize(
    ("prepared", "expected"),
    [
        ({"fit": "crop", "resize": 40, "crop": 20}, (20, 20, 20, 40)),
        ({"fit": "fill", "resize": 40, "crop": 20}, (40, 40, 10, 50)),
        ({"fit": "whole", "resize": 40, "crop": 20}, (60, 60, 0, 60)),
        ({"fit": "squash", "resize": 40, "crop": 20}, (30, 30, 15, 45)),
        ({}, (40, 40, 10, 50)),
    ],
)
def test_the_original_beside_a_heat_map_is_cropped_like_it(
    prepared: dict[str, Any], expected: tuple[int, ...]
) -> None:
    # 60 wide and 40 high; each column has its own brightness.
    image = np.repeat(np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))[..., None], 3, axis=2)
    method = SimpleNamespace(
        anchor="m", result=SimpleNamespace(extra={"network": {"preprocessing": prepared}})
    )
    kept: list[np.ndarray] = []
    sheet = SimpleNamespace(add=lambda key, pixels: kept.append(pixels))
    as_seen(method, "a", SimpleNamespace(read=lambda _: image, sheet=sheet))  # type: ignore[arg-type]
    width, height, left, right = expected
    assert kept[0].shape[:2] == (height, width)
    assert kept[0][0, 0, 0] / 4 == pytest.approx(left, abs=1.5)
    assert kept[0][0, -1, 0] / 4 == pytest.approx(right, abs=2)
