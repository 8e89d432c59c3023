"""Lower precision: the images that int8 is calibrated on, and the distance to float32 features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe import fingerprint
from featpipe.datasets.dataset import SourceRequest, splits_of
from featpipe.datasets.selection import Subset, class_balanced_rows
from featpipe.datasets.source import ImageSource
from featpipe.errors import DataError
from featpipe.extraction.batches import ExtractOptions, read_batches
from featpipe.steps import Context

if TYPE_CHECKING:
    from torch import Tensor

    from featpipe.backbones.base import FrozenNetwork
    from featpipe.backbones.preprocessing import Preprocessing
    from featpipe.backbones.runtime import Calibration

_CALIBRATION_IMAGES = 256
_COMPARED_IMAGES = 64


def calibration(
    request: SourceRequest, sources: Sequence[ImageSource], context: Context, *, download: bool
) -> Calibration:
    """Return the images that int8 is calibrated on: some of every class in the training split."""
    from featpipe.backbones.runtime import Calibration  # noqa: PLC0415 - brings torch

    options = request.options(context, download=download)
    split = splits_of(request.dataset, options)[0]
    opened = {source.split: source for source in sources}
    source = opened.get(split) or request.open(split, options)
    return Calibration(
        images=lambda preprocessing: _sample(source, preprocessing, _CALIBRATION_IMAGES),
        fingerprint=fingerprint.of_mapping([source.fingerprint, _CALIBRATION_IMAGES]),
    )


def _sample(source: ImageSource, preprocessing: Preprocessing, n: int) -> Tensor:
    """Return prepared images of every class; unreadable ones are left out."""
    labelled = np.count_nonzero(source.labels >= 0) or len(source)
    rows = class_balanced_rows(source.labels, min(n, int(labelled)), 0)
    how = (preprocessing, len(rows), ExtractOptions(on_error="skip"))
    chosen = Subset(source, rows)
    parts = read_batches(chosen.read_scaled, range(len(rows)), *how)
    images = next(parts).images
    parts.close()
    if images is None:
        what = f"None of {len(rows)} images can be read; a lower precision needs some."
        raise DataError(what, where=source.name)
    return images


def cost_of_precision(
    source: ImageSource, embedder: FrozenNetwork, layers: tuple[str, ...]
) -> dict[str, Any]:
    """Return the cosines between features and PyTorch's float32 features of some images."""
    began = time.perf_counter()
    images = _sample(source, embedder.preprocessing, _COMPARED_IMAGES)
    lower, reference = embedder.embed(images, layers), embedder.reference(images, layers)
    cosines: dict[str, Any] = {}
    for layer in layers:
        a, b = (one[layer].reshape(len(images), -1) for one in (lower, reference))
        both = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        each = np.einsum("ij,ij->i", a, b) / np.maximum(both, 1e-30)
        cosines[layer] = {"mean": round(float(each.mean()), 5), "min": round(float(each.min()), 5)}
    seconds = round(time.perf_counter() - began, 3)
    return {"images": len(images), "cosine": cosines, "seconds": seconds}
