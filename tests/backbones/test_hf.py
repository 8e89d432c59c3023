"""hf:FOLDER: what a saved model of transformers is taken for, and what of it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from featpipe.backbones import load_backbone
from featpipe.backbones.base import layer_shapes
from featpipe.errors import FeatpipeError, UsageError, WeightsError
from tests.backbones.tiny import EXACT, HF, save_tiny
from tests.images import random_images

pytest.importorskip("transformers")


def test_a_network_without_pooled_output_names_its_layers(tmp_path: Path) -> None:
    config = {"depths": [1], "hidden_sizes": [8], "num_encoder_blocks": 1, "sr_ratios": [1]}
    config |= {"num_attention_heads": [1], "patch_sizes": [7], "strides": [4], "mlp_ratios": [2]}
    about = ("SegformerModel", config, "ViTImageProcessor", EXACT)
    save_tiny("segformer", tmp_path, about=about)
    backbone = load_backbone(f"hf:{tmp_path}", "DEFAULT", "cpu", runtime="torch")
    with pytest.raises(UsageError, match="no class token") as caught:
        backbone.embed(random_images(1, 32))
    assert "--layer :last_hidden_state, or another of" in str(caught.value)
    assert list(layer_shapes(backbone.network, 32))[-4] in caught.value.details["next"]
    assert backbone.dim(":last_hidden_state") == (8,)


def test_a_pooler_that_nobody_trained_is_not_used(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("pooler.")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(f"hf:{tmp_path}", "DEFAULT", "cpu", runtime="torch")
    images = random_images(2, 32)
    layers = ("embedding", "layernorm:cls")
    got = backbone.embed(images, layers)
    np.testing.assert_array_equal(got["embedding"], got["layernorm:cls"])


def test_weights_tell_networks_apart(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    folder, other = tiny("vit"), save_tiny("vit", tmp_path / "vit", seed=1)
    first = load_backbone(f"hf:{folder}", "DEFAULT", "cpu", runtime="torch").describe()
    for weights in ("none", str(other / "model.safetensors")):
        about = load_backbone(f"hf:{folder}", weights, "cpu", runtime="torch").describe()
        assert about["weights"]["sha256"] != first["weights"]["sha256"]
    for change, same in (({}, True), ({"num_attention_heads": 1}, False)):
        config = json.loads((folder / "config.json").read_text()) | change
        copy = tmp_path / str(same) / folder.name
        shutil.copytree(folder, copy)
        if change:
            (copy / "config.json").write_text(json.dumps(config))
        about = load_backbone(f"hf:{copy}", "DEFAULT", "cpu", runtime="torch").describe()
        assert (about == first) == same
    moved = load_backbone("hf:gone", str(folder), "cpu", runtime="torch").describe()
    assert moved == first


def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="not complete") as caught:
        load_backbone(f"hf:{tmp_path}")
    assert "save_pretrained" in str(caught.value)


def test_code_of_a_repository_is_not_run(tmp_path: Path) -> None:
    save_tiny("vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UsageError, match="does not know"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("change", [{"rescale_factor": 1.0}, {"resample": 1}, {"size": {}}])
def test_preparation_that_is_not_known_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_tiny("dinov2", tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FeatpipeError):
        load_backbone(f"hf:{tmp_path}")


def test_weights_of_another_network_are_refused(
    tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    model, config, *prepared = HF["vit"]
    wider = (model, {**config, "hidden_size": 32}, *prepared)
    others = (tiny("dinov2"), save_tiny("wider", tmp_path, about=wider))
    for folder in others:
        file = folder / "model.safetensors"
        with pytest.raises(WeightsError, match="weights are not for hf:") as caught:
            load_backbone(f"hf:{tiny('vit')}", str(file), "cpu")
        assert caught.value.details["where"] == str(file)


def test_classes_are_those_that_the_configuration_names(
    tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    named = load_backbone(f"hf:{tiny('labelled')}", "DEFAULT", "cpu").source_classes
    assert named is not None
    assert named.names == ("ant", "bee", "cat")
    folder = save_tiny("labelled", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["1"] = "ant"  # two columns of one name tell nothing
    (folder / "config.json").write_text(json.dumps(config))
    assert load_backbone(f"hf:{folder}", "DEFAULT", "cpu").source_classes is None
