"""Networks of torchvision, timm and transformers: what they promise, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from featpipe.backbones import architecture_of, backbone_name, load_backbone, located
from featpipe.backbones.base import Backbone
from featpipe.cli import main
from featpipe.errors import (
    FeatpipeError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
    WeightsError,
)
from featpipe.extraction import Extract
from featpipe.prediction import open_predictor, predict
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests.images import photo_folder, pictures, random_images

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
CROP = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
EXACT = {"size": {"height": 32, "width": 32}}
SQUASH = {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}
NAMES = {0: "ant", 1: "bee", 2: "cat"}
# Model and configuration of transformers, the image processor and its settings.
HF: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "vit": ("ViTModel", TINY, "ViTImageProcessor", EXACT),
    "labelled": (
        *("ViTForImageClassification", {**TINY, "id2label": NAMES}),
        *("DeiTImageProcessor", SQUASH),
    ),
    "dinov2": ("Dinov2Model", TINY, "BitImageProcessor", CROP),
    "registers": (
        *("Dinov2WithRegistersModel", {**TINY, "num_register_tokens": 4}),
        *("BitImageProcessor", CROP),
    ),
    "clip": ("CLIPVisionModel", TINY, "CLIPImageProcessor", CROP),
    "convnext": (
        *("ConvNextModel", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
        *("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    ),
    "swin": (
        "SwinModel",
        {
            **{"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
            **{"window_size": 4, "image_size": 32, "patch_size": 4},
        },
        *("ViTImageProcessor", EXACT),
    ),
}
TIMM = ("test_resnet", "test_vit3", "test_convnext", "test_efficientnet")
TORCHVISION = ("resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "convnext_tiny")
SIDES = {name: 64 for name in TORCHVISION if name != "vit_b_32"}
LONG = {"vit_b_32", "swin_t", "convnext_tiny", "test_efficientnet"}


def save_tiny(kind: str, folder: Path, seed: int = 0, about: Any = None) -> Path:
    """Write a tiny network of transformers and its image processor."""
    model, config, processor, how = about or HF[kind]
    torch.manual_seed(seed)
    built = getattr(transformers, model)
    network = built(built.config_class(**config)).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0, 0.2)
    network.save_pretrained(folder)
    getattr(transformers, processor)(**how).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny network of transformers, by its kind."""
    return cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))


def cases() -> list[Any]:
    names = [*(f"torchvision:{n}" for n in TORCHVISION), *(f"timm:{n}" for n in TIMM)]
    names += [f"hf:{n}" for n in HF]
    marks = {True: [pytest.mark.long], False: []}
    return [pytest.param(n, marks=marks[n.partition(":")[2] in LONG], id=n) for n in names]


def opened(spec: str, tiny: Callable[[str], Path], **how: Any) -> Backbone:
    """Return a network of a family: random weights, those of transformers from a folder."""
    family, _, name = spec.partition(":")
    if family == "hf":
        return load_backbone(f"hf:{tiny(name)}", "DEFAULT", "cpu", **how)
    return load_backbone(spec, "none", "cpu", SIDES.get(name), **how)


def expected(backbone: Backbone, folder: Path | None, image: Image.Image) -> torch.Tensor:
    """Return the library's embedding of an image that the library has prepared."""
    family, _, name = backbone.name.partition(":")
    network = backbone.network
    if family == "hf":
        assert folder is not None
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        out = getattr(network, "vit", network)(pixels)
        pooled = out.get("pooler_output")
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
    if family == "timm":
        config = timm.data.resolve_model_data_config(network)
        pixels = timm.data.create_transform(**config)(image)[None]
        return network.forward_head(network.forward_features(pixels), pre_logits=True)
    from torchvision import models

    preset = models.get_model_weights(name if family == "torchvision" else backbone.name).DEFAULT
    side = backbone.preprocessing.crop
    prepare = preset.transforms(crop_size=side, resize_size=backbone.preprocessing.resize)
    pixels = prepare(image)[None]
    kept: list[torch.Tensor] = []
    last = architecture_of(backbone.name).classifier
    network.get_submodule(last).register_forward_hook(lambda m, given, out: kept.append(given[0]))
    network(pixels)
    return kept[0]


@pytest.mark.parametrize("spec", cases())
def test_the_embedding_is_that_of_the_library(spec: str, tiny: Callable[[str], Path]) -> None:
    backbone = opened(spec, tiny, runtime="torch")
    image = Image.fromarray(pictures(1, 72)[0]).resize((90, 72), Image.Resampling.BICUBIC)
    prepared = backbone.preprocessing.prepare(np.asarray(image))[None]
    got = backbone.embed(prepared)[backbone.default_layer]
    assert got.shape == (1, *backbone.dim(backbone.default_layer))
    np.testing.assert_array_equal(got, backbone.embed(prepared)[backbone.default_layer])
    with torch.inference_mode():
        folder = tiny(spec.partition(":")[2]) if spec.startswith("hf:") else None
        wanted = expected(backbone, folder, image).numpy()
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted)
    again = opened(spec, tiny, runtime="torch").describe()
    assert again == backbone.describe()
    assert ("logits" in backbone._aliases) == (backbone.num_classes > 0)
    assert backbone.num_classes == (3 if spec == "hf:labelled" else 1000 * (spec[:2] != "hf"))


@pytest.mark.long
@pytest.mark.parametrize("spec", cases())
def test_openvino_gives_the_same(
    spec: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there, here = (opened(spec, tiny, runtime=name) for name in ("openvino", "torch"))
    images = random_images(2, here.preprocessing.crop)
    layer = here.default_layer
    a, b = (one.embed(images)[layer] for one in (there, here))
    assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("spec", "module", "prefix", "tokens", "width"),
    [
        ("timm:test_vit3", "blocks.1", None, None, 96),
        ("hf:vit", "layers.1", 1, 17, 16),
        ("hf:registers", "encoder.layer.1", 5, 21, 16),
    ],
)
def test_tokens_are_read_without_those_in_front(
    spec: str,
    module: str,
    prefix: int | None,
    tokens: int | None,
    width: int,
    tiny: Callable[[str], Path],
) -> None:
    backbone = opened(spec, tiny, runtime="torch")
    prefix = prefix or backbone.network.num_prefix_tokens
    assert backbone.network.num_prefix_tokens == prefix
    images = random_images(2, backbone.preprocessing.crop)
    layers = (f"{module}:map", f"{module}:cls", f"{module}:mean", module)
    whole, cls, mean, bare = (backbone.embed(images, layers)[layer] for layer in layers)
    assert tokens in (None, whole.shape[1])
    assert whole.shape[2] == width
    np.testing.assert_array_equal(cls, whole[:, 0])
    np.testing.assert_allclose(mean, whole[:, prefix:].mean(1), atol=1e-6)
    np.testing.assert_array_equal(bare, mean)
    assert [backbone.dim(layer) for layer in layers] == [whole.shape[1:], *[(width,)] * 3]


def test_channels_that_come_last_are_kept(tiny: Callable[[str], Path]) -> None:
    backbone = load_backbone("torchvision:swin_t", "none", "cpu", 64, runtime="torch")
    assert backbone.dim("features.1") == (96,)
    assert backbone.dim("features.1:map") == (16, 16, 96)
    with pytest.raises(UsageError, match="no class token"):
        backbone.dim("features.1:cls")


def test_a_network_without_pooled_output_names_its_layers(tmp_path: Path) -> None:
    config = {"depths": [1], "hidden_sizes": [8], "num_encoder_blocks": 1, "sr_ratios": [1]}
    config |= {"num_attention_heads": [1], "patch_sizes": [7], "strides": [4], "mlp_ratios": [2]}
    about = ("SegformerModel", config, "ViTImageProcessor", EXACT)
    save_tiny("segformer", tmp_path, about=about)
    backbone = load_backbone(f"hf:{tmp_path}", "DEFAULT", "cpu", runtime="torch")
    with pytest.raises(UsageError, match="no class token") as caught:
        backbone.embed(random_images(1, 32))
    assert "--layer :last_hidden_state, or another of" in str(caught.value)
    assert list(backbone._shapes)[-4] in caught.value.details["next"]
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


def test_weights_of_a_file_fit_a_network_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit3", num_classes=7)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pth")
    backbone = load_backbone("timm:test_vit3", str(tmp_path / "mine.pth"), "cpu", runtime="torch")
    assert backbone.dim("logits") == (7,)
    with pytest.raises(WeightsError, match="no weights of timm:test_resnet"):
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


def test_names_are_one_wherever_a_folder_is(tiny: Callable[[str], Path]) -> None:
    folder = tiny("vit")
    assert backbone_name(f"hf:{folder}") == f"hf:{folder.name}"
    assert located(f"hf:{folder}") == f"hf:{folder}"
    assert backbone_name("torchvision:resnet50") == "resnet50"
    assert architecture_of("torchvision:resnet50") is architecture_of("resnet50")


def test_a_folder_with_the_name_of_a_model_of_a_library_is_not_that_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("test_vit", "vit_b_16", "tiny"):
        (tmp_path / name).mkdir()
    for model in ("timm:test_vit", "torchvision:vit_b_16"):
        assert located(model) == backbone_name(model) == model
    assert located("hf:tiny") == f"hf:{tmp_path.resolve() / 'tiny'}"


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("timm:test_vitt", "did you mean 'test_vit'"),
        ("timm:test_vit.r160", "test_vit.r160_in1k"),
        ("torchvision:vit_b_17", "did you mean 'vit_b_16'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_librarys_nearest(spec: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_backbone(spec, "none")
    assert nearest in str(caught.value)


def test_what_cannot_be_fetched_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for spec, way in (("timm:test_resnet", "--weights FILE"), ("hf:no/such", "hf:FOLDER")):
        with pytest.raises(WeightsError, match="could not be fetched") as caught:
            load_backbone(spec, download=False)
        assert way in str(caught.value)


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


def test_a_missing_extra_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, extra in (("timm:test_vit", "timm"), ("hf:a/b", "hf")):
        step = Extract(model=spec, dataset="digits")
        package = {"hf": "transformers"}.get(extra, extra)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=package) as caught:
            step.check_requirements()
        assert f"featpipe[{extra}]" in str(caught.value)


def test_every_command_takes_them(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spec = f"hf:{tiny('labelled')}"
    folder = photo_folder(tmp_path / "photos", n=6)
    context = Context(Workspace(tmp_path))
    step = Extract(model=spec, dataset=f"folder:{folder}", runtime="torch")
    assert not step.status(context).done
    step.run(context)
    assert step.status(context).done
    for command in (
        ["centroid", "--model", spec, "--protocol", "holdout:0.5"],
        [
            "finetune",
            "--model",
            spec,
            "--dataset",
            f"folder:{folder}",
            "--epochs",
            "1",
            "--batch-size",
            "4",
        ],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
    for result in sorted((tmp_path / "data" / "results").glob("*.json")):
        answers = predict(open_predictor(context.workspace, result.stem), [folder / "ant/0.png"])
        assert answers[0].label in ("ant", "bee", "cät")


def test_models_are_listed_without_any_library() -> None:
    code = (
        "import sys\nfrom featpipe.cli import main\ntry: main(['models'])\n"
        "except SystemExit: print({'torch', 'timm', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hf:REPOSITORY or hf:FOLDER" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "set()"
