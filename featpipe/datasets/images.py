"""Any image file to upright RGB, by one rule in every path.

What is done, and what is deliberately not done:

* orientation: the EXIF orientation is applied;
* transparency: composited on white;
* 16-bit grey: scaled (65535 is white), not clipped as Pillow's ``convert`` would do it;
* floating point: 0 is black, 1 is white; any other range is an error, never a guess;
* animation: the first frame;
* no JPEG ``draft`` mode and no tolerance for truncated files: the same file gives the same
  pixels whoever reads it, and half an image is an error rather than a grey rectangle;
* no colour management: the stored values are taken as sRGB, as torchvision does.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from featpipe.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
"""File name endings (lower case) that make a file an image in a folder."""

# Pillow would also start Ghostscript for an EPS file that calls itself ``.jpg``; only plain
# raster formats are ever tried.
_PLUGINS = {
    "JPEG": "JpegImagePlugin",  # multi-picture files too
    "PNG": "PngImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}

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

# The warning comes at the size where read_image raises an ImageError: saying it twice helps nobody.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# "Corrupt EXIF data" and the like: some hundred lines in a collection of old photographs.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def is_image_name(name: str) -> bool:
    """Tell from its name whether a file is taken for an image.

    Examples
    --------
    >>> is_image_name("photo.JPG"), is_image_name("notes.txt"), is_image_name(".hidden.png")
    (True, False, False)
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file to upright RGB.

    Parameters
    ----------
    path : Path

    Returns
    -------
    image : ndarray of shape (height, width, 3), uint8

    Raises
    ------
    ImageError
        If the file is missing, empty, truncated, no image, or larger than Pillow's limit
        ``PIL.Image.MAX_IMAGE_PIXELS``; the message names the file.
    """
    # A global switch that other code of the process may have turned on.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with path.open("rb") as stream, Image.open(stream, formats=_formats()) as image:
            _check_size(image, path)
            return _to_rgb(image, path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("The image file does not exist.", where=path) from None
    except IsADirectoryError:
        raise ImageError("An image file was expected, this is a folder.", where=path) from None
    except PermissionError:
        raise ImageError("The image file may not be read.", where=path) from None
    except UnidentifiedImageError:
        raise _not_an_image(path) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(path, int(pixels[1]) if pixels else None) from None
    except Exception as error:
        # Pillow's parsers raise whatever they trip over in damaged bytes: OSError, SyntaxError,
        # struct.error, zlib.error, ValueError, EOFError, IndexError …
        raise ImageError(
            "The image is damaged and cannot be decoded.",
            where=path,
            got=f"{type(error).__name__}: {error}",
        ) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow can read; the plugins of the others are not loaded."""
    for plugin in _PLUGINS.values():
        with suppress(ImportError):  # AVIF came with Pillow 11.3
            import_module(f"PIL.{plugin}")
    return tuple(name for name in _PLUGINS if name in Image.OPEN)


def _not_an_image(path: Path) -> ImageError:
    n_bytes = path.stat().st_size
    if n_bytes == 0:
        return ImageError("The image file is empty.", where=path, got="0 bytes")
    return ImageError(
        "The file is not an image that can be read.",
        where=path,
        expected=f"one of {', '.join(_formats())}",
        got=f"{n_bytes} bytes of something else, or an image cut off in its header",
    )


def _too_large(path: Path, pixels: int | None) -> ImageError:
    return ImageError(
        "The image is absurdly large; decoding it could exhaust the memory.",
        where=path,
        expected=f"at most {Image.MAX_IMAGE_PIXELS} pixels",
        got=f"{pixels} pixels" if pixels else None,
        next_step="make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
    )


def _check_size(image: Image.Image, path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise _too_large(path, pixels)


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    white = _white(image, path)
    upright = _upright(image)
    if white is not None:
        return _wide_to_rgb(upright, white, path)
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return np.array(upright.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says.

    Not ``ImageOps.exif_transpose``: it also writes the whole EXIF block anew, and fails where any
    tag of it is damaged, although the pixels and the orientation are whole.
    """
    image.load()  # a TIFF turns itself here and forgets the tag
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        turn = None  # a block that cannot be read says nothing about the orientation
    return image if turn is None else image.transpose(turn)


def _white(image: Image.Image, path: Path) -> float | None:
    """Return the value that means white where pixels have more than 8 bits, else None."""
    if image.mode == "F":
        return 1.0
    # Pillow opens 16-bit PNM files, and before version 10.3 16-bit PNG files, as 32-bit mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535.0
    if image.mode == "I":
        raise ImageError(
            "The image holds 32-bit integers, for which no value is agreed to be white.",
            where=path,
            next_step="convert it to 8 or 16 bits per channel",
        )
    return None


def _wide_to_rgb(image: Image.Image, white: float, path: Path) -> NDArray[np.uint8]:
    """Scale grey values from 0..white to 0..255."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= white):  # written so that not-a-number is refused too
        raise ImageError(
            "Pixel values are outside the range that has a meaning.",
            where=path,
            expected=f"0 (black) to {white:g} (white)",
            got=f"{low:g} to {high:g}",
            next_step="convert the image to 8 or 16 bits per channel",
        )
    grey = np.rint(values * (255.0 / white)).astype(np.uint8)
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):  # a 16-bit grey PNG may name one value as transparent
        grey[values == see_through] = 255
    return np.repeat(grey[..., None], 3, axis=2)
