"""A whole run: stored boundary or whole network, identical numbers, what a result has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.errors import FitError, ImageError
from featpipe.evaluation.result import Result
from featpipe.finetuning.rows import Prefix, PreparedImages
from featpipe.finetuning.run import FinetuneData, run_finetune
from featpipe.finetuning.training import HeadClassifier


def test_the_stored_boundary_and_the_whole_network_agree(
    finetune, make_step, context, without_clock
):
    stored = finetune(unfreeze="layer3", dtype="float32")
    data = FinetuneData(make_step(unfreeze="layer3"), context)
    data.embedder = PreparedImages(data.trunk)
    whole = Result.load(run_finetune(data).paths[0])
    assert stored.stores[0]["layer"] == "layer2:map"
    assert whole.stores[0]["layer"] == "image"
    histories = (without_clock(result.extra["history"]) for result in (stored, whole))
    for a, b in zip(*histories, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(stored.predictions().scores, whole.predictions().scores, atol=1e-3)
    half = finetune(unfreeze="layer3")
    np.testing.assert_allclose(half.predictions().scores, whole.predictions().scores, atol=0.02)
    for counted in ("parameters_trained", "parameters_frozen"):
        assert stored.cost[counted] == whole.cost[counted]


def test_two_runs_with_one_seed_are_identical(finetune, without_clock):
    options = {"unfreeze": "layer3+", "augment": "crop:4,flip,cutout:8", "gradient_flow": True}
    first = finetune(**options)
    again = finetune(**options, force=True)
    assert without_clock(first.extra["history"]) == without_clock(again.extra["history"])
    assert first.extra["gradient_flow"] == again.extra["gradient_flow"]
    np.testing.assert_array_equal(first.predictions().scores, again.predictions().scores)


def test_a_result_has_what_every_method_has(finetune, context):
    result = finetune(unfreeze="none", head="mlp:50", gradient_flow=True)
    assert result.method == "finetune"
    assert result.protocol["n_test"] == 9
    assert 0 <= result.summary["accuracy"]["low"] <= result.summary["accuracy"]["value"]
    assert "log_loss" in json.dumps(result.summary["metrics"])
    assert len(result.extra["history"]) == 3
    layers = {line["layer"] for line in result.extra["gradient_flow"][0]}
    assert layers == {"head.hidden.0", "head.classifier"}
    assert result.splits[0]["chosen"]["by"] == "validation accuracy"
    assert result.cost["parameters_trained"] == 128 * 50 + 50 + 50 * 3 + 3
    assert not list(context.workspace.models.glob("*.checkpoint"))


def test_networks_trained_as_a_whole_share_prepared_images(finetune):
    whole = {"model": "resnet9", "weights": "none", "epochs": 1}
    one, other = finetune(**whole, seed=1), finetune(**whole, norm="layer")
    assert [s["path"] for s in one.stores] == [s["path"] for s in other.stores]
    assert one.extra["network"] != other.extra["network"]
    assert one.extra["network"]["model"] == "resnet9"


def test_a_refit_trains_on_all_training_rows(finetune):
    chosen = finetune(unfreeze="none", lr=0.01)
    refit = finetune(unfreeze="none", lr=0.01, refit=True)
    assert chosen.extra["history"][0]["train_loss"] == refit.extra["history"][0]["train_loss"]
    assert not np.array_equal(chosen.predictions().scores, refit.predictions().scores)
    # The training that chose the number of epochs is a search, and no part of the fit.
    assert chosen.cost["search_seconds"] == 0 < chosen.cost["fit_seconds"]
    assert refit.cost["search_seconds"] > 0 < refit.cost["fit_seconds"]


def test_from_scratch_on_small_images(finetune):
    network = {"model": "convnet", "weights": "none", "image_size": 16}
    result = finetune(**network, optimizer="sgd", momentum=0.5, augment="rotation:5")
    assert result.title == "convnet from scratch"
    assert result.cost["parameters_frozen"] == 0


@pytest.mark.parametrize(("protocol", "splits"), [("kfold:2", 2), ("holdout:0.3", 1)])
def test_every_protocol_of_the_probes(finetune, protocol, splits):
    result = finetune(unfreeze="none", protocol=protocol, batch_size=4)
    assert result.protocol["splits"] == splits
    assert len(result.stores) == 1


def test_an_image_that_cannot_be_read_may_be_left_out(make_step, context, tmp_path):
    for number in range(12):
        path = tmp_path / "photos" / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 9, 9)).save(path)
    path.write_bytes(b"damaged")
    options = {"dataset": f"folder:{path.parents[1]}", "batch_size": 4, "validation": 0.0}
    step = make_step(**options, epochs=1)
    with pytest.raises(ImageError, match="not a readable image") as caught:
        step.run(context)
    assert "--on-error skip" in str(caught.value)
    outcome = step.replace(on_error="skip").run(context)
    assert outcome.exit_code == 0
    assert Result.load(outcome.paths[0]).protocol["n_test"] == 2
    assert step.replace(on_error="skip", strict=True).run(context).exit_code == 3
    with pytest.raises(ImageError, match="1 of 12 images"):
        step.replace(force=True).run(context)


def test_leaks_are_refused_also_where_the_result_is_there(finetune, make_step, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3)).astype(np.uint8)
    images[29] = images[0]
    split = np.where(np.arange(30) < 21, "train", "test")
    path = tmp_path / "leaky.npz"
    np.savez(path, images=images, labels=np.arange(30) % 3, classes=list("abc"), split=split)
    dataset = f"npz:{path}"
    finetune(dataset=dataset, epochs=1)
    with pytest.raises(FitError, match="1 training image is also a test image"):
        finetune(dataset=dataset, epochs=1, leaks="fail")


@pytest.mark.parametrize("refit", [False, True])
def test_an_interrupted_step_continues(finetune, without_clock, monkeypatch, refit):
    options = {"unfreeze": "none", "epochs": 4, "seed": 3, "refit": refit}
    straight = finetune(**options)
    fit = HeadClassifier.fit

    def interrupted(self, X, y, **more):
        if refit and self.validation:
            return fit(self, X, y, **more)
        fit(self.set_params(stop_after=1), X, y, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(HeadClassifier, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(**options, force=True)
    monkeypatch.undo()
    continued = finetune(**options, force=True)
    histories = [without_clock(result.extra["history"]) for result in (continued, straight)]
    assert histories[0] == histories[1]
    scores = [result.predictions().scores for result in (continued, straight)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("unfreeze", "boundary", "shape"),
    [("layer3", "layer2:map", (64, 8, 8)), ("none", "avgpool", (128,))],
)
def test_the_prefix_gives_what_the_frozen_stages_give(
    make_step, context, unfreeze, boundary, shape
):
    data = FinetuneData(make_step(unfreeze=unfreeze), context)
    prefix = data.embedder
    assert (prefix.default_layer, prefix.dim(boundary)) == (boundary, shape)
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        x = data.trunk.preprocessing.normalise(images)
        x = data.trunk.stages[: data.n_frozen](x)
    embedded = prefix.embed(images, (boundary,))[boundary]
    np.testing.assert_allclose(embedded, x.numpy(), rtol=1e-4, atol=1e-4)


def test_a_boundary_behind_a_flattened_map_keeps_all_its_values(context, make_step):
    data = FinetuneData(make_step(model="convnet", weights="none", unfreeze="all"), context)
    prefix = Prefix(data.trunk, len(data.trunk.stages) - 1)
    assert (prefix.default_layer, prefix.dim("flatten")) == ("flatten", (128 * 16,))


@pytest.mark.parametrize("options", [{"augment": "flip"}, {"unfreeze": "all"}])
def test_images_are_stored_where_they_change_or_all_learns(make_step, context, options):
    embedder = FinetuneData(make_step(**{"unfreeze": "layer3", **options}), context).embedder
    assert (embedder.name, embedder.default_layer) == ("prepared", "image")
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(embedder.embed(images, ("image",))["image"], images.numpy())
