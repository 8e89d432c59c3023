"""Frozen networks that embed images. Names are known without torch; loading one brings it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.errors import WeightsError
from featpipe.fingerprint import FileHashes
from featpipe.registry import OldRegistry
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.backbones.base import Backbone

__all__ = ["GLYPHNET", "MODELS", "WEIGHTS_SUFFIXES", "load_backbone", "weights_file"]

GLYPHNET = Path(__file__).with_name("glyphnet.safetensors")  # the weights that are shipped
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".th")

MODELS = OldRegistry("model")
MODELS.add(
    "glyphnet",
    "featpipe.backbones.glyphnet:glyphnet",
    "the embedded one: letters and digits, 128 features, always there",
)
for _name, _features in (
    ("resnet18", 512),
    ("resnet34", 512),
    ("resnet50", 2048),
    ("resnet101", 2048),
    ("resnet152", 2048),
    ("wide_resnet50_2", 2048),
    ("wide_resnet101_2", 2048),
    ("resnext50_32x4d", 2048),
    ("resnext101_32x8d", 2048),
    ("resnext101_64x4d", 2048),
):
    MODELS.add(
        _name,
        f"featpipe.backbones.torchvision_resnets:{_name}",
        f"torchvision, ImageNet, {_features} features",
    )
for _depth in (20, 32, 44, 56, 110):
    MODELS.add(
        f"cifar_resnet{_depth}",
        f"featpipe.backbones.cifar_resnets:resnet{_depth}",
        "He et al. 2015 section 4.2, CIFAR-10, 32 x 32 pixels, 64 features",
        aliases=(f"resnet{_depth}",),
    )


def weights_file(model: str, weights: str = "DEFAULT") -> Path | None:
    """Return the file that the weights come from, without importing torch.

    Parameters
    ----------
    model : str
        A name out of :data:`MODELS`.
    weights : str
        ``"DEFAULT"``, the name of published weights, or a file.

    Returns
    -------
    path : Path or None
        ``None`` for published weights, which are downloaded into torch hub's folder.

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
    name = MODELS.entry(model).name
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


def load_backbone(
    model: str,
    weights: str = "DEFAULT",
    device: str = "auto",
    image_size: int | None = None,
    fit: str = "auto",
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
    hashes : FileHashes, optional
        Remembered content hashes, so that a large weights file is hashed once.

    Returns
    -------
    backbone : Backbone

    Raises
    ------
    UnknownNameError
        If there is no such model, no such published weights or no such kind of device.
    UsageError
        If the device is not there or the image size is not possible.
    WeightsError
        If the weights cannot be downloaded or read, or belong to another architecture.

    Examples
    --------
    >>> backbone = load_backbone("glyphnet", device="cpu")
    >>> backbone.dim("avgpool")
    (128,)
    """
    from featpipe.backbones.base import open_backbone  # noqa: PLC0415 - brings torch

    return open_backbone(model, weights, device, image_size, fit, hashes or FileHashes())
