"""The frozen prefix as an embedder: the name and shape of its boundary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.finetune.data import FinetuneData, Prefix


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
        for name in data.cut.frozen:
            x = data.trunk.stages.get_submodule(name)(x)
    embedded = prefix.embed(images, (boundary,))[boundary]
    np.testing.assert_allclose(embedded, x.numpy(), rtol=1e-4, atol=1e-4)


def test_a_boundary_behind_a_flattened_map_keeps_all_its_values(context, make_step):
    data = FinetuneData(make_step(model="convnet", weights="none", unfreeze="all"), context)
    stages = data.trunk.stages
    data.cut = type(data.cut)(tuple(n for n, _ in stages.named_children())[:-1], ("hidden",), ())
    prefix = Prefix(data.trunk, data.cut)
    assert (prefix.default_layer, prefix.dim("flatten")) == ("flatten", (128 * 16,))


@pytest.mark.parametrize("options", [{"augment": "flip"}, {"unfreeze": "all"}])
def test_images_are_stored_where_they_change_or_all_learns(make_step, context, options):
    embedder = FinetuneData(make_step(**{"unfreeze": "layer3", **options}), context).embedder
    assert (embedder.name, embedder.default_layer) == ("prepared", "image")
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(embedder.embed(images, ("image",))["image"], images.numpy())
