"""Names are known without importing what they stand for, and a wrong one is explained."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.backbones import MODELS
from featpipe.datasets import DATASETS
from featpipe.errors import UnknownNameError
from featpipe.registry import OldRegistry, did_you_mean, summary_of


@pytest.fixture
def shapes() -> OldRegistry:
    registry = OldRegistry("shape")
    registry.add("ordered", "collections:OrderedDict", "a dict that keeps order", ["od"])
    registry.add("broken", "no_such_module:thing", "never imported")
    return registry


def test_nothing_is_imported_before_it_is_loaded(shapes: OldRegistry) -> None:
    assert shapes.names() == ["ordered", "broken"]
    assert "broken" in shapes
    assert shapes.entry("broken").summary == "never imported"
    with pytest.raises(ImportError):
        shapes.load("broken")


def test_aliases_mean_the_same(shapes: OldRegistry) -> None:
    assert shapes.load("od") is shapes.load("ordered")
    assert "od" in shapes
    assert len(shapes) == len(list(shapes)) == 2


def test_an_unknown_name_names_kind_nearest_and_all(shapes: OldRegistry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes.entry("orderd")
    text = str(caught.value)
    assert "There is no shape named 'orderd'." in text
    assert "did you mean 'ordered'?" in text
    assert "expected: ordered, broken" in text


@given(st.text(string.printable, max_size=30))
def test_any_other_name_is_refused(name: str) -> None:
    if name not in MODELS:
        with pytest.raises(UnknownNameError):
            MODELS.entry(name)


def test_every_registered_target_exists() -> None:
    for entry in MODELS:
        assert entry.load() is not None, entry
        assert entry.summary
    for name in DATASETS.names():
        assert DATASETS.get(name).name == name
        assert summary_of(DATASETS.get(name))


def test_nothing_near_gives_no_hint() -> None:
    assert did_you_mean("xyzzy", ["resnet50"]) == ""
