"""The Python API: every name is there, and the functions do what the commands do."""

from __future__ import annotations

import pytest

from featpipe import api
from featpipe.errors import UnknownNameError
from tests.stores import content, sealed


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_is_there(name):
    assert getattr(api, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrct'"):
        _ = api.extrct


def test_methods_are_evaluated_compared_and_reported(tmp_path):
    train = sealed(tmp_path / "a.h5")
    test = sealed(tmp_path / "b.h5", content(30, split="test"), seed=1)
    knn = api.evaluate("knn", train, test, workspace=tmp_path, k=(1, 3))
    mean = api.evaluate("centroid", train, test, workspace=tmp_path)
    table = api.compare([knn, mean]).table()
    assert set(table["name"]) == {knn.name, mean.name}
    page = api.report([knn, mean], tmp_path / "page", workspace=tmp_path, title="Two methods")
    assert "Two methods" in page.read_text()


def test_a_method_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        api.evaluate("smv", sealed(tmp_path / "a.h5"))
    assert caught.value.details["next"] == "did you mean 'svm'?"
