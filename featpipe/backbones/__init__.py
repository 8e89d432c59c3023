"""Frozen networks that embed images. Names are known without torch; loading one brings it."""

from __future__ import annotations

import importlib
import json
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featpipe.datasets import CIFAR10_TRAIN, IMAGENET
from featpipe.errors import UnknownNameError, UsageError, WeightsError
from featpipe.files import open_regular
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
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8")  # of the forward pass
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
# Blocks in the third stage, and convolutions in each.
_BLOCKS = {
    "resnet18": (2, 2),
    "resnet34": (6, 2),
    **dict.fromkeys(("resnet50", "wide_resnet50_2", "resnext50_32x4d"), (6, 3)),
    **dict.fromkeys(("resnet101", "wide_resnet101_2"), (23, 3)),
    **dict.fromkeys(("resnext101_32x8d", "resnext101_64x4d"), (23, 3)),
    "resnet152": (36, 3),
}
_LONGEST_HEADER = 1 << 24  # bytes; that of a ResNet-152 has 60 000
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

RUNTIMES: Registry[type[Runtime]] = Registry(
    "runtime",
    {"torch": "featpipe.backbones.runtime", "openvino": "featpipe.backbones.openvino"},
)


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
            got="a folder" if path.is_dir() else "no file" if path.exists() else "nothing there",
        )
    shipped = ("DEFAULT", CIFAR_RESNETS["glyphnet"].weights)
    return GLYPHNET if name == "glyphnet" and weights.upper() in shipped else None


def check_tensors(model: str, weights: str) -> None:
    """Refuse weights of another ResNet: by the names of a file's tensors, or by their own name.

    torch is not imported: a plan tells so before its first task. Names tell the depth only; the
    shapes are compared when the weights are loaded. A file that has no such names passes.

    Raises
    ------
    WeightsError
        If the file has more or fewer blocks in its third stage, or blocks of another kind.
    UnknownNameError
        If the model has no published weights of that name.
    """
    path, name = user_path(weights), MODELS.canonical(model.partition(":")[0])
    if name in TORCHVISION and weights.upper().startswith("IMAGENET1K_V"):
        newest = TORCHVISION[name].weights
        known = [one for one in ("IMAGENET1K_V1", "IMAGENET1K_V2") if one <= newest]
        if weights.upper() not in known:
            what = f"There are no weights named {weights!r} for {name}."
            raise UnknownNameError(what, weights.upper(), known)
    expected = _BLOCKS.get(name)
    if expected is None or not path.is_file():
        return
    try:
        names = " ".join(_tensor_names(path))
    except Exception:  # whatever a damaged header leads to; loading the file explains it
        return
    found = [tuple(map(int, pair)) for pair in re.findall(r"layer3\.(\d+)\.conv(\d)\.", names)]
    got = (max(block for block, _ in found) + 1, max(conv for _, conv in found)) if found else None
    if got not in (None, expected):
        raise WeightsError(
            f"These are no weights of {model}.",
            where=path,
            expected="layer3 with {} blocks of {} convolutions".format(*expected),
            got="{} blocks of {}".format(*got),
            next_step="name model and weights together; in a recipe, under each: [{model: …,"
            " weights: …}, …]",
        )


def _tensor_names(path: Path) -> list[str]:
    """Return the texts in the header of a weights file, the names of its tensors among them."""
    with open_regular(path) as stream:
        if path.suffix == ".safetensors":
            length = int.from_bytes(stream.read(8), "little")
            return list(json.loads(stream.read(min(length, _LONGEST_HEADER))))
        with zipfile.ZipFile(stream) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as pickled:  # its instructions are listed, none is followed
                codes = pickletools.genops(pickled.read(_LONGEST_HEADER))
                return [text for _, text, _ in codes if isinstance(text, str)]


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


def resolve_fit(fit: str, side: int, sizes: Iterable[tuple[int, int] | None]) -> str:
    """Return ``"crop"``, ``"fill"`` or ``"whole"``: what a fit means for a dataset.

    Parameters
    ----------
    fit : {"auto", "crop", "whole"}
        Another name is returned as it is.
    side : int
        Of the network's input, in pixels.
    sizes : iterable
        Height and width that all images of a split have; ``None`` where they differ or nobody
        knows.

    Examples
    --------
    >>> resolve_fit("auto", 224, [(96, 96), (96, 96)]), resolve_fit("auto", 224, [(96, 96), None])
    ('fill', 'crop')
    """
    if fit != "auto":
        return fit
    one = set(sizes)
    size = one.pop() if len(one) == 1 else None
    return "crop" if size is None or min(size) > side else "fill"


def fit_identity(fit: str, *, margin: bool) -> str:
    """Return the fit as identities hold it.

    ``"auto"`` is an image of which no margin is cut, which is what ``auto`` has always done with
    small ones; where there is no margin to cut, ``crop`` does the same.
    """
    return "auto" if fit == "fill" or (fit == "crop" and not margin) else fit


def fit_of_identity(fit: str) -> str:
    """Return the fit that an identity was made of, for new images of any size."""
    return "fill" if fit == "auto" else fit


def effective_runtime(
    runtime: str | None, precision: str = "float32", device: str = "auto"
) -> str | None:
    """Return the runtime as identities hold it: ``None`` for all that give torch's numbers.

    torch is imported only to choose one for another precision than float32.
    """
    if precision != "float32" and runtime is None:
        from featpipe.backbones.runtime import choose  # noqa: PLC0415 - brings torch

        return choose(precision, device)[0]
    exact = runtime in (None, "torch") or RUNTIMES.get(str(runtime)).exact
    return None if precision == "float32" and exact else runtime
