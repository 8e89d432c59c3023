"""Trained classifiers on the disk: they come back the same, and nothing foreign comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops_io
from skops.io.exceptions import UntrustedTypesFoundException

from featpipe.api import evaluate
from featpipe.errors import ResultError
from featpipe.evaluation.models import load_model, load_skops, save_model, untrusted_types
from featpipe.probes.estimators import NearestMean
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluated, pair

ROWS, LABELS = make_blobs(60, 4, centers=3, random_state=0)


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


# -- files of skops: nothing in them is foreign or misleading --------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "estimator",
    [
        NearestMean(),
        SVC(),
        RandomForestClassifier(3, random_state=0),
        GradientBoostingClassifier(n_estimators=2, random_state=0),
        MLPClassifier(5, solver="adam", max_iter=3, random_state=0),
        MLPClassifier(5, solver="sgd", max_iter=3, random_state=0),
        make_pipeline(PolynomialFeatures(2), DecisionTreeClassifier(random_state=0)),
        KNeighborsClassifier(algorithm="brute", metric="manhattan"),
        BaggingClassifier(make_pipeline(PolynomialFeatures(2), DecisionTreeClassifier())),
        GradientBoostingClassifier(
            n_estimators=2,
            init=make_pipeline(PolynomialFeatures(2), DecisionTreeClassifier()),
        ),
        VotingClassifier(
            [
                ("boosting", GradientBoostingClassifier(n_estimators=2)),
                ("svm", SVC()),
                ("neighbours", KNeighborsClassifier(algorithm="brute", metric="manhattan")),
                ("forest", RandomForestClassifier(3)),
            ]
        ),
        OneVsRestClassifier(GradientBoostingClassifier(n_estimators=2)),
        StackingClassifier(
            [("centroid", NearestCentroid()), ("svm", SVC())], DecisionTreeClassifier(), cv=2
        ),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_what_is_kept_comes_back_and_answers_the_same(tmp_path, estimator):
    fitted = estimator.fit(ROWS, LABELS)
    path = tmp_path / "a.skops"
    skops_io.dump({"estimator": fitted, "classes": ["ant", "bee", "cat"]}, path)
    assert untrusted_types(path) == []
    content = load_skops(path)
    assert content["classes"] == ["ant", "bee", "cat"]
    assert type(content["estimator"]) is type(estimator)
    np.testing.assert_array_equal(content["estimator"].predict(ROWS), fitted.predict(ROWS))


def test_types_that_are_not_trusted_are_named_and_not_loaded(tmp_path):
    path = tmp_path / "a.skops"
    skops_io.dump(HistGradientBoostingClassifier(max_iter=2).fit(ROWS, LABELS), path)
    assert any("TreePredictor" in name for name in untrusted_types(path))
    with pytest.raises(UntrustedTypesFoundException, match="TreePredictor"):
        load_skops(path)


class Foreign:
    """Not a type that anybody vouches for."""


def test_foreign_types_are_refused_before_they_are_made(tmp_path):
    path = tmp_path / "foreign.skops"
    skops_io.dump({"featpipe_model": 2, "estimator": Foreign()}, path)
    with pytest.raises(ResultError, match="not trusted") as caught:
        load_model(path)
    assert "Foreign" in caught.value.details["got"]


@pytest.mark.parametrize("harm", ["children_left", "children_right", "feature"])
def test_a_tree_whose_nodes_lead_nowhere_is_refused(tmp_path, harm):
    result = evaluate(DecisionTreeClassifier(), *pair(tmp_path), workspace=tmp_path)
    path = tmp_path / "data" / "models" / result.files["model"]
    model = load_model(path)
    getattr(model.estimator[-1].tree_, harm)[0] = 10**9
    save_model(path.with_suffix(""), model.estimator, result)
    with pytest.raises(ResultError, match="decision tree is damaged"):
        load_model(path)


def tree_of_many_features() -> Any:
    """A tree that asks for a feature far beyond those it is given."""
    tree = DecisionTreeClassifier().fit(ROWS, LABELS)
    tree.tree_.feature[0] = 10**9
    return tree


def voting(estimators: Any) -> Any:
    made = VotingClassifier([("tree", DecisionTreeClassifier())]).fit(ROWS, LABELS)
    made.estimators_ = estimators
    return made


def changed(fitted: Any, **attributes: Any) -> Any:
    fitted.fit(ROWS, LABELS)
    vars(fitted).update(attributes)
    return fitted


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (voting({tree_of_many_features()}), "tree is damaged"),
        (voting({"a": [(tree_of_many_features(),)]}), "tree is damaged"),
        (voting(np.array([[tree_of_many_features()]], dtype=object)), "tree is damaged"),
        (changed(DecisionTreeClassifier(), _validate_X_predict=np.add), "is replaced"),
        (changed(SVC(), predict=np.sign), "is replaced"),
        (changed(SVC(), _dual_coef_=np.zeros((2, 1))), "fit together"),
        (changed(SVC(), _n_support=np.array([9, 9, 9], np.int32)), "fit together"),
        (
            changed(
                KNeighborsClassifier(algorithm="brute", metric="manhattan"), _y=np.full(60, 10**9)
            ),
            "fit together",
        ),
        (
            changed(
                KNeighborsClassifier(algorithm="brute", metric="manhattan"), _y=np.zeros(3, int)
            ),
            "fit together",
        ),
        (changed(GradientBoostingClassifier(n_estimators=2), n_trees_per_iteration_=1), "together"),
        (changed(GradientBoostingClassifier(n_estimators=2), classes_=np.arange(9)), "together"),
    ],
    ids=str,
)
def test_what_compiled_code_would_follow_blindly_is_refused(tmp_path, estimator, message):
    skops_io.dump({"estimator": [estimator]}, tmp_path / "a.skops")
    assert untrusted_types(tmp_path / "a.skops") == []
    with pytest.raises(ValueError, match=message):
        load_skops(tmp_path / "a.skops")


def test_a_forest_of_pipelines_gives_their_trees_no_more_than_it_takes(tmp_path):
    """It would tell them not to check what they get."""
    inner = make_pipeline(PolynomialFeatures(2), DecisionTreeClassifier())
    forest = RandomForestClassifier(1).fit(ROWS, LABELS)
    forest.estimators_ = [inner.fit(ROWS[:, [0] * 4] ** 2 + ROWS, LABELS)]
    tree = inner[-1].tree_
    tree.feature[:] = np.where(tree.children_left == -1, tree.feature, 9)  # of ten, from four
    skops_io.dump({"estimator": forest}, tmp_path / "a.skops")
    with pytest.raises(ValueError, match="decision tree is damaged"):
        load_skops(tmp_path / "a.skops")


def test_a_forest_that_takes_fewer_features_than_its_trees_is_refused(tmp_path):
    forest = RandomForestClassifier(3)
    result = evaluate(forest, *pair(tmp_path), workspace=tmp_path, scale="none")
    path = tmp_path / "data" / "models" / result.files["model"]
    model = load_model(path)
    model.estimator[-1].n_features_in_ = 1
    save_model(path.with_suffix(""), model.estimator, result)
    with pytest.raises(ResultError, match="decision tree is damaged"):
        load_model(path)
