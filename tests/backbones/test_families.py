"""What networks of torchvision, timm and transformers have in common, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.backbones import architecture_of, backbone_name, load_backbone, located
from featpipe.backbones.base import Backbone
from featpipe.cli import main
from featpipe.errors import MissingExtraError, UnknownNameError, WeightsError
from featpipe.extraction import Extract
from featpipe.prediction import open_predictor, predict
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests.backbones.tiny import HF
from tests.images import photo_folder, pictures, random_images

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
TIMM = ("test_resnet", "test_vit3", "test_convnext", "test_efficientnet")
TORCHVISION = ("resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "convnext_tiny")
SIDES = {name: 64 for name in TORCHVISION if name != "vit_b_32"}
LONG = {"vit_b_32", "swin_t", "convnext_tiny", "test_efficientnet"}


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
    assert backbone.num_classes == (3 if spec == "hf:labelled" else 1000 * (spec[:2] != "hf"))
    if backbone.num_classes:
        assert backbone.dim("logits") == (backbone.num_classes,)
    else:
        with pytest.raises(UnknownNameError, match="no layer named 'logits'"):
            backbone.dim("logits")


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
