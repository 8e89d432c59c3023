"""Frozen networks that embed images. Names are known without torch; loading one brings it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.errors import UsageError, WeightsError
from featpipe.fingerprint import FileHashes
from featpipe.provenance import package_version
from featpipe.registry import Registry
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.backbones.architecture import Architecture
    from featpipe.backbones.base import Backbone
    from featpipe.backbones.runtime import Runtime

GLYPHNET = Path(__file__).with_name("glyphnet.safetensors")
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".th")

# Part of every identity: raise it when preprocessing.py starts to give other numbers.
PREPROCESSING_VERSION = 2

_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_FOR_FINETUNING = (
    *("resnet9", "resnet18_32", "resnet18_32_max", "resnet18_32_stem", "resnet18_32_stem_max"),
    *("convnet", "timm"),
)

MODELS: Registry[Architecture] = Registry(
    "model",
    {
        "glyphnet": "featpipe.backbones.glyphnet",
        **dict.fromkeys(_TORCHVISION, "featpipe.backbones.torchvision"),
        **{f"cifar_resnet{depth}": "featpipe.backbones.cifar_resnet" for depth in _CIFAR_DEPTHS},
        **dict.fromkeys(_FOR_FINETUNING, "featpipe.finetune.nets"),
    },
    aliases={f"resnet{depth}": f"cifar_resnet{depth}" for depth in _CIFAR_DEPTHS},
)

RUNTIMES: Registry[type[Runtime]] = Registry("runtime", {"torch": "featpipe.backbones.runtime"})


def backbone_name(model: str) -> str:
    """Return the registered name of a model that can be a backbone; torch is not imported.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    UsageError
        If it is one for fine-tuning only (``timm:NAME``).
    """
    family, colon, _ = model.partition(":")
    name = MODELS.canonical(family)
    if colon:
        raise UsageError(
            f"{model!r} is for fine-tuning only: its features cannot be extracted.",
            next_step=f"featpipe finetune --model {model}, or another --model",
        )
    return name


def weights_file(model: str, weights: str = "DEFAULT") -> Path | None:
    """Return the file that the weights come from, without importing torch.

    It is ``None`` for published weights, which are downloaded into torch hub's folder.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    WeightsError
        If ``weights`` reads like a file and there is none.

    Examples
    --------
    >>> weights_file("glyphnet").name
    'glyphnet.safetensors'
    >>> weights_file("resnet50", "IMAGENET1K_V2") is None
    True
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
    embedded = name == "glyphnet" and weights.upper() in ("DEFAULT", "GLYPHS_V1")
    return GLYPHNET if embedded else None


def weights_identity(model: str, weights: str, hashes: FileHashes) -> str:
    """Return what tells these weights from others, without importing torch.

    The SHA-256 of a file; of published weights, their name and the package that knows them.
    """
    if path := weights_file(model, weights):
        return hashes.one(path)
    from importlib.metadata import entry_points  # noqa: PLC0415 - a tenth of "up to date"

    brought = [point.dist for point in entry_points(group=MODELS.group, name=backbone_name(model))]
    package = brought[0].name if brought and brought[0] else "torchvision"
    return f"{weights} of {package} {package_version(package)}"


def load_backbone(  # noqa: PLR0913 - one keyword per property of a backbone
    model: str,
    weights: str = "DEFAULT",
    device: str = "auto",
    image_size: int | None = None,
    fit: str = "auto",
    *,
    runtime: str = "torch",
    hashes: FileHashes | None = None,
) -> Backbone:
    """Load a frozen backbone, ready to embed.

    Parameters
    ----------
    model : str
        A name out of :data:`MODELS`.
    weights : str
        ``"DEFAULT"``, the name of published weights (downloaded once into torch hub's folder),
        or a file (``.safetensors``, ``.pt``, ``.pth``, ``.th``).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. A device that is absent is
        an error.
    image_size : int, optional
        Side of the network's input in pixels; by default that of the weights.
    fit : {"auto", "crop", "whole"}
        See :class:`featpipe.backbones.preprocessing.Preprocessing`.
    runtime : str
        A name out of :data:`RUNTIMES`.
    hashes : FileHashes, optional
        Remembered content hashes, so that a large weights file is hashed once.

    Returns
    -------
    backbone : Backbone

    Raises
    ------
    UnknownNameError
        If there is no such model, published weights, runtime or kind of device.
    UsageError
        If the device is not there, the image size is not possible, or the model has no published
        weights and none are given.
    WeightsError
        If the weights cannot be downloaded or read, or belong to another architecture.

    Examples
    --------
    >>> backbone = load_backbone("glyphnet", device="cpu")
    >>> backbone.dim("avgpool")
    (128,)
    """
    from featpipe.backbones.base import Backbone  # noqa: PLC0415 - brings torch
    from featpipe.backbones.runtime import choose_device  # noqa: PLC0415
    from featpipe.backbones.weights import find_weights, load_network  # noqa: PLC0415

    where = choose_device(device)
    architecture = MODELS.get(backbone_name(model))
    found = find_weights(architecture, weights, hashes or FileHashes())
    preprocessing = (
        found.published.preprocessing if found.published else architecture.file_preprocessing
    )
    preprocessing = preprocessing.with_fit(fit).with_image_size(image_size)
    network = load_network(architecture, found.path)
    return Backbone(architecture, network, found, preprocessing, where, runtime)
