"""Image files, decoded to upright RGB by the same rules everywhere.

* orientation: the EXIF orientation is applied;
* transparency: composited on white;
* 16-bit grey: scaled (65535 is white), not clipped as by Pillow's ``convert``;
* floating point: 0 is black, 1 is white; any other range is an error, never a guess;
* animation: the first frame;
* JPEG ``draft`` mode: only on request, and then part of the features' fingerprint;
* truncated files: an error rather than an image that is half grey;
* colour management: none; the stored values are taken as sRGB, as torchvision does.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.source import Identity, ImageSource, as_rgb
from featpipe.errors import DataError, ImageError
from featpipe.files import open_regular, read_regular
from featpipe.fingerprint import FileHashes, of_bytes

# Pillow would also start Ghostscript for an EPS file that is called ``.jpg``; only plain raster
# formats are tried. JPEG includes multi-picture files.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
Image.init()
_READABLE = tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF came with Pillow 11.3

# File name endings (lower case) that make a file an image in a folder.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)

# A file is read as a whole, so that what is hashed is what is decoded.
_MOST_BYTES_PER_PIXEL = 8  # four channels of 16 bits, uncompressed
_MOST_OTHER_BYTES = 1 << 26  # profiles, previews, further pages

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The warning comes at the size where read_image raises an ImageError.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# "Corrupt EXIF data" and the like: some hundred lines in a collection of old photographs.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


class EncodedSource(ImageSource):
    """Images that are decoded when they are read; a subclass reads their files.

    A row that is ``unreadable`` is an ImageError with its reason.
    """

    _hashes: FileHashes
    _at_once = 1  # how many headers are read at the same time

    @abstractmethod
    def _where(self, row: int) -> Path | str:
        """Return where an image is, for messages."""

    @abstractmethod
    def _content(self, row: int) -> bytes:
        """Return the file of an image, which must be unchanged since the fingerprint was taken."""

    def _opened(self, row: int) -> BinaryIO:
        """Open the file of an image, for its header."""
        return io.BytesIO(self._content(row))

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Height and width that the headers of all images give; the answer is remembered."""
        size = self._hashes.recall(self.fingerprint, "size of all images", self._common_size)
        width, _, height = size.partition("x")
        return (int(height), int(width)) if height else None

    def _common_size(self) -> str:
        rows = [row for row in range(len(self)) if row not in self.unreadable]
        found: set[tuple[int, int]] = set()
        with ThreadPoolExecutor(self._at_once) as pool:
            mapped = pool.map if self._at_once > 1 else map
            for first in range(0, len(rows), self._at_once):
                found.update(*mapped(self._header, rows[first : first + self._at_once]))
                if len(found) > 1:
                    return "none"
        return "x".join(map(str, *found)) if found else "none"

    def _header(self, row: int) -> list[tuple[int, int]]:
        # What cannot be read is reported when it is decoded.
        with suppress(Exception), self._opened(row) as stream:
            return [Image.open(stream, formats=_READABLE).size]
        return []

    def read(self, row: int) -> NDArray[np.uint8]:
        """Decode one image to upright RGB; see :meth:`read_scaled`."""
        return self.read_scaled(row, None)

    def read_scaled(self, row: int, side: int | None) -> NDArray[np.uint8]:
        """Decode one image to upright RGB, a JPEG at a reduced scale if a side is given."""
        where = self._where(row)
        if row in self.unreadable:
            raise ImageError(self.unreadable[row], where=where)
        return decode_image(self._content(row), where, side)


class FileSource(EncodedSource):
    """Images that are files, decoded when they are read.

    The ids are the paths of the files, relative to ``root`` (or absolute). The fingerprint depends
    on their content and on which cannot be opened, but not on ``root``. ``where`` is the list of
    the files, for messages; default: ``root``.
    """

    def __init__(
        self, identity: Identity, root: Path, options: DatasetOptions, where: object = None
    ) -> None:
        self.root = root
        self._hashes = options.hashes
        paths = [os.path.join(root, name) for name in identity.ids]
        # JSON and HDF5 hold UTF-8 only, and a file name may be other bytes.
        ids = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in identity.ids]
        unreadable: dict[int, str] = {}
        try:  # opening each of many files first would take longer than everything else
            "".join(paths).encode()
            self.digests: list[str | None] = [*options.digests(paths)]
        except (DataError, UnicodeEncodeError):
            for row, path in enumerate(paths):
                try:
                    path.encode()
                    open_regular(path).close()
                except UnicodeEncodeError:
                    unreadable[row] = "The name of the image file is not valid text (UTF-8)."
                except OSError as error:
                    unreadable[row] = _reason(error)
            if not unreadable:
                raise
            readable = [path for row, path in enumerate(paths) if row not in unreadable]
            digests = iter(options.digests(readable))
            self.digests = [None if row in unreadable else next(digests) for row in range(len(ids))]
        super().__init__(replace(identity, ids=ids), self.digests, where or root)
        self.unreadable = unreadable

    def _where(self, row: int) -> Path:
        return self.root / self.ids[row]

    def _opened(self, row: int) -> BinaryIO:
        return open_regular(self._where(row))

    def _content(self, row: int) -> bytes:
        content = _content_of(self._where(row))
        if of_bytes(content) != self.digests[row]:
            raise changed(self._where(row))
        return content


def is_image_name(name: str) -> bool:
    """Return whether a file counts as an image by its name; hidden ones do not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(path: Path, side: int | None = None) -> NDArray[np.uint8]:
    """Decode an image file to upright RGB, (height, width, 3), uint8.

    If a ``side`` is given, a JPEG is decoded at the least of 1/8, 1/4, 1/2 of its size that leaves
    its shorter side as many pixels. ImageError, which names the file, if it is missing, empty,
    truncated, no image, no regular file, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    return decode_image(_content_of(path), path, side)


def _reason(error: OSError) -> str:
    """Explain why a file could not be opened."""
    reasons: dict[type[OSError], str] = {
        FileNotFoundError: "The image file does not exist.",
        IsADirectoryError: "An image file was expected, this is a folder.",
        PermissionError: "The image file may not be read.",
    }
    return reasons.get(type(error), f"The image file cannot be read: {error.strerror}.")


def changed(where: object, what: str = "An image", **details: object) -> DataError:
    """Return the error for images that are no longer those whose fingerprint was taken."""
    message = f"{what} has changed since the dataset was opened."
    return DataError(message, where=where, next_step="run again when nothing changes it", **details)


def _most_bytes() -> int:
    """Return how many bytes the file of the largest image can have."""
    limit = Image.MAX_IMAGE_PIXELS
    return sys.maxsize if limit is None else limit * _MOST_BYTES_PER_PIXEL + _MOST_OTHER_BYTES


def refuse_large(n_bytes: int, where: str) -> None:
    """Raise ImageError if an image file has more bytes than the largest image can have."""
    if n_bytes > (most := _most_bytes()):
        got, expected = f"{n_bytes} bytes", f"at most {most} bytes"
        raise ImageError("The file is too large.", where=where, expected=expected, got=got)


def _content_of(path: Path) -> bytes:
    """Return the bytes of an image file, at most as many as the largest image can have."""
    try:
        return read_regular(path, _most_bytes())
    except OSError as error:
        raise ImageError(_reason(error), where=path) from None


def decode_image(content: bytes, path: Path | str, side: int | None = None) -> NDArray[np.uint8]:
    """Decode the content of an image file, which is named in messages, to upright RGB."""
    # A global switch that other code in the process may have turned on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(content), formats=_READABLE) as image:
            pixels = image.width * image.height
            if pixels > (Image.MAX_IMAGE_PIXELS or pixels):
                raise Image.DecompressionBombError(f"({pixels} pixels)")
            if side is not None:
                image.draft(None, (side, side))  # formats other than JPEG have none
            return to_rgb(image, path)
    except ImageError:
        raise
    except UnidentifiedImageError:
        what = "The file is not a readable image." if content else "The file is empty."
        got = f"{len(content)} bytes in no recognised image format, or cut off in the header"
        expected = f"one of {', '.join(_READABLE)}"
        raise ImageError(what, where=path, expected=expected, got=got) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        what = "The image is too large: decoding it could exhaust the memory."
        hint = "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        most = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        got = " ".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise ImageError(what, where=path, expected=most, got=got, next_step=hint) from None
    except Exception as error:
        # Pillow's parsers raise almost anything on damaged bytes: OSError, SyntaxError,
        # struct.error, zlib.error, ValueError, EOFError, IndexError …
        what = "The image is damaged and cannot be decoded."
        raise ImageError(what, where=path, got=f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image, path: Path | str) -> NDArray[np.uint8]:
    """Return an opened image as upright RGB; ``path`` is its file, or what it is, for messages."""
    # Not ImageOps.exif_transpose: it also rewrites the whole EXIF block, and fails where any tag
    # of it is damaged, although the pixels and the orientation are intact.
    image_format = image.format  # a turned image has none
    image.load()  # a TIFF turns itself here and forgets the tag
    turn = None
    with suppress(Exception):  # a block that cannot be read has no orientation
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    see_through = image.info.get("transparency")
    image = image if turn is None else image.transpose(turn)
    convert = "convert the image to 8 or 16 bits per channel"
    # Pillow opens 16-bit PNM files, and before version 10.3 16-bit PNG files, as 32-bit mode "I".
    if image.mode == "F":
        white = 1.0
    elif image.mode.startswith("I;16") or (image.mode == "I" and image_format in ("PNG", "PPM")):
        white = 65535.0
    elif image.mode == "I":
        what = "The image holds 32-bit integers, for which no value is agreed to be white."
        raise ImageError(what, where=path, next_step=convert)
    else:
        if image.has_transparency_data:
            layered = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        return np.array(image.convert("RGB"))
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= white):  # written so that not-a-number is refused too
        what, got = "Pixel values are outside the range that has a meaning.", f"{low:g} to {high:g}"
        expected = f"0 (black) to {white:g} (white)"
        raise ImageError(what, where=path, expected=expected, got=got, next_step=convert)
    grey = np.rint(values * (255.0 / white)).astype(np.uint8)
    if isinstance(see_through, int):  # a 16-bit grey PNG may name one value as transparent
        grey[values == see_through] = 255
    return as_rgb(grey)
