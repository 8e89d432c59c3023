"""The whole way on real features: 200 STL-10 images, half of them held out."""

from __future__ import annotations

import pytest

from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.svm import Svm
from featpipe.probes.zeroshot import Zeroshot
from featpipe.statistics.comparison import BEST, compare
from tests.evaluation.methods import evaluate, evaluated

pytestmark = pytest.mark.real

HALF = "holdout:0.5"


@pytest.fixture(scope="module")
def results(stl10_resnet18_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return [
        evaluated(step, folder, stl10_resnet18_store)
        for step in (Svm(protocol=HALF), Logistic(protocol=HALF))
    ]


def test_the_store_is_what_the_tests_think(stl10_resnet18_store):
    assert len(stl10_resnet18_store) == 200
    assert stl10_resnet18_store.features().shape == (200, 512)
    assert stl10_resnet18_store.logits.shape == (200, 1000)


def test_probes_beat_four_in_five_on_held_out_images(results):
    for result in results:
        assert result.protocol["n_test"] == 100
        assert result.summary["accuracy"]["value"] > 0.8
        assert result.splits[0]["converged"]


def test_two_good_probes_are_not_told_apart_by_100_images(results):
    comparison = compare(results, published=True)
    (pair,) = comparison.pairs
    assert pair["models"]["method"] == "McNemar exact"
    assert pair["n"] == 100
    assert abs(pair["models"]["difference"]) < 0.1
    assert pair["methods"] is None  # there is a single training set
    assert BEST not in [row["verdict"] for row in comparison.rows]
    assert len(comparison.published) >= 3


def test_the_last_layer_is_a_feature_as_well(stl10_resnet18_store):
    result = evaluate(Svm(layer="logits", protocol=HALF), stl10_resnet18_store)
    assert result.cost["parameters_trained"] == 10 * 1001
    assert result.summary["accuracy"]["value"] > 0.75


def test_more_labels_bring_more(stl10_resnet18_store):
    step = Centroid(protocol=HALF, train_per_class=(1, 5), repeats=3)
    one, five = evaluate(step, stl10_resnet18_store).extra["low_shot"]
    assert five["mean"] > one["mean"] + 0.05


@pytest.mark.parametrize(
    ("policy", "low", "high"),
    [("argmax", 0.5, 0.72), ("group", 0.5, 0.72), ("restricted", 0.65, 0.87)],
)
def test_the_imagenet_classifier_itself(stl10_resnet18_store, policy, low, high):
    result = evaluate(Zeroshot(policy=policy, protocol="all"), stl10_resnet18_store)
    metrics = result.summary["metrics"]
    assert low < result.summary["accuracy"]["value"] < high
    assert metrics["classes_without_source"] == ["deer"]
    # Deer, a tenth of the images, cannot be right: the rest carries all that is.
    with_source = result.summary["accuracy"]["value"] * 200 / 180
    assert metrics["accuracy_with_source"] == pytest.approx(with_source)
    assert metrics["per_class"][4]["recall"] == 0
    assert metrics["per_class"][4]["precision"] is None
    if policy == "restricted":
        assert metrics.get("coverage") is None
    else:
        assert 0.55 < metrics["coverage"] < 0.8
        assert metrics["accuracy_covered"] > 0.8
    assert any("deer" in note for note in result.notes)


def test_the_map_with_wildcats_gives_what_the_default_predicts(stl10_resnet18_store):
    plain, wildcats = (
        evaluate(Zeroshot(map=name, protocol="all"), stl10_resnet18_store)
        for name in (None, "imagenet_to_stl10_wildcats")
    )
    disputed = {row["group"]: row for row in plain.extra["label_map"]["disputed"]}
    accuracy = wildcats.summary["accuracy"]["value"]
    assert disputed["wildcats"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > plain.summary["accuracy"]["value"]
    assert disputed["antelopes"]["difference"] > 0.02
    assert disputed["antelopes"]["changed"] >= 200 * disputed["antelopes"]["difference"]
    assert any("chosen after a look at the labels" in note for note in wildcats.notes)


def test_weights_of_a_file_are_unknown_and_the_images_are_of_imagenet(results):
    for result in results:
        assert "weights resnet18-imagenet-pqf.safetensors were trained on is unknown" in " ".join(
            result.notes
        )
        assert "STL-10's images were drawn from ImageNet" in result.extra["contamination"]
