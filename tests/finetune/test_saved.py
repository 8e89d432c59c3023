"""Saved heads give the same answers, and refuse other classes, weights and damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import ResultError, WeightsError
from featpipe.finetune.saved import load_head


def test_a_saved_head_gives_the_same_answers(finetune, context, images):
    result = finetune(unfreeze="layer3+", dtype="float32")
    head = load_head(context.workspace.models / result.files["model"], device="cpu")
    source = open_source(f"npz:{images}", "test", DatasetOptions())
    prepared = torch.stack([head.trunk.preprocessing.prepare(source.read(r)) for r in range(9)])
    np.testing.assert_allclose(head.predict_proba(prepared), result.predictions().scores, atol=1e-4)
    assert head.classes == ("red", "green", "blue")


def test_a_head_of_other_classes_or_weights_is_refused(finetune, context, tmp_path, weights):
    path = context.workspace.models / finetune(unfreeze="none", epochs=1).files["model"]
    with pytest.raises(ResultError, match="other classes"):
        load_head(path, classes=("cat", "dog"))
    other = tmp_path / "other.safetensors"
    save_file({n: v + 1 if "fc" in n else v * 1 for n, v in load_file(weights).items()}, other)
    with pytest.raises(WeightsError, match="not the weights"):
        load_head(path, weights=str(other))


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
@pytest.mark.parametrize("content", [b"damaged", b"[]", None])
def test_a_damaged_head_is_refused(finetune, context, ending, content):
    path = context.workspace.models / finetune(unfreeze="none", epochs=1).files["model"]
    damaged = path.with_suffix(ending)
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.raises(ResultError, match=r"cannot be read|no such head|not a head"):
        load_head(path)
