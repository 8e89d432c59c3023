"""What every probe has as a step: its identity, its place in a recipe, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
