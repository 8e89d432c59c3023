"""Trained classifiers on the disk: they come back the same, and nothing foreign comes in."""

from __future__ import annotations

import numpy as np
import pytest
from skops import io as skops_io

from featpipe.errors import ResultError
from featpipe.evaluation.models import load_model
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluated, pair


@pytest.mark.parametrize("step", [Svm(), Logistic(), Knn(), Centroid()])
def test_a_saved_model_comes_back_and_predicts_the_same(tmp_path, step):
    train, test = pair(tmp_path)
    result = evaluated(step, tmp_path, train, test)
    model = load_model(tmp_path / "data" / "models" / result.files["model"])
    assert model.classes == train.classes
    assert model.backbone == train.manifest["backbone"]
    assert model.layer == "avgpool"
    again = model.estimator.predict(np.array(test.features()))
    np.testing.assert_array_equal(again, result.predictions().predicted)
    assert result.cost["model_bytes"] > 500


@pytest.fixture
def saved(tmp_path):
    train, test = pair(tmp_path)
    result = evaluated(Centroid(), tmp_path, train, test)
    return tmp_path / "data" / "models" / result.files["model"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_model_is_refused(saved, keep):
    content = saved.read_bytes()
    end = int(keep * len(content)) if isinstance(keep, float) else keep
    saved.write_bytes(content[:end])
    with pytest.raises(ResultError, match="cannot be read") as caught:
        load_model(saved)
    assert caught.value.details["where"] == str(saved)


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    path = tmp_path / "other.skops"
    skops_io.dump({"weights": np.zeros(3)}, path)
    with pytest.raises(ResultError, match="not a model of featpipe"):
        load_model(path)


def test_a_model_that_lacks_a_part_is_refused(tmp_path):
    path = tmp_path / "part.skops"
    skops_io.dump({"featpipe_model": 2, "classes": ["a"]}, path)
    with pytest.raises(ResultError, match="not a model of featpipe"):
        load_model(path)


def test_no_model_at_all(tmp_path):
    with pytest.raises(ResultError, match="no such model"):
        load_model(tmp_path / "none.skops")
