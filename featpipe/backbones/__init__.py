"""Frozen networks that embed images. Names are known without torch; loading one brings it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featpipe.datasets import CIFAR10_TRAIN, IMAGENET
from featpipe.errors import UsageError, WeightsError
from featpipe.fingerprint import FileHashes
from featpipe.provenance import package_version
from featpipe.registry import Registry
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.backbones.architecture import Architecture
    from featpipe.backbones.base import load_backbone as load_backbone
    from featpipe.backbones.runtime import Runtime

GLYPHNET = Path(__file__).with_name("glyphnet.safetensors")
FITS = ("auto", "crop", "whole")  # ways to make images square
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".th")

# Part of every identity: raise it when preprocessing.py starts to give other numbers.
PREPROCESSING_VERSION = 2


class Automatic(NamedTuple):
    """What is known of a model without torch, and chosen where its user says nothing."""

    weights: str  # the published weights that DEFAULT stands for
    image_size: int  # side of the network's input in pixels
    margin: bool  # whether images are resized to more than is cropped from them
    layer: str = "avgpool"  # its activations are the features
    trained_on: str = ""  # labelled images its published weights were trained on; empty: unknown


TORCHVISION = {
    name: Automatic(f"IMAGENET1K_{version}", 224, margin=True, trained_on=IMAGENET)
    for name, version in {
        "resnet18": "V1",
        "resnet34": "V1",
        "resnet50": "V2",
        "resnet101": "V2",
        "resnet152": "V2",
        "wide_resnet50_2": "V2",
        "wide_resnet101_2": "V2",
        "resnext50_32x4d": "V2",
        "resnext101_32x8d": "V2",
        "resnext101_64x4d": "V1",
    }.items()
}
_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_CIFAR10_V1 = Automatic("CIFAR10_V1", 32, margin=False, trained_on=CIFAR10_TRAIN)
CIFAR_RESNETS = {
    "glyphnet": Automatic("GLYPHS_V1", 32, margin=False, trained_on="rendered glyphs"),
    **{f"cifar_resnet{depth}": _CIFAR10_V1 for depth in _CIFAR_DEPTHS},
}
_FOR_FINETUNING = (
    *("resnet9", "resnet18_32", "resnet18_32_max", "resnet18_32_stem", "resnet18_32_stem_max"),
    *("convnet", "timm"),
)

MODELS: Registry[Architecture] = Registry(
    "model",
    {
        "glyphnet": "featpipe.backbones.cifar_resnet",
        **dict.fromkeys(TORCHVISION, "featpipe.backbones.architecture"),
        **dict.fromkeys(CIFAR_RESNETS, "featpipe.backbones.cifar_resnet"),
        **dict.fromkeys(_FOR_FINETUNING, "featpipe.finetune.nets"),
    },
    aliases={f"resnet{depth}": f"cifar_resnet{depth}" for depth in _CIFAR_DEPTHS},
)

RUNTIMES: Registry[type[Runtime]] = Registry("runtime", {"torch": "featpipe.backbones.runtime"})


def __getattr__(name: str) -> Any:
    if name != "load_backbone":  # which brings torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("featpipe.backbones.base").load_backbone


def backbone_name(model: str) -> str:
    """Return the registered name of a model; one for fine-tuning only is refused."""
    family, colon, _ = model.partition(":")
    name = MODELS.canonical(family)
    if colon:
        raise UsageError(
            f"{model!r} is for fine-tuning only: its features cannot be extracted.",
            next_step=f"featpipe finetune --model {model}, or another --model",
        )
    return name


def weights_file(model: str, weights: str = "DEFAULT") -> Path | None:
    """Return the file that the weights come from, or ``None`` for those that are downloaded.

    Raises WeightsError if ``weights`` reads like a file and there is none.
    """
    name = backbone_name(model)
    path = user_path(weights)
    if path.is_file():
        return path
    if path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1:
        raise WeightsError(
            "There is no such weights file.",
            where=path,
            expected=f"a file ({', '.join(WEIGHTS_SUFFIXES)})",
            got="a folder" if path.is_dir() else "nothing there",
        )
    shipped = ("DEFAULT", CIFAR_RESNETS["glyphnet"].weights)
    return GLYPHNET if name == "glyphnet" and weights.upper() in shipped else None


def automatic(model: str, weights: str = "DEFAULT") -> Automatic:
    """Return what is chosen where the user says nothing.

    torch is imported only for a model without published weights or of another package, whose
    :class:`~featpipe.backbones.architecture.Architecture` has to be asked.
    """
    name = backbone_name(model)
    known = TORCHVISION.get(name) or CIFAR_RESNETS.get(name)
    return known or MODELS.get(name).automatic(weights)


def weights_identity(model: str, weights: str, hashes: FileHashes) -> str:
    """Return the SHA-256 of a weights file, or name and package of published weights."""
    if path := weights_file(model, weights):
        return hashes.one(path)
    package = MODELS.package_of(backbone_name(model)) or "torchvision"
    name = weights.upper()
    meant = automatic(model).weights if name == "DEFAULT" else name
    return f"{meant} of {package} {package_version(package)}"


def effective_fit(fit: str, *, margin: bool) -> str:
    """Return the fit as identities hold it: with no margin to cut, ``crop`` does what auto does."""
    return "auto" if fit == "crop" and not margin else fit


def effective_runtime(runtime: str) -> str:
    """Return the runtime as identities hold it: exact ones give the same numbers as ``torch``."""
    plain = runtime == "torch" or RUNTIMES.get(runtime).exact
    return "torch" if plain else runtime
