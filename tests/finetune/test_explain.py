"""Heat maps: pictures beside the result, at a layer that is there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.errors import MissingExtraError, ResultError, UnknownNameError, UsageError
from featpipe.finetune.explain import grad_cam, overlay
from featpipe.finetune.saved import load_head
from featpipe.evaluation.result import Result
from featpipe.steps.old import ExplainStep


@pytest.fixture
def poor(finetune):
    """A network that was hardly trained and gets images wrong."""
    return finetune(unfreeze="layer3", epochs=1, lr=1e-6)


def test_mistakes_get_pictures(poor, context):
    pytest.importorskip("captum")
    step = ExplainStep(result=str(poor.path), layer="layer2", strength=0.5, device="cpu", limit=3)
    outcome = step.run(context)
    result = Result.load(poor.path)
    shown = result.extra["explanations"]
    assert outcome.status == "done"
    wrong = int((~poor.predictions().correct).sum())
    assert len(shown) == min(3, wrong) > 0
    for entry in shown:
        assert list(entry) == ["id", "file", "true", "predicted", "confidence"]
        assert entry["true"] != entry["predicted"]
        picture = Image.open(result.path.parent / entry["file"])
        assert picture.size == (32, 32)
    confidence = [entry["confidence"] for entry in shown]
    assert confidence == sorted(confidence, reverse=True)
    assert result.predictions().ids.tolist() == poor.predictions().ids.tolist()


def test_the_map_is_weighted_by_gradients(poor, context):
    pytest.importorskip("captum")
    head = load_head(context.workspace.models / poor.files["model"], device="cpu")
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    heat = grad_cam(head, "layer3", images, [0, 2])
    assert heat.shape == (2, 32, 32)
    # the same by hand: maps weighted by the mean gradient of the class, negative parts cut off
    stages = [*head.network.frozen, *head.network.body]
    names = [n for n, _ in head.trunk.stages.named_children()]
    maps = head.trunk.preprocessing.normalise(images)
    for name, stage in zip(names, stages, strict=True):
        maps = stage(maps)
        if name == "layer3":
            break
    maps = maps.detach().requires_grad_(True)
    x = maps
    for stage in stages[names.index("layer3") + 1 :]:
        x = stage(x)
    head.network.head(x)[0][[0, 1], [0, 2]].sum().backward()
    cam = (maps * maps.grad.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    cam = torch.nn.functional.interpolate(cam, size=(32, 32), mode="bilinear")[:, 0].detach()
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    np.testing.assert_allclose(heat, cam.numpy(), atol=1e-4)


def test_without_strength_the_image_stays():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    heat = rng.random((8, 8)).astype(np.float32)
    np.testing.assert_array_equal(overlay(image, heat, 0.0), image)
    assert not np.array_equal(overlay(image, heat, 0.5), image)


def test_a_layer_that_is_not_there_is_refused(poor, context):
    with pytest.raises(UnknownNameError, match="did you mean 'layer3'"):
        ExplainStep(result=str(poor.path), layer="layr3", device="cpu").run(context)


def test_a_layer_without_maps_is_refused(poor, context):
    with pytest.raises(UsageError, match="gives no maps"):
        ExplainStep(result=str(poor.path), layer="flatten", device="cpu").run(context)


def test_an_opacity_above_one_is_refused(poor, context):
    with pytest.raises(UsageError, match="--strength cannot be 2"):
        ExplainStep(result=str(poor.path), strength=2, device="cpu").run(context)


def test_a_result_without_network_is_refused(poor, context):
    poor.method = "svm"
    poor.save(poor.path)
    with pytest.raises(ResultError, match="trained by featpipe finetune"):
        ExplainStep(result=str(poor.path), device="cpu").run(context)


def test_a_missing_captum_says_what_to_install(poor, context, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match="captum"):
        ExplainStep(result=str(poor.path), device="cpu").run(context)
