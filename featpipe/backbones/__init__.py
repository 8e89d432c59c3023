"""Frozen networks that embed images. Names are known without torch; loading one imports it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featpipe import lazy
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

pickletools, zipfile = lazy.Lazy("pickletools"), lazy.Lazy("zipfile")

GLYPHNET = Path(__file__).with_name("glyphnet.safetensors")
FITS = ("auto", "crop", "whole")  # ways to make images square
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8")  # of the forward pass
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
UNTRAINED = "none"  # instead of weights: random ones

# Part of every identity: raise it when a change of preprocessing.py changes its output.
PREPROCESSING_VERSION = 2


class Automatic(NamedTuple):
    """Default options of a model, known without torch."""

    weights: str  # the published weights that DEFAULT means
    image_size: int  # side of the network's input in pixels
    margin: bool  # whether images are resized to more than is cropped from them
    layer: str = "avgpool"  # its activations are the features
    trained_on: str = ""  # labelled dataset of the published weights; empty: unknown
    fit: str = "crop"  # as the weights were tested


# Version of the default weights, blocks in the third stage, convolutions per block.
_RESNETS = {
    "resnet18": (1, 2, 2),
    "resnet34": (1, 6, 2),
    "resnet50": (2, 6, 3),
    "resnet101": (2, 23, 3),
    "resnet152": (2, 36, 3),
    "wide_resnet50_2": (2, 6, 3),
    "wide_resnet101_2": (2, 23, 3),
    "resnext50_32x4d": (2, 6, 3),
    "resnext101_32x8d": (2, 23, 3),
    "resnext101_64x4d": (1, 23, 3),
}
TORCHVISION = {
    name: Automatic(f"IMAGENET1K_V{version}", 224, margin=True, trained_on=IMAGENET)
    for name, (version, *_) in _RESNETS.items()
}
_LONGEST_HEADER = 1 << 24  # bytes; a ResNet-152 has 60,000
_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_CIFAR10_V1 = Automatic("CIFAR10_V1", 32, margin=False, trained_on=CIFAR10_TRAIN)
CIFAR_RESNETS = {
    "glyphnet": Automatic("GLYPHS_V1", 32, margin=False, trained_on="rendered glyphs"),
    **{f"cifar_resnet{depth}": _CIFAR10_V1 for depth in _CIFAR_DEPTHS},
}
UNTRAINED_NETWORKS = {
    "resnet9": "untrained: ResNet-9 for 32 × 32 pixels, 6.6 million parameters",
    "resnet18_32": "untrained: ResNet-18 for 32 × 32, 4 × 4 average pooling",
    "resnet18_32_max": "untrained: the same with 4 × 4 maximum pooling",
    "resnet18_32_stem": "untrained: 2 × 2 average pooling after stem and at the end",
    "resnet18_32_stem_max": "untrained: the same with maximum pooling",
    "convnet": "untrained: a small convnet for 64 × 64 pixels",
}


# Libraries of networks: package (installed by the extra of the library's name) and an example.
FAMILIES = {
    "torchvision": ("torchvision", "vit_b_16"),
    "timm": ("timm", "vit_base_patch16_224"),
    "hf": ("transformers", "facebook/dinov2-base"),
}
MODELS: Registry[Any] = Registry(  # of Architecture, and of Family
    "model",
    {
        "glyphnet": "featpipe.backbones.cifar_resnet",
        **dict.fromkeys(TORCHVISION, "featpipe.backbones.torchvision"),
        **dict.fromkeys(CIFAR_RESNETS, "featpipe.backbones.cifar_resnet"),
        **dict.fromkeys(UNTRAINED_NETWORKS, "featpipe.finetuning.nets"),
        **{family: f"featpipe.backbones.{family}" for family in FAMILIES},
    },
    aliases={f"resnet{depth}": f"cifar_resnet{depth}" for depth in _CIFAR_DEPTHS},
    summaries={
        **dict.fromkeys(TORCHVISION, "torchvision, ImageNet, 2048 features"),
        **dict.fromkeys(("resnet18", "resnet34"), "torchvision, ImageNet, 512 features"),
        **dict.fromkeys(
            CIFAR_RESNETS, "He et al. 2015 section 4.2, CIFAR-10, 32 x 32 pixels, 64 features"
        ),
        "glyphnet": "built in: letters and digits, 128 features, needs no download",
        **UNTRAINED_NETWORKS,
        "torchvision": "torchvision:NAME, any classification network of torchvision.models",
        "timm": "timm:NAME[.TAG], any network of timm (extra: timm)",
        "hf": "hf:REPOSITORY or hf:FOLDER, a vision model of transformers (extra: hf)",
    },
)

RUNTIMES: Registry[type[Runtime]] = Registry(
    "runtime",
    {
        "torch": "featpipe.backbones.runtime",
        "openvino": "featpipe.backbones.openvino",
        "compiled": "featpipe.backbones.runtime",
    },
)


def __getattr__(name: str) -> Any:
    if name != "load_backbone":  # which imports torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("featpipe.backbones.base").load_backbone


def backbone_name(model: str) -> str:
    """Return the name of a model as in manifests; nothing is imported.

    A folder is named without its location: ``"hf:models/tiny"`` is ``"hf:tiny"``. ``UsageError`` if
    there is no such model, or a family is named without a network.
    """
    first, colon, argument = model.partition(":")
    name = MODELS.canonical(first)
    if name == "torchvision" and argument in TORCHVISION:
        return argument
    if name in FAMILIES:
        if not argument:
            example = f"--model {name}:NAME, such as {name}:{FAMILIES[name][1]}"
            raise UsageError(f"{model!r} does not say which network of {name}.", expected=example)
        folder = _folder(model)
        return f"{name}:{folder.name if folder else argument}"
    if colon and MODELS.package_of(name) is None:
        what = f"There is no model named {model!r}."
        raise UnknownNameError(what, model, MODELS.names(), expected=name)
    return f"{name}{colon}{argument}"


def located(model: str) -> str:
    """Return a name of a model that is valid in any working directory."""
    folder = _folder(model)
    return f"{model.partition(':')[0]}:{folder}" if folder else model


def _folder(model: str) -> Path | None:
    """Return the folder of a model of transformers, if it is named by an existing folder."""
    family, _, argument = model.partition(":")
    if family != "hf" or not argument:
        return None
    folder = user_path(argument).resolve()
    return folder if folder.is_dir() else None


def folder_name(name: str) -> str:
    """Return the name of a model, as in manifests, as part of a path.

    Examples
    --------
    >>> folder_name("timm:vit_base_patch16_224.dino"), folder_name("resnet50")
    ('timm-vit_base_patch16_224-dino', 'resnet50')
    """
    return re.sub(r"[^\w]+", "-", name).strip("-")


def architecture_of(model: str, *, download: bool = True) -> Architecture:
    """Return the architecture of a model; torch and the library of a family are imported.

    ``download``: whether a missing description, as of ``hf:`` models, may be downloaded.
    """
    name = backbone_name(model).partition(":")[0]
    check_installed(name)
    entry: Any = MODELS.get(name)
    family = hasattr(entry, "architecture")
    return entry.architecture(model.partition(":")[2], download) if family else entry


def check_installed(model: str) -> None:
    """Raise ``MissingExtraError`` unless the library of a model's family is installed."""
    family = model.partition(":")[0]
    if family in FAMILIES:
        lazy.check_installed(FAMILIES[family][0], family)


def weights_file(model: str, weights: str = "DEFAULT") -> Path | None:
    """Return the file of weights, or ``None`` for those that are downloaded.

    Raises WeightsError if ``weights`` looks like a path and is no file.
    """
    path = user_path(weights)
    if path.is_file():
        return path
    if weights == UNTRAINED:
        return None
    if path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1:
        what = "There is no such weights file."
        got = "a folder" if path.is_dir() else "no file" if path.exists() else "no such path"
        expected = f"a file ({', '.join(WEIGHTS_SUFFIXES)})"
        raise WeightsError(what, where=path, expected=expected, got=got)
    shipped = ("DEFAULT", CIFAR_RESNETS["glyphnet"].weights)
    return GLYPHNET if model == "glyphnet" and weights.upper() in shipped else None


def check_tensors(model: str, weights: str) -> None:
    """Raise an error for weights of another ResNet, by tensor names of a file or by their own name.

    torch is not imported, so that a plan can check before its first task. Names show the depth
    only; shapes are compared when the weights are loaded. A file without such names passes.
    """
    path, name = user_path(weights), MODELS.canonical(model.partition(":")[0])
    if name not in _RESNETS:
        return
    version, *expected = _RESNETS[name]
    if weights.upper().startswith("IMAGENET1K_V"):
        known = [f"IMAGENET1K_V{one}" for one in range(1, version + 1)]
        if weights.upper() not in known:
            what = f"There are no weights named {weights!r} for {name}."
            raise UnknownNameError(what, weights.upper(), known)
    names: list[str] = []
    with suppress(Exception):  # of a missing file or a damaged header, which loading explains
        names = _header_strings(path)
    found = re.findall(r"layer3\.(\d+)\.conv(\d)\.", " ".join(names))
    got = [max(map(int, numbers)) for numbers in zip(*found, strict=True)]  # blocks count from 0
    if found and got != [expected[0] - 1, expected[1]]:
        what, has = f"These weights are not for {model}.", f"{got[0] + 1} blocks of {got[1]}"
        wanted = "layer3 with {} blocks of {} convolutions".format(*expected)
        advice = "name the model that the weights are of; in a recipe, both under each: "
        advice += "[{model: …, weights: …}, …]"
        raise WeightsError(what, where=path, expected=wanted, got=has, next_step=advice)


def _header_strings(path: Path) -> list[str]:
    """Return the strings in the header of a weights file, including the names of its tensors."""
    with open_regular(path) as stream:
        if path.suffix == ".safetensors":
            length = int.from_bytes(stream.read(8), "little")
            return list(json.loads(stream.read(min(length, _LONGEST_HEADER))))
        with zipfile.ZipFile(stream) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as pickled:  # its opcodes are listed, not executed
                codes = pickletools.genops(pickled.read(_LONGEST_HEADER))
                return [text for _, text, _ in codes if isinstance(text, str)]


def automatic(model: str, weights: str = "DEFAULT", *, download: bool = True) -> Automatic:
    """Return the default options of a model.

    torch is imported only for models without published weights, of a family or of another
    package, which needs their :class:`~featpipe.backbones.architecture.Architecture`.
    """
    name = backbone_name(model)
    known = TORCHVISION.get(name) or CIFAR_RESNETS.get(name)
    return known or architecture_of(model, download=download).automatic(weights)


def weights_identity(
    model: str, weights: str, hashes: FileHashes, *, download: bool = True, fetch: bool = False
) -> str:
    """Return an identity of weights without loading them.

    The SHA-256 of a file, which with ``fetch`` may be downloaded to the cache of a family's
    library; name and package of other published weights; the generator of random ones.
    """
    name = backbone_name(model)
    configuration = ""
    if ":" in name:
        architecture = architecture_of(model, download=download)
        configuration = architecture.configuration and f" {architecture.configuration}"
    if weights == UNTRAINED:
        library, _ = FAMILIES.get(name.partition(":")[0], FAMILIES["torchvision"])
        drawn_by = [f"{one} {package_version(one)}" for one in ("torch", library)]
        return ", ".join([UNTRAINED, "seed 0", *drawn_by]) + configuration
    if path := weights_file(name, weights):
        return hashes.one(path) + configuration
    if ":" in name:
        from featpipe.backbones.architecture import find_weights  # noqa: PLC0415 - brings torch

        try:
            found = find_weights(architecture, weights, hashes, download=fetch)
            return found.sha256 + configuration
        except WeightsError:
            if fetch:
                raise
            return "not here yet"
    package = MODELS.package_of(name) or "torchvision"
    meant = automatic(model).weights if weights.upper() == "DEFAULT" else weights.upper()
    return f"{meant} of {package} {package_version(package)}"


def resolve_fit(
    fit: str, side: int, sizes: Iterable[tuple[int, int] | None], tested: str = "crop"
) -> str:
    """Return the fit for a dataset: that which ``"auto"`` means for it, any other unchanged.

    Parameters
    ----------
    fit : str
    side : int
        Of the network's input, in pixels.
    sizes : iterable
        Height and width of all images of each split; ``None`` where they differ or are unknown.
    tested : {"crop", "squash"}
        The fit that the weights were tested with.

    Examples
    --------
    >>> resolve_fit("auto", 224, [(96, 96), (96, 96)]), resolve_fit("auto", 224, [(96, 96), None])
    ('fill', 'crop')
    """
    if fit != "auto" or tested == "squash":
        return tested if fit == "auto" else fit
    (size, *others) = set(sizes) or {None}
    return "crop" if others or size is None or min(size) > side else "fill"


def fit_identity(fit: str, *, margin: bool) -> str:
    """Return the fit as in identities.

    ``"auto"`` stands for ``fill``, which it has always meant for small images, and for ``crop``
    without a margin, which is the same.
    """
    return "auto" if fit == "fill" or (fit == "crop" and not margin) else fit


def fit_of_identity(fit: str) -> str:
    """Return the fit that an identity stands for, for new images of any size."""
    return "fill" if fit == "auto" else fit


def effective_runtime(
    runtime: str | None, precision: str = "float32", device: str = "auto"
) -> str | None:
    """Return the runtime as in identities: ``None`` for all with the same numbers as torch.

    torch is imported only to choose a runtime for another precision than float32.
    """
    if precision != "float32" and runtime is None:
        from featpipe.backbones.runtime import choose, choose_device  # noqa: PLC0415 - brings torch

        return choose(precision, choose_device(device))[0]
    exact = runtime in (None, "torch") or RUNTIMES.get(str(runtime)).exact
    return None if precision == "float32" and exact else runtime
