"""Fitting: choice of hyper-parameters, workers, memory, and rows that cannot be fitted."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from featpipe.errors import FitError, UsageError
from featpipe.evaluation import fitting
from featpipe.evaluation.assemble import SplitPredictions
from featpipe.evaluation.classifier import predict_with_scores, to_probabilities
from featpipe.evaluation.fitting import (
    at_edge,
    calibrate,
    check_memory,
    fit_splits,
    fit_temperature,
    n_fits,
    n_parameters,
    workers_for,
)
from featpipe.evaluation.models import load_model
from featpipe.evaluation.protocol import RowSet, Split, make_splits
from featpipe.probes.any_classifier import AnyClassifier
from featpipe.probes.base import Probe
from featpipe.probes.estimators import NearestMean
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluated, pair, written
from tests.stores import content, sealed

PROBES = {
    "svm": Svm(c=(1e-4, 1e-2, 1.0)),
    "logistic": Logistic(c=(1e-4, 1e-2, 1.0)),
    "knn": Knn(k=(1, 3, 9)),
    "centroid": Centroid(),
}
CALIBRATED = [
    Svm(c=(0.001, 0.1)),
    Knn(k=(1,)),
    AnyClassifier(classifier="sklearn.naive_bayes.GaussianNB"),
]


def one_split(store, protocol="holdout:0.3") -> Split:
    return make_splits(protocol, store, None, 0)[1][0]


@dataclass
class Fit:
    """One fitted split: its estimator, its predictions, and what is recorded of it."""

    estimator: BaseEstimator
    predictions: SplitPredictions

    def __getattr__(self, name: str):
        facts = self.predictions.facts
        return facts[name] if name in facts else getattr(self.predictions, name)


def fit_all(splits, probe, jobs=1) -> list[Fit]:
    return [Fit(*fit) for fit in fit_splits(splits, probe, jobs)]


def fit_one(split, probe, jobs=1) -> Fit:
    (fit,) = fit_all([split], probe, jobs)
    return fit


class Wrapped(Probe):
    """A probe of an estimator that a test makes up."""

    name, display_name = "wrapped", "Wrapped"

    def estimator(self, n_rows: int, n_features: int):
        return make_pipeline(FunctionTransformer(), self.made())


# -- workers ---------------------------------------------------------------------------------------


@pytest.fixture
def always_workers(monkeypatch):
    monkeypatch.setattr(fitting, "workers_for", lambda splits, probe, jobs: jobs)


@pytest.mark.parametrize("protocol", ["holdout:0.3", "kfold:3"])
def test_the_number_of_jobs_changes_no_number(tmp_path, always_workers, protocol):
    store = sealed(tmp_path / "s.h5", content(90, dims=40), noise=5.0)
    _, splits = make_splits(protocol, store, None, 0)
    for probe in (PROBES["svm"], PROBES["logistic"]):
        alone = fit_all(splits, probe, jobs=1)
        two = fit_all(splits, probe, jobs=2)
        for a, b in zip(alone, two, strict=True):
            assert (a.chosen, a.search, a.converged) == (b.chosen, b.search, b.converged)
            np.testing.assert_array_equal(a.predicted, b.predicted)
            np.testing.assert_array_equal(a.scores, b.scores)
            mine, other = (
                [m.coef_ for m in getattr(fit.estimator[-1], "estimators_", [fit.estimator[-1]])]
                for fit in (a, b)
            )
            np.testing.assert_array_equal(mine, other)


class KindOfInput(ClassifierMixin, BaseEstimator):
    """Remembers what kind of array it was given, and in which process."""

    def __init__(self, c: int = 0) -> None:
        self.c = c

    def fit(self, X: np.ndarray, y: np.ndarray) -> KindOfInput:
        self.classes_ = np.unique(y)
        self.owns_ = X.flags.owndata
        self.mapped_ = isinstance(X, np.memmap) or isinstance(X.base, np.memmap)
        self.file_ = str(getattr(X, "filename", ""))
        self.pid_ = psutil.Process().pid
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X), dtype=np.int64)


class KindProbe(Wrapped):
    made = KindOfInput


def test_workers_map_the_store_instead_of_copying_it(tmp_path, always_workers):
    train, test = pair(tmp_path, 60, 30)
    splits = [Split(str(i), RowSet(train, train.usable), RowSet(test, test.usable)) for i in (1, 2)]
    probe = KindProbe()
    fits = fit_all(splits, probe, jobs=2)
    for fit in fits:
        kind = fit.estimator[-1]
        assert kind.pid_ != psutil.Process().pid
        assert kind.mapped_
        assert kind.file_ == str(train.path)


def test_what_is_sent_to_a_worker_does_not_grow_with_the_features(tmp_path):
    sizes = []
    for dims in (4, 4000):
        (tmp_path / str(dims)).mkdir()
        store = sealed(tmp_path / str(dims) / "s.h5", content(60, dims=dims))
        sizes.append(len(pickle.dumps(one_split(store))))
    assert abs(sizes[0] - sizes[1]) < 200


def test_small_problems_stay_in_this_process(tmp_path):
    store = sealed(tmp_path / "s.h5", content(60))
    split = one_split(store)
    assert workers_for([split], PROBES["svm"], -1) == 1
    probe = KindProbe()
    (fit, _) = fit_all([split, split], probe, jobs=2)
    assert fit.estimator[-1].pid_ == psutil.Process().pid


def test_large_problems_get_workers(tmp_path):
    store = sealed(tmp_path / "s.h5", content(120, dims=3000))
    _, splits = make_splits("kfold:5", store, None, 0)
    probe = Svm(c=tuple(np.logspace(-5, -1, 9)), solver="sklearn")
    assert n_fits(splits[0], probe) == 9 * 3 + 1
    assert workers_for(splits, probe, 3) == 3
    assert workers_for(splits, probe, 1) == 1
    assert workers_for(splits, probe.replace(solver="batched"), 3) == 1  # it uses threads


def test_no_jobs_at_all_is_refused(tmp_path):
    split = one_split(sealed(tmp_path / "s.h5"))
    with pytest.raises(UsageError, match="--jobs cannot be 0"):
        fit_one(split, PROBES["svm"], jobs=0)


# -- memory ----------------------------------------------------------------------------------------


class Available:
    def __init__(self, n_bytes: float) -> None:
        self.available = n_bytes


@pytest.mark.parametrize(("room", "advice"), [(1.5, "--jobs 1"), (0.5, "--train-per-class N")])
def test_a_fit_that_would_not_fit_is_refused_before_it_starts(tmp_path, room, advice):
    split = one_split(sealed(tmp_path / "s.h5", content(60, dims=100)))
    probe = Svm(solver="sklearn")
    alone = len(split.train) * 100 * probe.bytes_per_value
    with pytest.raises(FitError, match="not fit into memory") as caught:
        check_memory([split], probe, 2, room * alone)
    assert advice in caught.value.details["next"]
    assert "42 training rows of 100 features in 2 processes" in caught.value.details["got"]


def test_advice_never_names_the_probe_that_was_refused(tmp_path):
    split = one_split(sealed(tmp_path / "s.h5"))
    for probe in (PROBES["knn"], PROBES["centroid"]):
        with pytest.raises(FitError) as caught:
            check_memory([split], probe, 1, 1)
        assert "featpipe" not in caught.value.details["next"]


def test_a_fit_that_just_fits_is_let_through(tmp_path):
    split = one_split(sealed(tmp_path / "s.h5", content(60, dims=100)))
    alone = len(split.train) * 100 * PROBES["svm"].bytes_per_value
    check_memory([split], PROBES["svm"].replace(solver="sklearn"), 2, 2 * alone)


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_what_does_not_fit_into_memory_is_read_in_blocks(tmp_path, monkeypatch, kind):
    split = one_split(sealed(tmp_path / "s.h5", content(600, dims=20, dtype="float16"), noise=3.0))
    alone = fit_one(split, kind(solver="batched"))
    assert "rows" not in alone.solver
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Available(1))
    read = fit_one(split, kind(solver="batched"))
    assert read.solver["rows"] == "read in blocks: they take too much memory"
    assert read.search == alone.search
    np.testing.assert_allclose(read.scores, alone.scores, rtol=1e-4, atol=1e-4)


def test_a_reference_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    split = one_split(sealed(tmp_path / "s.h5", content(600, dims=20)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Available(1))
    with pytest.raises(FitError) as caught:
        fit_one(split, Svm(solver="batched", check_solver=True))
    assert "GB" in caught.value.details["got"]
    assert "leave out --check-solver" in caught.value.details["next"]


# -- choosing --------------------------------------------------------------------------------------


def test_the_best_value_of_the_table_is_chosen_and_ties_go_to_the_most_regularised(tmp_path):
    easy = sealed(tmp_path / "easy.h5", noise=0.01)
    fit = fit_one(one_split(easy), Svm(c=(1.0, 0.01, 0.1)))
    assert [row["c"] for row in fit.search] == [0.01, 0.1, 1.0]
    assert {row["accuracy"] for row in fit.search} == {1.0}
    assert fit.chosen == {"c": 0.01, "by": "accuracy on 3 folds of the training rows"}


def test_the_number_of_neighbours_that_is_smoothest_wins_a_tie(tmp_path):
    fit = fit_one(one_split(sealed(tmp_path / "easy.h5", noise=0.01)), Knn(k=(1, 5)))
    assert fit.chosen["k"] == 5


@pytest.mark.parametrize(
    ("accuracies", "edge"),
    [([0.9, 0.8, 0.7], True), ([0.9, 0.9, 0.7], False), ([0.7, 0.8, 0.9], True),
     ([0.7, 0.9, 0.9], False), ([0.9], False)],
)  # fmt: skip
def test_the_edge_of_the_grid_is_where_accuracy_still_rises(accuracies, edge):
    assert at_edge(np.array(accuracies)) is edge


def test_a_single_value_is_taken_as_given(tmp_path):
    fit = fit_one(one_split(sealed(tmp_path / "s.h5")), Svm(c=(0.5,)))
    assert fit.chosen == {"c": 0.5, "by": "given"}
    assert fit.estimator[-1].estimators_[0].C == 0.5


def test_one_row_of_a_class_leaves_the_default(tmp_path):
    labels = np.array([0] * 10 + [1] * 10 + [2])
    train = sealed(tmp_path / "train.h5", content(21, labels=labels))
    test = sealed(tmp_path / "test.h5", content(9, split="test"))
    fit = fit_one(make_splits("split", train, test, 0)[1][0], Svm(c=(0.1, 0.001, 0.01)))
    assert fit.chosen["c"] == 0.01
    assert fit.chosen["by"].startswith("default")
    assert fit.search == []


def test_neighbours_that_a_validation_fold_lacks_are_left_out(tmp_path):
    store = sealed(tmp_path / "s.h5", content(18))
    split = one_split(store, "holdout:0.5")
    fit = fit_one(split, Knn(k=(1, 3, 5, 50), validation="kfold:3"))
    assert [row["k"] for row in fit.search] == [5, 3, 1]
    fit = fit_one(split, Knn(k=(1, 5, 50), validation="holdout:.7"))
    assert [row["k"] for row in fit.search] == [1]


def test_more_neighbours_than_rows_is_refused(tmp_path):
    split = one_split(sealed(tmp_path / "s.h5", content(18)))
    with pytest.raises(FitError, match="k=50") as caught:
        fit_one(split, Knn(k=(50,)))
    assert "--k" in caught.value.details["next"]


def test_the_search_does_not_leave_the_training_rows(tmp_path):
    store = sealed(tmp_path / "s.h5", content(60), noise=5.0)
    split = one_split(store)
    fit = fit_one(split, PROBES["svm"])
    alone = Split("", split.train, RowSet(store, split.test.rows[:1]))
    assert fit_one(alone, PROBES["svm"]).search == fit.search


# -- convergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["batched", "sklearn"])
@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_a_stopped_solver_is_recorded_and_nothing_is_printed(tmp_path, kind, solver):
    store = sealed(tmp_path / "s.h5", content(60, dims=10), noise=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = kind(c=(10.0, 100.0), max_iter=1, solver=solver)
        fit = fit_one(one_split(store), probe)
    assert not fit.converged
    # What the smaller C leads to may be the minimum of the larger one at once.
    assert not fit.search[0]["converged"]


class GivesUp(ClassifierMixin, BaseEstimator):
    """Stops before its limit and only warns, as L-BFGS does after a failed line search."""

    max_iter = 100

    def fit(self, X: np.ndarray, y: np.ndarray) -> GivesUp:
        from sklearn.exceptions import ConvergenceWarning

        self.classes_, self.n_iter_ = np.unique(y), 3
        warnings.warn("abnormal termination", ConvergenceWarning, stacklevel=1)
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X), dtype=np.int64)


class GivesUpProbe(Wrapped):
    made = GivesUp


def test_a_solver_that_only_warns_did_not_converge_and_other_warnings_are_passed_on(tmp_path):
    probe = GivesUpProbe()
    with pytest.warns(RuntimeWarning, match="something else") as told:
        fit = fit_one(one_split(sealed(tmp_path / "s.h5")), probe)
    assert not fit.converged
    assert len(told) == 1


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_have_a_column_per_class_and_agree_with_the_predictions(tmp_path, name, n_classes):
    classes = ("ant", "other", "cat")[:n_classes]
    store = sealed(tmp_path / "s.h5", content(60, classes), noise=3.0)
    fit = fit_one(one_split(store), PROBES[name])
    assert fit.scores.shape == (18, n_classes)
    assert fit.probabilities == (name in ("logistic", "knn"))
    if name != "knn":  # whose votes tie
        assert (fit.scores.argmax(axis=1) == fit.predicted).all()


@pytest.mark.parametrize("name", PROBES)
def test_a_class_that_was_not_trained_is_last_in_every_row(tmp_path, name):
    labels = np.where(np.arange(40) % 2, 2, 0)  # no bee
    train = sealed(tmp_path / "train.h5", content(40, labels=labels), noise=3.0)
    test = sealed(tmp_path / "test.h5", content(30, split="test"), noise=3.0)
    fit = fit_one(make_splits("split", train, test, 0)[1][0], PROBES[name])
    assert 1 not in fit.predicted
    assert (fit.scores[:, 1] <= fit.scores.min(axis=1)).all()
    if fit.probabilities:
        assert (fit.scores[:, 1] == 0).all()


def test_a_classifier_without_scores_has_none():
    class Bare(BaseEstimator):
        def predict(self, X: np.ndarray) -> np.ndarray:
            return np.zeros(len(X))

    predicted, scores, probabilities = predict_with_scores(Bare(), np.zeros((2, 1)), 3)
    assert predicted.tolist() == [0, 0]
    assert scores is None
    assert not probabilities


@pytest.mark.parametrize(
    ("name", "numbers"), [("svm", 27), ("logistic", 27), ("centroid", 24), ("knn", 0)]
)
def test_learned_numbers_are_counted(name, numbers, tmp_path):
    store = sealed(tmp_path / "s.h5", content(60, dims=8))
    X = np.array(store.features())
    assert n_parameters(PROBES[name].estimator(*X.shape).fit(X, store.labels)) == numbers


# -- rows that cannot be used ----------------------------------------------------------------------


def test_one_class_only_is_refused(tmp_path):
    train = sealed(tmp_path / "train.h5", content(12, labels=np.zeros(12, dtype=int)))
    test = sealed(tmp_path / "test.h5", content(9, split="test"))
    with pytest.raises(FitError, match="at least two classes") as caught:
        fit_one(make_splits("split", train, test, 0)[1][0], PROBES["svm"])
    assert caught.value.details["got"] == "ant"


def test_no_labelled_test_row_is_refused(tmp_path):
    train = sealed(tmp_path / "train.h5")
    test = sealed(tmp_path / "test.h5", content(9, split="test", labels=np.full(9, -1)))
    with pytest.raises(FitError, match="no labelled test row"):
        fit_one(make_splits("split", train, test, 0)[1][0], PROBES["svm"])


def test_no_labelled_row_at_all_is_refused(tmp_path):
    store = sealed(tmp_path / "s.h5", content(9, labels=np.full(9, -1)))
    for protocol in ("holdout:0.3", "kfold:2"):
        with pytest.raises(FitError, match="no labelled row"):
            one_split(store, protocol)


def test_a_test_store_of_other_classes_is_refused(tmp_path):
    train = sealed(tmp_path / "train.h5")
    test = sealed(tmp_path / "test.h5", content(9, ("ant", "cat", "bee"), split="test"))
    with pytest.raises(FitError, match="different classes") as caught:
        fit_one(make_splits("split", train, test, 0)[1][0], PROBES["svm"])
    assert caught.value.details["got"] == "ant, cat, bee"


def test_a_test_store_of_other_features_is_refused(tmp_path):
    train = sealed(tmp_path / "train.h5", content(dims=8))
    test = sealed(tmp_path / "test.h5", content(9, dims=9, split="test"))
    with pytest.raises(FitError, match="different features"):
        fit_one(make_splits("split", train, test, 0)[1][0], PROBES["svm"])


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = sealed(tmp_path / "s.h5")
    split = one_split(store)
    mapped = np.memmap(store.path, mode="r+", dtype=np.uint8)
    where = store.features()  # damage the file behind the store's back: it seals only finite values
    start = where.offset + int(split.train.rows[0]) * 8 * 4
    mapped[start : start + 4] = np.frombuffer(np.float32(np.nan).tobytes(), dtype=np.uint8)
    mapped.flush()
    with pytest.raises(FitError, match="1 rows hold features that are not finite") as caught:
        fit_one(split, PROBES["svm"])
    assert caught.value.details["next"] == f"featpipe store verify {store.path}"


def test_a_layer_of_maps_is_refused(tmp_path):
    what = content(12)
    what = type(what)(**{**vars(what), "shapes": {"avgpool": (2, 3, 3)}})
    values = np.random.default_rng(0).normal(size=(12, 2, 3, 3)).astype(np.float32)
    store = written(tmp_path / "maps.h5", what, avgpool=values)
    with pytest.raises(FitError, match="holds maps") as caught:
        fit_one(one_split(store), PROBES["svm"])
    assert "(2, 3, 3)" in caught.value.details["got"]


def test_half_precision_features_are_computed_in_float32(tmp_path):
    store = sealed(tmp_path / "s.h5", content(60, dtype="float16"), noise=1.0)
    assert store.features().dtype == np.float16
    split = one_split(store)
    assert split.train.features(None).dtype == np.float32
    fit = fit_one(split, PROBES["logistic"])
    assert (fit.predicted == split.test.labels).mean() > 0.8


def test_all_rows_of_a_store_are_not_copied(tmp_path):
    store = sealed(tmp_path / "s.h5")
    features = RowSet(store, store.usable).features(None)
    assert isinstance(features, np.memmap)
    assert features.filename == store.path


def test_features_without_any_variance_are_survived(tmp_path):
    what = content(30)
    store = written(tmp_path / "s.h5", what, avgpool=np.ones((30, 8), dtype=np.float32))
    for probe in PROBES.values():
        fit = fit_one(one_split(store), probe)
        assert fit.scores is not None
        assert np.isfinite(fit.scores).all()


# -- calibrated probabilities ---------------------------------------------------------------------


def test_the_temperature_has_the_least_log_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3)) * 50
    p = np.exp(logits / 20)
    truth = np.array([rng.choice(3, p=row / row.sum()) for row in p])
    found, loss = fit_temperature(logits, truth)
    assert 15 < found < 27
    known = np.arange(3)

    def loss_at(temperature):
        probabilities = to_probabilities(logits, known, temperature, graded=False)
        return log_loss(truth, probabilities)

    assert loss == pytest.approx(loss_at(found))
    assert all(loss <= loss_at(found * factor) for factor in (0.5, 0.9, 1.1, 2))


@pytest.mark.parametrize("probe", CALIBRATED, ids=lambda probe: probe.label)
def test_probabilities_match_the_accuracy_on_new_rows(tmp_path, probe):
    train = sealed(tmp_path / "train.h5", content(240), noise=4.0, seed=1)
    test = sealed(tmp_path / "test.h5", content(300, split="test"), noise=4.0, seed=2)
    _, (split,) = make_splits("split", train, test, 0)
    ((estimator, answers),) = fit_splits([split], probe)
    facts = calibrate(split, probe, answers.facts["chosen"], 1)
    assert facts["rows"] == 240
    _, scores, graded = predict_with_scores(estimator, test.features(), 3)
    found = to_probabilities(scores, estimator.classes_, facts["temperature"], graded=graded)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == scores.argmax(axis=1)).all()
    confident, right = found.max(axis=1).mean(), (answers.predicted == test.labels).mean()
    assert abs(confident - right) < 0.12  # of 240 rows, and two thirds of them train
    assert log_loss(test.labels, found) < np.log(3)


def test_a_class_without_training_rows_has_no_probability():
    scores = np.array([[0.2, -1.0, 0.1]])
    found = to_probabilities(scores, np.array([0, 2]), 1.0, graded=False)
    assert found[0, 1] == 0
    assert found.sum() == pytest.approx(1)


def test_the_result_and_the_model_keep_the_temperature(tmp_path):
    result = evaluated(Svm(c=(0.1,)), tmp_path, *pair(tmp_path))
    model = load_model(tmp_path / "data" / "models" / result.files["model"])
    assert model.temperature == result.extra["calibration"]["temperature"] > 0


def test_where_a_part_of_the_rows_is_not_enough_the_reason_is_kept(tmp_path):
    train, test = pair(tmp_path, n=12)
    result = evaluated(Knn(k=(12,)), tmp_path, train, test)
    assert "is not enough" in result.extra["calibration"]["reason"]


def test_scores_that_are_not_finite_are_not_calibrated(tmp_path, monkeypatch):
    def undefined(model, X):
        return np.full((len(X), 3), np.nan)

    train, test = pair(tmp_path)
    _, (split,) = make_splits("split", train, test, 0)
    monkeypatch.setattr(NearestMean, "decision_function", undefined)
    facts = calibrate(split, Centroid(), {}, 1)
    assert facts == {"reason": "the classifier gives scores that are not finite"}


def test_where_no_row_can_be_held_out_the_reason_is_kept(tmp_path):
    labels = np.array([0] * 20 + [1])
    train = sealed(tmp_path / "train.h5", content(21, labels=labels))
    test = sealed(tmp_path / "test.h5", content(9, split="test"))
    result = evaluated(Svm(c=(0.1,)), tmp_path, train, test)
    assert "too few" in result.extra["calibration"]["reason"]
    assert load_model(tmp_path / "data" / "models" / result.files["model"]).temperature is None
