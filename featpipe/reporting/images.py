"""The images of a page: test images found again by id, and the thumbnails that are embedded."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.errors import FeatpipeError

if TYPE_CHECKING:
    from featpipe.reporting.data import Group, ReportData

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

    def add(self, key: str, image: NDArray[np.uint8]) -> Thumbnail:
        """Embed an image of shape (height, width, 3), unless it has been."""
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


class GroupImages:
    """The test images of a group of methods, found again by id.

    ``missing`` says why there are no images at all, ``doubt`` why they may not be those that were
    tested; both are None where nothing is wrong.
    """

    def __init__(self, group: Group, data: ReportData) -> None:
        self.missing: str | None = None
        self.doubt: str | None = None
        self.sheet = data.sheet
        self._rows: dict[str, int] = {}
        result = group.methods[0].result
        tested = result.dataset["test"]
        self._name = f"{tested['fingerprint']}/{tested['split']}"
        try:
            run = result.stores[-1]["run"] if result.stores else {}
            self._source = source = data.source(run, tested["split"])
        except (FeatpipeError, OSError) as error:
            self.missing = str(error).splitlines()[0]
            return
        classes = np.array(result.dataset["classes"], dtype=object)[group.true]
        tested_as = dict(zip(group.ids.tolist(), classes, strict=True))
        for row, (image_id, label) in enumerate(zip(source.ids, source.labels, strict=True)):
            # One whose class differs is another image.
            if label >= 0 and tested_as.get(image_id) == source.classes[label]:
                self._rows[image_id] = row
        if not self._rows:
            self.missing = "the dataset holds no images with these ids and classes."
        elif source.fingerprint != tested["fingerprint"]:
            self.doubt = (
                "The dataset on disk differs from the one that was tested (another fingerprint): "
                "images are found by id and class, and may not be those that were tested."
            )

    def thumbnail(self, image_id: str) -> Thumbnail | None:
        """Return the thumbnail of a test image, or None where it cannot be read."""
        image = self.read(image_id)
        return None if image is None else self.sheet.add(f"{self._name}/{image_id}", image)

    def read(self, image_id: str) -> NDArray[np.uint8] | None:
        """Return the pixels of a test image, or None where it cannot be read."""
        with suppress(FeatpipeError, OSError):
            if image_id in self._rows:
                return self._source.read(self._rows[image_id])
        return None
