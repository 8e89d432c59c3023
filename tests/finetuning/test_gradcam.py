"""Heat maps: weighted by gradients, at a layer that is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.errors import UnknownNameError, UsageError
from featpipe.finetuning.nets import map_stages
from featpipe.finetuning.saved import load_head

pytest.importorskip("captum")
from featpipe.finetuning import gradcam


@pytest.fixture
def head(finetune, context):
    result = finetune(unfreeze="layer3", epochs=1)
    return load_head(context.workspace.models / result.files["model"], device="cpu")


def test_the_map_is_weighted_by_gradients(head):
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    heat = gradcam.grad_cam(head, "layer3", images, [0, 2])
    assert heat.shape == (2, 32, 32)
    # the same by hand: maps weighted by the mean gradient of the class, negative parts cut off
    stages = [*head.network.frozen, *head.network.body]
    names = [n for n, _ in head.trunk.stages.named_children()]
    behind = names.index("layer3") + 1
    maps = head.trunk.preprocessing.normalise(images)
    for stage in stages[:behind]:
        maps = stage(maps)
    maps = maps.detach().requires_grad_(True)
    x = maps
    for stage in stages[behind:]:
        x = stage(x)
    head.network.head(x)[0][[0, 1], [0, 2]].sum().backward()
    cam = (maps * maps.grad.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    cam = torch.nn.functional.interpolate(cam, size=(32, 32), mode="bilinear")[:, 0].detach()
    cam = cam / cam.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    np.testing.assert_allclose(heat, cam.numpy(), atol=1e-4)


def test_a_layer_must_give_maps(head):
    assert map_stages(head.trunk)[-1] == "layer3"
    gradcam.check_layer(head, "layer2.0.conv1")
    with pytest.raises(UnknownNameError, match="did you mean 'layer3'"):
        gradcam.check_layer(head, "layr3")
    with pytest.raises(UsageError, match="gives no maps"):
        gradcam.check_layer(head, "flatten")


def test_without_strength_the_image_stays():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    heat = rng.random((8, 8)).astype(np.float32)
    np.testing.assert_array_equal(gradcam.overlay(image, heat, 0.0), image)
    assert not np.array_equal(gradcam.overlay(image, heat, 0.5), image)
