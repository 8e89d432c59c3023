"""Whether a backbone may have seen the images it is tested on: one place that says so.

What published weights were trained on is known of the model, what images were drawn from is known
of the dataset. Nothing is claimed of users' own images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featpipe.backbones import MODELS, WEIGHTS_SUFFIXES, automatic
from featpipe.datasets import DATASETS
from featpipe.errors import FeatpipeError


def contamination(backbone: Mapping[str, Any], tested: Mapping[str, Any]) -> str:
    """Say that a backbone may have seen test images with their labels; empty where none is known.

    ``backbone`` is that of a manifest or, of a network that was fine-tuned, what it started as;
    ``tested`` is the dataset of the test rows in a manifest.

    Examples
    --------
    >>> contamination(
    ...     {"model": "resnet50", "weights": {"name": "IMAGENET1K_V2"}},
    ...     {"name": "torchvision:Imagenette", "split": "val"},
    ... )
    'The backbone may have seen test images with their labels: it was trained on ImageNet-1k \
(IMAGENET1K_V2), and Imagenette is a part of ImageNet.'
    """
    model, weights = backbone["model"], backbone.get("weights", {}).get("name", "none")
    name, _, argument = tested["name"].partition(":")
    if weights == "none" or name not in DATASETS:
        return ""
    published = model in MODELS and Path(weights).suffix not in WEIGHTS_SUFFIXES
    try:
        trained_on = backbone.get("weights", {}).get("trained_on", "")  # that of a family
        trained_on = automatic(model).trained_on if published else trained_on
        origins = DATASETS.get(name).origins(argument, tested["split"])
    except FeatpipeError:  # the package that brings one of them is broken
        return ""
    if trained_on in origins:
        return (
            "The backbone may have seen test images with their labels: it was trained on "
            f"{trained_on} ({weights}), and {origins[trained_on]}."
        )
    if trained_on or not origins:
        return ""
    return f"What the weights {weights} were trained on is unknown. " + " ".join(
        f"If on {images}, the backbone may have seen test images with their labels: {clause}."
        for images, clause in origins.items()
    )
