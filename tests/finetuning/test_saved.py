"""Saved heads and checkpoints: the same answers; other classes, weights, runs and damage."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import FeatpipeError, FitError, ResultError, WeightsError
from featpipe.finetuning.nets import load_trunk
from featpipe.finetuning.network import HeadedNetwork
from featpipe.finetuning.saved import load_head, read_checkpoint, save_head, write_checkpoint
from featpipe.fingerprint import of_file, seal_archive, sealed_json, unsealed
from tests.damage import NAMES, VARIANTS, damaged, outcome


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
    seal_archive(path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "r")


def test_foreign_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "c"
    torch.save({"run": "run", "format": 1, "history": Evil()}, path)
    seal_archive(path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")
    assert not (tmp_path / "ran").exists()


# -- damage and forgery ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(tmp_path_factory, weights):
    """A saved head of the small network, as the bytes of its two files."""
    folder = tmp_path_factory.mktemp("head")
    trunk = load_trunk("glyphnet", str(weights), device="cpu")
    network = HeadedNetwork(trunk, "none", "linear", 3, from_store=False)
    request = {"model": "glyphnet", "weights": str(weights)}
    about = {"trunk": trunk.description, "request": request, "unfreeze": "none"}
    about |= {"head": "linear", "classes": ["red", "green", "blue"], "title": "a head"}
    save_head(folder / "a.safetensors", network, about)
    return {ending: (folder / f"a{ending}").read_bytes() for ending in (".safetensors", ".json")}


@pytest.fixture
def saved(head, tmp_path):
    """The head, for a test to damage."""
    for ending, content in head.items():
        (tmp_path / f"a{ending}").write_bytes(content)
    return tmp_path / "a.safetensors"


def answers(path):
    images = torch.arange(3 * 3 * 32 * 32).remainder(251).to(torch.uint8).reshape(3, 3, 32, 32)
    head = load_head(path, device="cpu")
    return head.classes, head.predict_proba(images).tolist()


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_a_damaged_head_answers_nothing(saved, ending, variant):
    whole = None if ending == ".safetensors" else answers(saved)  # JSON may lose a blank
    file = saved.with_suffix(ending)
    file.write_bytes(damaged(file.read_bytes(), variant))
    assert outcome(lambda: answers(saved), ResultError) in (None, whole)


def forge(path, change):
    """Change what stands beside a head and give it a digest that fits, as anybody can."""
    content = unsealed(json.loads(path.with_suffix(".json").read_text("utf-8")))
    change(content)
    path.with_suffix(".json").write_text(sealed_json(content), "utf-8")


@pytest.mark.parametrize("key", ["trunk", "request", "unfreeze", "head", "classes", "sha256"])
@pytest.mark.parametrize("value", [None, 5, [], {"unexpected": 1}, "x"])
def test_a_head_described_wrongly_is_explained(saved, key, value):
    forge(
        saved, lambda content: content.pop(key) if value is None else content.update({key: value})
    )
    with pytest.raises(FeatpipeError) as caught:
        load_head(saved, device="cpu")
    assert len(str(caught.value)) < 1500


def test_an_option_that_is_not_known_is_explained(saved):
    forge(saved, lambda content: content["request"].update(unheard=1))
    with pytest.raises(ResultError, match="unexpected keyword"):
        load_head(saved, device="cpu")


def test_tensors_of_another_header_are_refused(saved):
    state = {name: value + 1 for name, value in load_file(saved).items()}
    with safe_open(saved, "pt") as file:
        save_file(state, saved, file.metadata())
    forge(saved, lambda content: content.update(sha256=of_file(saved)))
    with pytest.raises(ResultError, match="its header was written for"):
        load_head(saved, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    generator = torch.Generator().manual_seed(0)
    state = {"module": {"weight": torch.randn(40, 9, generator=generator)}, "best": {"epoch": 1}}
    write_checkpoint(path, "run", state, [{"epoch": 1, "train_loss": 0.125}])
    return path.read_bytes()


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_a_damaged_checkpoint_is_not_continued(checkpoint, tmp_path, variant):
    path = tmp_path / "c"
    path.write_bytes(damaged(checkpoint, variant))
    with pytest.raises(FitError, match="damaged") as caught:
        read_checkpoint(path, "run")
    assert "rm " in caught.value.details["next"]


@pytest.mark.long
def test_no_flipped_bit_of_a_checkpoint_or_head_is_silent(checkpoint, saved, tmp_path):
    path = tmp_path / "c"
    for byte in range(0, len(checkpoint), 1 + len(checkpoint) // 2000):
        flipped = bytes([checkpoint[byte] ^ 1 << byte % 8])
        path.write_bytes(checkpoint[:byte] + flipped + checkpoint[byte + 1 :])
        assert outcome(lambda: read_checkpoint(path, "run"), FitError) is None
    content = saved.read_bytes()
    for byte in range(0, len(content), 1 + len(content) // 2000):
        flipped = bytes([content[byte] ^ 1 << byte % 8])
        saved.write_bytes(content[:byte] + flipped + content[byte + 1 :])
        assert outcome(lambda: load_head(saved, device="cpu"), ResultError) is None


def test_a_full_disk_is_named_and_the_old_checkpoint_kept(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "c"
    path.write_bytes(checkpoint)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FeatpipeError, match="No space left") as caught:
        write_checkpoint(path, "run", {"module": {}}, [])
    assert caught.value.details["where"] == str(path)
    assert "featpipe clean" in caught.value.details["next"]
    assert path.read_bytes() == checkpoint
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_stopped_training_left_goes_with_the_next_look(make_step, context):
    step = make_step(unfreeze="none", epochs=1)
    path = step.run(context).paths[0]
    models = context.workspace.models
    for name in (f"{path.stem}.0.checkpoint", f"{path.stem}.0.refit.checkpoint"):
        (models / name).write_bytes(b"of a run that was killed just after its result was written")
    (models / f".{path.stem}.json.0123456789abcdef.tmp").write_bytes(b"torn")
    (models / "mine.checkpoint").write_bytes(b"mine")
    assert step.run(context).status == "up to date"
    names = {file.name for file in models.iterdir()}
    assert names == {f"{path.stem}.safetensors", f"{path.stem}.json", "mine.checkpoint"}


def test_a_changed_network_is_neither_up_to_date_nor_done(make_step, context, let_files_settle):
    step = make_step(unfreeze="none", epochs=1)
    path = step.run(context).paths[0]
    assert step.status(context).done
    model = context.workspace.models / f"{path.stem}.safetensors"
    model.write_bytes(damaged(model.read_bytes(), ("flip", 0.9)))
    let_files_settle()
    assert "changed" in step.status(context).why
    with pytest.raises(ResultError, match="was changed"):
        step.run(context)
    assert step.replace(force=True).run(context).status == "done"
    assert step.status(context).done
