"""The images of a page: those of a dataset, found again by id, and the embedded thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.errors import FeatpipeError
from featpipe.store import FeatureStore

if TYPE_CHECKING:
    from featpipe.reporting.data import Group, ReportData

Pixels = NDArray[np.uint8]  # (height, width, 3)

THUMBNAIL = 96  # pixels of the longer side
LOSSLESS = 32  # images up to this side are stored exactly: it is smaller and looks right


@dataclass(frozen=True)
class Thumbnail:
    """One embedded image."""

    name: str
    width: int
    height: int
    uri: str

    @property
    def tiny(self) -> bool:
        """Whether it is enlarged without smoothing."""
        return max(self.width, self.height) <= LOSSLESS


class ThumbnailSheet(dict[str, Thumbnail]):
    """Thumbnails by what they show; each is embedded once, however often it is shown."""

    def add(self, key: str, image: Pixels) -> Thumbnail:
        """Embed an image, unless it has been."""
        if key not in self:
            picture = Image.fromarray(image)
            picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2)
            self[key] = Thumbnail(f"i{len(self)}", *picture.size, data_uri(picture))
        return self[key]


def data_uri(picture: Image.Image, quality: int = 80) -> str:
    """Return an image as a WebP data URI; small ones lossless.

    WebP, because 96 × 96 photographs took 2.3 KB each and 3.2 KB as JPEG of the same quality.
    """
    stream, exact = io.BytesIO(), max(picture.size) <= LOSSLESS
    picture.save(stream, "WEBP", lossless=exact, quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Images:
    """Images by id, and their thumbnails on the page; None where an image cannot be read.

    ``missing`` says why there are no images at all, ``doubt`` why they may not be those that were
    tested; both are None where nothing is wrong.
    """

    name: str  # unique within the page
    sheet: ThumbnailSheet
    rows: Mapping[str, int] = field(default_factory=dict)
    read_row: Callable[[int], Pixels] | None = None
    missing: str | None = None
    doubt: str | None = None

    def read(self, image_id: str) -> Pixels | None:
        """Return the pixels of an image."""
        with suppress(FeatpipeError, OSError):
            if self.read_row is not None and image_id in self.rows:
                return self.read_row(self.rows[image_id])
        return None

    def thumbnail(self, image_id: str) -> Thumbnail | None:
        """Return the thumbnail of an image."""
        image = self.read(image_id)
        return None if image is None else self.sheet.add(f"{self.name}/{image_id}", image)


def tested_images(group: Group, data: ReportData) -> Images:
    """Return the test images of a group of methods, found again by id and class."""
    result = group.methods[0].result
    tested = result.dataset["test"]
    name = f"{tested['fingerprint']}/{tested['split']}"
    try:
        run = result.stores[-1]["run"] if result.stores else {}
        source = data.source(run, tested["split"])
    except (FeatpipeError, OSError) as error:
        return Images(name, data.sheet, missing=str(error).splitlines()[0])
    classes = np.array(result.dataset["classes"], dtype=object)[group.true]
    tested_as = dict(zip(group.ids.tolist(), classes, strict=True))
    rows = {
        image_id: row
        for row, (image_id, label) in enumerate(zip(source.ids, source.labels, strict=True))
        # The same id with another class is another image.
        if label >= 0 and tested_as.get(image_id) == source.classes[label]
    }
    missing = doubt = None
    if not rows:
        missing = "the dataset holds no images with these ids and classes."
    elif source.fingerprint != tested["fingerprint"]:
        doubt = (
            "The dataset on disk differs from the one that was tested (another fingerprint): "
            "images are found by id and class, and may not be those that were tested."
        )
    return Images(name, data.sheet, rows, source.read, missing, doubt)


def split_images(
    dataset: Mapping[str, Any],
    run: Mapping[str, Any],
    open_store: Callable[[], FeatureStore],
    data: ReportData,
) -> Images | None:
    """Return the images of a split, from the dataset or, where it is gone, from the store."""
    name = f"{dataset['fingerprint']}/{dataset['split']}"
    with suppress(FeatpipeError, OSError):
        source = data.source(run, dataset["split"])
        if source.fingerprint == dataset["fingerprint"]:
            rows = {image_id: row for row, image_id in enumerate(source.ids)}
            return Images(name, data.sheet, rows, source.read)
    with suppress(FeatpipeError):
        store = open_store()
        if store.has_looks:
            rows = {image_id: row for row, image_id in enumerate(store.ids)}
            grey = store.looks("thumbnail")
            return Images(f"stored {name}", data.sheet, rows, lambda k: np.dstack([grey[k]] * 3))
    return None
