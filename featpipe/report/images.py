"""Test images as thumbnails: found by id, embedded once, however often they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.source import ImageSource
from featpipe.errors import FeatpipeError
from featpipe.report.material import Group
from featpipe.report.options import ReportOptions
from featpipe.steps.old import Context

THUMBNAIL = 96  # pixels of the longer side
_LOSSLESS = 32  # images up to this side are stored exactly: it is smaller and looks right


@dataclass
class Sheet:
    """All thumbnails of a report, each embedded once and shown by its name.

    Attributes
    ----------
    images : dict of str to Thumbnail
        By what they show, in the order in which they were asked for.
    sources : dict
        Opened datasets, so that several groups of test rows open one only once.
    """

    images: dict[str, Thumbnail] = field(default_factory=dict)
    sources: dict[tuple[SourceRequest, str], ImageSource] = field(default_factory=dict)

    def open(self, request: SourceRequest, split: str, options: ReportOptions) -> ImageSource:
        """Return a dataset's split."""
        key = (request, split)
        if key not in self.sources:
            context = Context(options.workspace, options.progress)
            self.sources[key] = request.open(split, request.options(context))
        return self.sources[key]

    def add(self, key: str, image: NDArray[np.uint8]) -> Thumbnail:
        """Embed an image of shape (height, width, 3), unless it is there already."""
        if key not in self.images:
            picture = Image.fromarray(image)
            picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2)
            name = f"i{len(self.images)}"
            self.images[key] = Thumbnail(name, picture.width, picture.height, data_uri(picture))
        return self.images[key]


@dataclass(frozen=True)
class Thumbnail:
    """One embedded image."""

    name: str
    width: int
    height: int
    uri: str

    @property
    def tiny(self) -> bool:
        """Whether its pixels are meant to be seen when it is enlarged."""
        return max(self.width, self.height) <= _LOSSLESS


def data_uri(picture: Image.Image, quality: int = 80) -> str:
    """Return an image as a WebP data URI; small ones lossless.

    WebP, because 96 × 96 photographs took 2.3 KB each and 3.2 KB as JPEG of the same quality.
    """
    stream = io.BytesIO()
    exact = max(picture.size) <= _LOSSLESS
    picture.save(stream, "WEBP", lossless=exact, quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


class Pictures:
    """The test images of a group of methods.

    Parameters
    ----------
    group : Group
    options : ReportOptions
    sheet : Sheet

    Attributes
    ----------
    missing : str or None
        Why there are no images at all.
    doubt : str or None
        Why the images may not be those that were tested.
    """

    def __init__(self, group: Group, options: ReportOptions, sheet: Sheet) -> None:
        self.sheet = sheet
        self.missing: str | None = None
        self.doubt: str | None = None
        tested = group.methods[0].result.dataset["test"]
        self._name = f"{tested['fingerprint']}/{tested['split']}"
        self._rows: dict[str, tuple[ImageSource, int]] = {}
        self._classes = dict(
            zip(group.ids.tolist(), (group.classes[c] for c in group.true), strict=True)
        )
        self._open(group, options)

    def thumbnail(self, image_id: str) -> Thumbnail | None:
        """Return the thumbnail of a test image, or None where it cannot be read."""
        image = self.read(image_id)
        return None if image is None else self.sheet.add(f"{self._name}/{image_id}", image)

    def read(self, image_id: str) -> NDArray[np.uint8] | None:
        """Return the pixels of a test image, or None where they are not there any more."""
        if image_id not in self._rows:
            return None
        source, row = self._rows[image_id]
        try:
            return source.read(row)
        except (FeatpipeError, OSError):
            return None

    def _open(self, group: Group, options: ReportOptions) -> None:
        """Open the images that the features were made from, as the store remembers them."""
        result = group.methods[0].result
        asked = result.stores[-1]["run"].get("source") if result.stores else None
        if asked is None:
            self.missing = "the results do not say where their images came from."
            return
        tested = result.dataset["test"]
        request = SourceRequest.from_dict(asked)
        if options.data is not None:
            request = request.moved(options.data)
        try:
            source = self.sheet.open(request, tested["split"], options)
        except (FeatpipeError, OSError) as error:
            self.missing = str(error).splitlines()[0]
            return
        self._find(source)
        if not self._rows:
            self.missing = "the dataset no longer holds images with these ids and classes."
        elif source.fingerprint != tested["fingerprint"]:
            self.doubt = (
                "The dataset on disk is not the one that was tested (its fingerprint differs); "
                "images are found by id and class, and may have changed."
            )

    def _find(self, source: ImageSource) -> None:
        """Remember where the test images lie; one whose class differs is another image."""
        names = [source.classes[label] if label >= 0 else None for label in source.labels.tolist()]
        for row, (image_id, name) in enumerate(zip(source.ids, names, strict=True)):
            if self._classes.get(image_id, "") == name:
                self._rows[image_id] = (source, row)


def sprite(images: Iterable[NDArray[np.uint8] | None], side: int, columns: int) -> str:
    """Return many images as one, tile by tile, as a data URI.

    Parameters
    ----------
    images : iterable of ndarray of shape (height, width, 3), uint8, or None
        None leaves a grey tile.
    side : int
        Width and height of a tile; images are fitted into it.
    columns : int
    """
    tiles = [_tile(image, side) for image in images]
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * side, rows * side), "#888")
    for number, tile in enumerate(tiles):
        left, top = number % columns * side, number // columns * side
        whole.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
    return data_uri(whole, quality=70)


def _tile(image: NDArray[np.uint8] | None, side: int) -> Image.Image:
    if image is None:
        return Image.new("RGB", (side, side), "#888")
    picture = Image.fromarray(image)
    if max(picture.size) <= _LOSSLESS < side:  # keep the pixels of tiny images square
        factor = side // max(picture.size)
        return picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=1.5)
    return picture


def read_overlay(path: Path) -> NDArray[np.uint8] | None:
    """Return a stored overlay as RGB, or None where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError):
        return None
