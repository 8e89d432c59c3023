"""timm:NAME: weights and their tags, preparation and classes as timm says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featpipe.backbones import architecture_of, load_backbone
from featpipe.errors import UsageError, WeightsError

timm = pytest.importorskip("timm")


def test_weights_of_a_file_fit_a_network_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit3", num_classes=7)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pth")
    backbone = load_backbone("timm:test_vit3", str(tmp_path / "mine.pth"), "cpu", runtime="torch")
    assert backbone.dim("logits") == (7,)
    with pytest.raises(WeightsError, match="weights are not for timm:test_resnet"):
        load_backbone("timm:test_resnet", str(tmp_path / "mine.pth"), "cpu")


def test_published_weights_of_timm_are_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    network = timm.create_model("test_vit3").eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def download(repository: str, file: str, **how: Any) -> str:
        asked.append(f"{repository} {file} {how['local_files_only']}")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    backbone = load_backbone("timm:test_vit3", "DEFAULT", "cpu", runtime="torch")
    assert asked == ["timm/test_vit3.r160_in1k model.safetensors True"]
    assert torch.equal(backbone.network.head.weight, network.head.weight)
    assert backbone.source_classes is not None
    assert backbone.source_classes.name == "imagenet"
    assert backbone.describe()["weights"]["trained_on"] == "ImageNet-1k"


@pytest.mark.parametrize(
    ("name", "resize", "crop", "mean", "fit"),
    [
        ("test_vit3", 168, 160, 0.5, "crop"),
        ("vit_base_patch16_224.augreg_in21k", 248, 224, 0.5, "crop"),
        ("vit_base_patch32_clip_384.openai_ft_in12k_in1k", 404, 384, 0.48145466, "squash"),
    ],
)
def test_images_are_prepared_as_the_weights_ask(
    name: str, resize: int, crop: int, mean: float, fit: str
) -> None:
    how = architecture_of(f"timm:{name}").published["DEFAULT"].preprocessing
    assert (how.resize, how.crop, how.mean[0], how.fit) == (resize, crop, mean, fit)


@pytest.mark.parametrize(
    ("name", "n_classes", "trained_on"),
    [
        ("test_vit3", 1000, "ImageNet-1k"),
        ("resnetv2_50x1_bit.goog_in21k", 21843, ""),
        ("vit_base_patch16_clip_224.openai", None, ""),  # 512 outputs, but no classes
        ("vit_base_patch16_siglip_224.webli", None, ""),  # no outputs at all
    ],
)
def test_classes_are_known_by_their_number(
    name: str, n_classes: int | None, trained_on: str
) -> None:
    published = architecture_of(f"timm:{name}").published["DEFAULT"]
    classes = published.source_classes()
    assert (classes and len(classes.ids)) == n_classes
    assert published.trained_on == trained_on
    if classes:
        assert len(set(classes.ids)) == len(classes.names) == n_classes
        assert all(one.startswith("n0") or one.startswith("n1") for one in classes.ids)


def test_a_network_without_a_classifier_has_no_logits() -> None:
    architecture = architecture_of("timm:vit_base_patch16_siglip_224.webli")
    assert architecture.classifier == ""
    assert set(architecture.layers) == {"embedding"}


def test_weights_are_published_under_their_tag() -> None:
    for name in ("timm:test_vit3", "timm:test_vit3.r160_in1k"):
        published = architecture_of(name).published
        assert set(published) == {"DEFAULT", "R160_IN1K"}
        assert published["DEFAULT"].name == "r160_in1k"
    with pytest.raises(UsageError, match="no published weights for timm:test_vit4"):
        load_backbone("timm:test_vit4")
