"""The step: stored boundary or whole network, views, saved heads, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import (
    FeatpipeError,
    ImageError,
    MissingExtraError,
    ResultError,
    UnknownNameError,
    UsageError,
    WeightsError,
)
from featpipe.finetune.saved import load_head
from featpipe.evaluation.result import Result
from featpipe.steps.old import STEPS, FinetuneStep
from featpipe.store import FeatureStore
from tests.finetune import toy


def clockless(result: Result) -> list[dict[str, object]]:
    clock = ("seconds", "images_per_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in result.extra["history"]]


def test_the_stored_boundary_and_the_whole_network_agree(finetune):
    stored = finetune(unfreeze="layer3", dtype="float32")
    whole = finetune(unfreeze="layer3", views=0)
    assert stored.stores[0]["layer"] == "layer2:map"
    assert whole.stores[0]["layer"] == "image"
    for a, b in zip(clockless(stored), clockless(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(stored.predictions().scores, whole.predictions().scores, atol=1e-3)
    half = finetune(unfreeze="layer3")
    np.testing.assert_allclose(half.predictions().scores, whole.predictions().scores, atol=0.02)
    parameters = ("parameters_trained", "parameters_frozen")
    assert [stored.cost[p] for p in parameters] == [whole.cost[p] for p in parameters]


def test_two_runs_with_one_seed_are_identical(finetune):
    options = {"unfreeze": "layer3+", "augment": "crop:4,flip,cutout:8", "gradient_flow": True}
    first = finetune(**options)
    again = finetune(**options, force=True)
    assert clockless(first) == clockless(again)
    assert first.extra["gradient_flow"] == again.extra["gradient_flow"]
    np.testing.assert_array_equal(first.predictions().scores, again.predictions().scores)


def test_a_result_has_what_every_method_has(finetune):
    result = finetune(unfreeze="none", head="mlp:50", gradient_flow=True)
    assert result.method == "finetune"
    assert result.protocol["n_test"] == 9
    assert 0 <= result.summary["accuracy"]["low"] <= result.summary["accuracy"]["value"]
    assert "log_loss" in json.dumps(result.summary["metrics"])
    assert len(result.extra["history"]) == 3
    assert {line["layer"] for line in result.extra["gradient_flow"][0]} == {
        *("head.hidden.0", "head.classifier")
    }
    assert result.splits[0]["chosen"]["by"] == "validation accuracy"
    assert result.cost["parameters_trained"] == 128 * 50 + 50 + 50 * 3 + 3
    assert not list(result.path.parent.parent.joinpath("models").glob("*.checkpoint"))


def test_what_is_up_to_date_is_not_computed_again(context, weights, images):
    settings = {"model": "glyphnet", "weights": str(weights), "dataset": f"npz:{images}"}
    step = FinetuneStep.from_mapping({**settings, "epochs": 1, "batch_size": 4, "device": "cpu"})
    assert step.run(context).status == "done"
    outcome = step.run(context)
    assert outcome.status == "up to date"
    result = Result.load(outcome.paths[0])

    outcome = replace(step, title="Mine").run(context)
    assert outcome.status == "up to date", "a name is no reason to train again"
    assert Result.load(result.path).title == "Mine"
    assert step.run(context).status == "up to date"
    assert Result.load(result.path).title == result.title

    (context.workspace.models / result.files["model"]).unlink()
    assert step.run(context).status == "done", "the trained head is part of what was asked for"


def test_networks_trained_as_a_whole_share_prepared_images(context, images):
    settings = {"dataset": f"npz:{images}", "epochs": 1, "batch_size": 4, "device": "cpu"}
    one, other = (
        Result.load(FinetuneStep(model="resnet9", **settings, **choice).run(context).paths[0])
        for choice in ({"seed": 1}, {"norm": "layer"})
    )
    assert [s["path"] for s in one.stores] == [s["path"] for s in other.stores]
    assert one.extra["network"] != other.extra["network"]
    assert one.extra["network"]["model"] == "resnet9"


def test_views_are_stored_beside_the_image_as_it_is(finetune, context):
    plain = finetune(unfreeze="layer3")
    views = finetune(unfreeze="layer3", augment="crop:4,flip", views=2)
    stores = {store["path"]: FeatureStore(store["path"]) for store in views.stores}
    train, test = stores.values()
    maps = FeatureStore(plain.stores[0]["path"]).features()
    assert train.features().shape == (21, 3, *maps.shape[1:])
    assert test.features().shape == (9, *maps.shape[1:])
    np.testing.assert_allclose(train.features()[:, 0], maps, atol=2e-2)
    assert not np.allclose(train.features()[:, 1], maps, atol=1e-1)
    assert clockless(views) != clockless(plain)
    again = finetune(unfreeze="layer3", augment="crop:4,flip", views=2, force=True)
    assert clockless(views) == clockless(again)


def test_a_refit_trains_on_all_training_rows(finetune):
    chosen = finetune(unfreeze="none", lr=0.01)
    refit = finetune(unfreeze="none", lr=0.01, refit=True)
    assert chosen.extra["history"][0]["train_loss"] == refit.extra["history"][0]["train_loss"]
    assert not np.array_equal(chosen.predictions().scores, refit.predictions().scores)


def test_from_scratch_on_small_images(finetune):
    result = finetune(
        model="convnet",
        weights="none",
        image_size=16,
        optimizer="rmsprop",
        momentum=0.5,
        augment="rotation:5",
        lr=1e-3,
    )
    assert result.title == "convnet from scratch"
    assert result.cost["parameters_frozen"] == 0


@pytest.mark.parametrize("protocol", ["kfold:2", "holdout:0.3"])
def test_every_protocol_of_the_probes(finetune, protocol):
    result = finetune(unfreeze="none", protocol=protocol, batch_size=4)
    assert result.protocol["splits"] == (2 if protocol == "kfold:2" else 1)
    assert len(result.stores) == 1


def test_a_saved_head_gives_the_same_answers(finetune, context, weights, images):
    result = finetune(unfreeze="layer3+", dtype="float32")
    head = load_head(context.workspace.models / result.files["model"], device="cpu")
    source = open_source(f"npz:{images}", "test", DatasetOptions())
    prepared = torch.stack([head.trunk.preprocessing.prepare(source.read(r)) for r in range(9)])
    np.testing.assert_allclose(head.predict_proba(prepared), result.predictions().scores, atol=1e-4)
    assert head.classes == ("red", "green", "blue")


def test_a_head_of_other_classes_or_weights_is_refused(finetune, context, tmp_path, weights):
    result = finetune(unfreeze="none")
    path = context.workspace.models / result.files["model"]
    with pytest.raises(ResultError, match="other classes"):
        load_head(path, classes=("cat", "dog"))
    other = tmp_path / "other.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({n: v + 1 if "fc" in n else v * 1 for n, v in load_file(weights).items()}, other)
    with pytest.raises(WeightsError, match="not the weights"):
        load_head(path, weights=str(other))
    path.write_bytes(b"damaged")
    with pytest.raises(ResultError, match="cannot be read"):
        load_head(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unfreeze": "layer9"}, "no stage named 'layer9'"),
        ({"lr": 0}, "--lr cannot be 0"),
        ({"lr": float("nan")}, "--lr cannot be nan"),
        ({"batch_size": 500}, "larger than the training rows"),
        ({"loss": "triplet:1", "batch_size": 1}, "several classes"),
        ({"loss": "tripelt"}, "did you mean 'triplet'"),
        ({"optimizer": "sgd", "betas": "0.9,0.999"}, "has no --betas"),
        ({"optimizer": "adam", "momentum": 0.9}, "has no --momentum"),
        ({"optimizer": "sgd", "nesterov": True}, "Nesterov"),
        ({"optimizer": "adam", "betas": "0.9"}, "takes two numbers"),
        ({"optimizer": "adam", "betas": "0.9,1.5"}, "beta"),
        ({"schedule": "multistep"}, "ascending epochs"),
        ({"head": "mlp"}, "number of hidden neurons"),
        ({"head": "mpl:50"}, "did you mean 'mlp'"),
        ({"views": 3}, "augmented views"),
        ({"betas": "0.9,0.99,0.999"}, "takes two numbers"),
        ({"optimizer": "adam:1"}, "nothing behind a colon"),
        ({"optimizer": "sgd", "momentum": 1.5}, "must be below 1"),
        ({"lr": 1e40}, "at most 1e+12"),
        ({"seed": 2**40}, "at most"),
        ({"head": "mlp:99999999999"}, "at most mlp:65536"),
        ({"head": "mlp:²"}, "hidden neurons"),
        ({"head": "mlp:50", "head_init": "probe"}, "one linear layer"),
        ({"schedule": "multistep:0"}, "ascending epochs"),
        ({"schedule": "plateau:²"}, "one whole number"),
        ({"loss": "triplet:1,triplet:2"}, "names a term twice"),
        ({"augment": "crop:1.5"}, "whole pixels"),
        ({"protocol": "kfold:1"}, "is not a protocol"),
        ({"protocol": "all"}, "it is for zeroshot"),
        ({"split": "train,train"}, "test rows are training rows"),
        ({"model": "resnet18_32_stem", "weights": "none", "image_size": 8}, "cannot take images"),
        ({"views": 3, "augment": "flip", "unfreeze": "all"}, "nothing is frozen"),
        ({"augment": "cutout:99"}, "too much for images"),
        ({"validation": 0, "patience": 3}, "chooses by validation rows"),
        ({"validation": 1.0}, "must be below 1"),
        ({"classes": "red"}, "at least two classes"),
        ({"weights": "none", "unfreeze": "layer3"}, "untrained"),
        ({"model": "resnet99"}, "did you mean"),
        ({"device": "cuda:7"}, "is not there"),
    ],
)
def test_what_cannot_be_right_is_refused(finetune, options, message):
    with pytest.raises(FeatpipeError) as caught:
        finetune(**options)
    assert message.lower() in str(caught.value).lower()


def test_what_is_wrong_by_itself_is_refused_before_anything_is_stored(finetune, context):
    for options in ({"protocol": "kfold:1"}, {"schedule": "multistep"}, {"views": 3}):
        with pytest.raises(UsageError):
            finetune(**options)
    assert not context.workspace.activations.exists()


def test_a_missing_extra_is_named_before_anything_is_stored(finetune, context, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtraError, match="metric"):
        finetune(loss="triplet:1")
    assert not context.workspace.activations.exists()


def test_an_image_that_cannot_be_read_may_be_left_out(context, weights, tmp_path):
    for number in range(12):
        path = tmp_path / "photos" / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 9, 9)).save(path)
    path.write_bytes(b"damaged")
    settings = {
        "model": "glyphnet",
        "weights": str(weights),
        "dataset": f"folder:{path.parents[1]}",
    }
    step = FinetuneStep(**settings, epochs=1, batch_size=4, device="cpu", validation=0.0)
    with pytest.raises(ImageError, match="not an image") as caught:
        step.run(context)
    assert "--on-error skip" in str(caught.value)
    outcome = replace(step, on_error="skip").run(context)
    assert Result.load(outcome.paths[0]).protocol["n_test"] == 2
    with pytest.raises(ImageError, match="1 of 12 images"):
        replace(step, force=True).run(context)


def test_the_steps_are_registered():
    assert {"finetune", "explain"} <= set(STEPS)
    with pytest.raises(UsageError):
        FinetuneStep.from_mapping({"model": "resnet50"})
    with pytest.raises(UnknownNameError):
        FinetuneStep.from_mapping({"model": "resnet50", "dataset": "stl11"})


def test_an_interrupted_step_continues(finetune, monkeypatch):
    straight = finetune(unfreeze="none", epochs=4, seed=3)
    fit = toy.HeadClassifier.fit

    def killed(self, X, y, **more):
        fit(self.set_params(stop_after=2), X, y, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(toy.HeadClassifier, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(unfreeze="none", epochs=4, seed=3, force=True)
    monkeypatch.undo()
    continued = finetune(unfreeze="none", epochs=4, seed=3, force=True)
    assert clockless(continued) == clockless(straight)
