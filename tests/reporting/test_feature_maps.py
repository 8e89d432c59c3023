"""The map of the features: the same picture every time, neighbours that are near."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.reporting.data import ReportData
from featpipe.reporting.feature_maps import FeatureMaps, nearest, project, sprite
from featpipe.reporting.sections import Chart, Missing
from featpipe.workspace import IMAGE_LAYER
from tests.reporting.conftest import Made, Page, changed


def clusters(n: int = 60, dims: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return (rng.normal(size=(3, dims))[labels] * 4 + rng.normal(size=(n, dims))).astype(
        np.float32
    ), labels


def test_the_map_is_reproducible_and_seeded() -> None:
    X, _ = clusters()
    first, share = project(X, seed=3)
    again, _ = project(X, seed=3)
    for name, plane in first.items():
        assert plane.shape == (60, 2)
        np.testing.assert_array_equal(plane, again[name])
    assert 0 < share <= 1


def test_neighbours_are_of_the_same_cluster() -> None:
    X, labels = clusters()
    near = np.array(nearest(X, 4))
    assert (labels[near] == labels[:, None]).mean() > 0.9


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_nobody_is_their_own_neighbour(n: int, dims: int, seed: int) -> None:
    X = np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)
    for row, others in enumerate(nearest(X)):
        assert row not in others
        assert len(set(others)) == len(others) == min(6, n - 1)


@pytest.mark.parametrize("shape", [(6, 1), (6, 2), (6, 200)])
def test_odd_shapes_have_a_map(shape: tuple[int, int]) -> None:
    views, _ = project(np.random.default_rng(0).normal(size=shape).astype(np.float32), seed=0)
    assert all(np.isfinite(plane).all() for plane in views.values())


def test_equal_features_do_not_break_the_map() -> None:
    views, share = project(np.ones((8, 4), dtype=np.float32), seed=0)
    assert all(np.isfinite(plane).all() for plane in views.values())
    assert share == 0


def test_a_sprite_takes_missing_tiny_and_odd_images() -> None:
    images = [None, np.zeros((8, 8, 3), np.uint8), np.zeros((90, 30, 3), np.uint8)]
    assert sprite(images, 3).startswith("data:image/webp;base64,")


def figures(data: ReportData) -> list[Chart | Missing]:
    return FeatureMaps().maps(data)


def test_features_that_all_methods_share_are_drawn_once(made: Made) -> None:
    (chart,) = figures(made.data())
    assert isinstance(chart, Chart)
    assert chart.title == "toynet avgpool"
    spec = chart.spec
    assert len(spec["ids"]) == len(spec["true"]) == len(spec["neighbours"]) == 200
    assert len(spec["methods"]) == len(made.results)
    assert all(0 <= value <= 1000 for view in spec["views"] for value in view["xy"])


def test_why_there_is_no_map_is_said(made: Made) -> None:
    for result, why in (
        (changed(made, path="gone.h5"), "deleted or moved"),
        (changed(made, fingerprint="0" * 64), "replaced by one of other features"),
    ):
        (part,) = figures(made.data([result]))
        assert isinstance(part, Missing)
        assert why in part.reason


def test_without_features_there_is_no_section(made: Made, tmp_path: Path) -> None:
    for result in (
        changed(made, layer=IMAGE_LAYER),  # the network was trained as a whole
        replace(made.results[0], stores=[]),
    ):
        assert figures(made.data([result])) == []
    assert "What the features look like" not in Page(made.again(tmp_path / "r", [result])).text
