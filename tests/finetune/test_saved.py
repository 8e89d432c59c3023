"""Saved heads and checkpoints: the same answers; other classes, weights, runs and damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import FitError, ResultError, WeightsError
from featpipe.finetune.saved import load_head, read_checkpoint, write_checkpoint


def test_a_saved_head_gives_the_same_answers(finetune, context, images):
    result = finetune(unfreeze="layer3+", dtype="float32")
    head = load_head(context.workspace.models / result.files["model"], device="cpu")
    source = open_source(f"npz:{images}", "test", DatasetOptions())
    prepared = torch.stack([head.trunk.preprocessing.prepare(source.read(r)) for r in range(9)])
    np.testing.assert_allclose(head.predict_proba(prepared), result.predictions().scores, atol=1e-4)
    assert head.classes == ("red", "green", "blue")


def test_a_head_of_other_weights_is_refused(finetune, context, tmp_path, weights):
    path = context.workspace.models / finetune(unfreeze="none", epochs=1).files["model"]
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


def test_a_head_of_the_first_version_is_named_as_such(finetune, context):
    path = context.workspace.models / finetune(unfreeze="none", epochs=1).files["model"]
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**about, "featpipe_head": 1}))
    with pytest.raises(ResultError, match=r"written by featpipe 0\.1") as caught:
        load_head(path)
    assert "train it again" in str(caught.value)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, "one", {"module": {}}, [{"epoch": 1}])
    assert read_checkpoint(path, "one")[1] == [{"epoch": 1}]
    with pytest.raises(FitError, match="another run") as caught:
        read_checkpoint(path, "two")
    assert "rm " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize("content", [[1], 7, torch.zeros(2), {"run": "r", "history": 5}])
def test_another_file_of_torch_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "c"
    torch.save(content, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "r")


def test_foreign_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "c"
    torch.save({"run": "run", "format": 1, "history": Evil()}, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")
    assert not (tmp_path / "ran").exists()
