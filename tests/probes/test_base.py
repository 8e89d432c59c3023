"""What all probes share: a step with an identity, scikit-learn's contract, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score

from featpipe.errors import StoreError, UsageError
from featpipe.probes.base import Evaluation, Probe
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from featpipe.probes.zeroshot import Zeroshot
from featpipe.steps import STEPS, Step, option, options_of
from tests.stores import content, sealed

METHODS: list[type[Evaluation]] = [Svm, Logistic, Knn, Centroid, Zeroshot]
PROBES = {
    "svm": Svm(c=(1e-3, 1e-1)),
    "logistic": Logistic(c=(1e-3, 1e-1)),
    "knn": Knn(k=(3, 5)),
    "centroid": Centroid(),
}


class Extraction(Step):
    """Stands in for the step that makes features."""

    name = "extraction"
    makes = ("features",)

    dataset: str = option("stl10", help="")
    model: str = option("resnet18", help="")
    layer: tuple[str, ...] | None = option(None, help="")


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_found_by_name(method):
    assert STEPS.get(method.name) is method
    assert method.needs.output in Extraction.makes
    assert method.makes == ("result",)


def test_only_grids_are_tunable():
    tunable = {
        (method.name, name)
        for method in METHODS
        for name, spec in options_of(method).items()
        if spec.tunable
    }
    assert tunable == {("svm", "c"), ("logistic", "c"), ("knn", "k")}


@pytest.mark.parametrize("method", METHODS)
def test_what_changes_no_number_is_no_part_of_the_identity(method, tmp_path):
    plain = method().key({})
    for change in (
        {"title": "Mine"},
        {"force": True},
        {"dataset": "stl10", "model": "resnet18"},
        {"train": tmp_path / "a.h5", "test": tmp_path / "b.h5"},
        *([{"save_model": False}] if issubclass(method, Probe) else []),
    ):
        assert method(**change).key({}) == plain
    for change in ({"seed": 1}, {"protocol": "kfold:3"}):
        assert method(**change).key({}) != plain
    assert method().key({"stores": ["x"]}) != plain


@pytest.mark.parametrize("method", [Svm, Logistic, Knn, Centroid])
def test_a_probe_refuses_a_protocol_without_training(method):
    with pytest.raises(UsageError, match="it is for zeroshot"):
        method(protocol="all")


@pytest.mark.parametrize(
    ("asked", "made", "fits"),
    [
        ({}, {}, True),
        ({"dataset": "stl10", "model": "resnet18"}, {}, True),
        ({"dataset": "cifar10"}, {}, False),
        ({"model": "resnet50"}, {}, False),
        ({"model": "resnet20"}, {"model": "cifar_resnet20"}, True),  # its other name
        ({"layer": "layer3"}, {}, True),  # nobody knows yet what the default layer is
        ({"layer": "layer3"}, {"layer": ("layer3", "layer4")}, True),
        ({"layer": "layer3"}, {"layer": ("layer4",)}, False),
        ({"layer": "logits"}, {"layer": ("layer4",)}, True),
    ],
)
def test_a_recipe_gives_it_the_extractions_it_asks_for(asked, made, fits):
    assert Svm(**asked).accepts(Extraction(**made)) is fits


def test_the_plan_fills_in_dataset_and_model():
    planned = Svm(c=(0.1,)).planned(Extraction(dataset="cifar10"))
    assert (planned.dataset, planned.model, planned.c) == ("cifar10", "resnet18", (0.1,))


def test_named_stores_need_no_other_step(tmp_path):
    assert not Svm().has_inputs()
    assert Svm(train=tmp_path / "a.h5").has_inputs()


def test_it_is_bound_to_the_stores_of_one_extraction(tmp_path):
    paths = [
        sealed(tmp_path / f"{split}.h5", content(12, split=split)).path
        for split in ("unlabeled", "test", "train")
    ]
    bound = Svm().bind([paths])
    assert (bound.train, bound.test) == (paths[2], paths[1])
    assert Svm().bind([paths[2:]]).test is None
    with pytest.raises(StoreError, match="only unlabelled"):
        Svm().bind([paths[:1]])


def test_the_modules_of_probes_are_light():
    modules = ", ".join(sorted({method.__module__ for method in METHODS}))
    heavy = "torch torchvision sklearn pandas scipy h5py numpy PIL skops click"
    code = f"import sys, {modules}; print(*[m for m in {heavy.split()} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


# -- estimators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_cloned_searched_and_cross_validated(name, data):
    probe = PROBES[name]
    estimator = probe.estimator(*data[0].shape)
    again = clone(estimator)
    assert repr(again) == repr(estimator)
    grid = {probe.parameter: list(probe.candidates())} if probe.tuned else {}
    search = GridSearchCV(estimator, grid, cv=3).fit(*data)
    assert search.score(*data) > 0.5
    assert len(cross_val_score(again, *data, cv=3)) == 3
    assert not hasattr(estimator[-1], "classes_")  # the definition itself stays unfitted


@pytest.mark.parametrize("name", PROBES)
def test_normalisation_is_inside_the_pipeline(name, data):
    X, y = data
    fitted = PROBES[name].estimator(60, 12).fit(X[:60], y[:60])
    if name in ("svm", "logistic"):
        assert np.allclose(fitted[0].mean_, X[:60].mean(axis=0), atol=1e-6)
    else:
        assert np.allclose(np.linalg.norm(fitted[0].transform(X), axis=1), 1, atol=1e-6)


# -- linear probes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rows", "features", "solver"),
    [
        ({}, 10, 10, "batched"),
        ({"c": (1.0,)}, 10, 10, "sklearn"),
        ({"c": (1.0,)}, 4000, 2048, "batched"),
        ({"c": (1.0,), "solver": "batched"}, 10, 10, "batched"),
        ({"solver": "sklearn"}, 4000, 2048, "sklearn"),
    ],
)
@pytest.mark.parametrize("probe", [Svm, Logistic])
def test_auto_takes_the_batched_solver_for_grids_and_large_data(
    probe, options, rows, features, solver
):
    assert probe(**options).strategy(rows, features).name == solver


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_balanced_weights_find_more_of_rare_classes(kind, imbalanced):
    X, y = imbalanced
    recalls = []
    for weight in ("none", "balanced"):
        probe = kind(c=(0.1,), class_weight=weight)
        fitted = probe.estimator(*X.shape).set_params(**{probe.parameter: 0.1}).fit(X, y)
        recalls.append(balanced_accuracy_score(y, fitted.predict(X)))
    assert recalls[1] > recalls[0] + 0.05


@pytest.mark.parametrize("kind", [Svm, Logistic])
def test_no_weights_is_what_was_done_before(kind):
    plain, balanced = kind(), kind(class_weight="balanced")
    assert plain.class_weight == "none"
    assert "class_weight" not in plain.identity({})["options"]
    assert balanced.identity({})["options"]["class_weight"] == "balanced"
    with pytest.raises(UsageError, match="not a choice of --class-weight"):
        kind(class_weight="equal")
