"""``hf:REPOSITORY`` or ``hf:FOLDER``: vision models of transformers with their image processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from featpipe.backbones import MODELS, backbone_name
from featpipe.backbones.architecture import (
    EMBEDDING,
    Architecture,
    Family,
    PublishedWeights,
    WeightsInfo,
    cached_file,
    load_state_dict,
)
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import UsageError, WeightsError
from featpipe.fingerprint import of_file
from featpipe.labelmap import SourceClasses
from featpipe.steps.grammar import LOGITS
from featpipe.workspace import user_path

transformers.utils.logging.set_verbosity_error()  # problems are raised as errors
transformers.utils.logging.disable_progress_bar()

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Names of the parameters of prefix tokens.
_PREFIX = ("cls_token", "class_embedding", "distillation_token")


def _file(name: str, names: Sequence[str], download: bool) -> Path:
    """Return the first of several files that a folder or a repository has."""
    folder = user_path(name)
    if not folder.is_dir():
        return cached_file(f"hf:{name}", name, names, download)
    for one in names:
        if (folder / one).is_file():
            return folder / one
    what = f"The folder of hf:{folder.resolve().name} is not complete."
    advice = "save model and image processor into it with save_pretrained"
    raise WeightsError(what, where=folder, expected=" or ".join(names), next_step=advice)


def _architecture(name: str, download: bool) -> Architecture:
    spec = backbone_name(f"hf:{name}")
    described = _file(name, ["config.json"], download)
    config = _read(AutoConfig, described.parent, spec)
    config = getattr(config, "vision_config", config)  # the image tower of CLIP and the like
    preprocessor = _file(name, ["preprocessor_config.json"], download)
    prepared = _preprocessing(preprocessor.parent, spec)
    labelled = (config.architectures or [""])[0].endswith("ForImageClassification")
    auto = AutoModelForImageClassification if labelled else AutoModel

    def build(num_classes: int) -> nn.Module:
        return _with_prefix(auto.from_config(config), config)

    def read(info: WeightsInfo) -> nn.Module:
        assert info.path is not None
        with torch.device("meta"):
            kind: Any = type(auto.from_config(config))
        state, what = load_state_dict(info.path), f"These weights are not for {spec}."
        try:
            network, report = kind.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
        except RuntimeError as error:
            got = str(error).partition("\n")[0]
            raise WeightsError(what, where=info.path, got=got) from None
        if missing := sorted(report["missing_keys"]):
            if not all(key.startswith("pooler.") for key in missing):
                got = f"{len(missing)} missing: {missing[0]} …"
                raise WeightsError(what, where=info.path, got=got)
            network.pooler = None  # else random
        return _with_prefix(network, config)

    # The embedding of a classifier is that of its base model.
    base = getattr(auto._model_mapping[type(config)], "base_model_prefix", "") if labelled else ""
    names = {EMBEDDING: (f"{base}:pooler_output", f"{base}:last_hidden_state:cls")}
    published = PublishedWeights(
        spec.removeprefix("hf:"),
        partial(_file, name, _WEIGHTS),
        prepared,
        partial(_classes, config) if labelled else lambda: None,
    )
    return Architecture(
        name=spec,
        build=build,
        classifier="",
        file_preprocessing=prepared,
        published={"DEFAULT": published},
        layers={**names, LOGITS: (":logits",)} if labelled else names,
        configuration=of_file(described),
        read=read,
    )


def _read(auto: Any, folder: Path, spec: str) -> Any:
    """Return an object of transformers for the JSON files of a folder; none of their code runs."""
    try:
        return auto.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as error:
        what = f"transformers does not know the network of {spec}."
        got = str(error).strip().partition("\n")[0][:200]
        advice = "one that runs without code of its repository; or bring it as a module: "
        advice += "extract(…, backbone=…) in Python"
        raise UsageError(what, where=folder, got=got, next_step=advice) from None


def _preprocessing(folder: Path, spec: str) -> Preprocessing:
    """Return the image processor as a Preprocessing; UsageError if it does anything else."""
    found = _read(AutoImageProcessor, folder, spec).to_dict()
    size, crop = found.get("size") or {}, found.get("crop_size") or {}
    square, cropped = (  # 0 where they are not square
        one.get("height") or 0 if one.get("height") == one.get("width") else 0
        for one in (size, crop)
    )
    shortest = size.get("shortest_edge")
    resize, fit = (shortest, "crop") if shortest else (square, "squash")
    side = 0 if shortest else square  # 0: without a crop, images of any width
    if found.get("do_center_crop"):
        side = cropped
    elif shortest and "crop_pct" in found:  # ConvNeXt's, which has a margin only below 384
        side = shortest
        large = shortest >= 384
        resize, fit = (side, "squash") if large else (int(side / found["crop_pct"]), "crop")
    odd = ("do_flip_channel_order", "rescale_offset", "do_pad")
    plain = found.get("do_resize", True) and not any(found.get(key) for key in odd)
    scaled = found.get("do_rescale", True) and abs(found.get("rescale_factor", 0) * 255 - 1) < 1e-6
    how: Any = _INTERPOLATIONS.get(int(found.get("resample", 2)))
    if not (side and resize >= side and plain and scaled and how):
        what = f"The images of {spec} cannot be prepared as its image processor asks."
        where = folder / "preprocessor_config.json"
        expected = "square images, resized (bilinear or bicubic), cropped, scaled and normalised"
        got = ", ".join(f"{k}: {v}" for k, v in found.items())[:300]
        raise UsageError(what, where=where, expected=expected, got=got)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if found.get("do_normalize", True):
        mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
    return Preprocessing(resize, side, mean, std, how, fit)


def _with_prefix(network: nn.Module, config: Any) -> nn.Module:
    """Return the network with the attribute ``num_prefix_tokens``."""
    ends = [name.rpartition(".")[2] for name, _ in network.named_parameters()]
    prefix = sum(end in _PREFIX for end in ends)
    registers = getattr(config, "num_register_tokens", 0) if prefix else 0
    vars(network)["num_prefix_tokens"] = prefix + registers
    return network


def _classes(config: Any) -> SourceClasses | None:
    """Return the classes of a configuration; those of ImageNet with their WordNet ids."""
    names = tuple(config.id2label[number] for number in range(config.num_labels))
    imagenet = SourceClasses.load("imagenet")
    if len(names) == len(imagenet.names) and names[0].startswith(imagenet.names[0]):
        return imagenet
    return SourceClasses(names, names) if len(set(names)) == len(names) else None


MODELS.register(Family("hf", _architecture))
