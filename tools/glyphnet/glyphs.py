"""Glyphs to draw: print from the fonts that matplotlib ships, handwriting from strokes.

A glyph is kept as a map of distances to its outline, so that one stored glyph can be drawn
with any thickness.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from strokes import write

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
MAP_SIZE = 48  # side of a distance map in pixels
BODY = 36  # longer side of the glyph within it

# Unicode keeps whole alphabets of other designs: (first capital, first digit or None).
_MATHEMATICAL = {
    "STIXGeneral": ((0x1D5A0, 0x1D7E2), (0x1D670, 0x1D7F6), (0x1D49C, None)),
    "STIXGeneralItalic": ((0x1D608, None), (0x1D49C, None)),
    "STIXGeneralBol": ((0x1D5D4, 0x1D7EC),),
    "STIXGeneralBolIta": ((0x1D63C, None), (0x1D4D0, None)),
}
_PLAIN_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmtt10", "cmmi10", "cmss10", "cmti10"),
)
# Never trained on: a serif family, a sans serif and an italic of their own design.
HELD_OUT = ("DejaVuSerif", "cmss10", "cmti10")


@dataclass(frozen=True)
class GlyphBank:
    """Distance maps of many glyphs.

    Attributes
    ----------
    distances : Tensor of shape (n, 48, 48), float16
        Distance to the outline (print) or to the pen's way (strokes) in pixels of the map;
        negative inside the ink.
    labels : Tensor of shape (n,), int64
        Index into :data:`CLASSES`.
    reach : Tensor of shape (n, 2), float32
        Ink is where the distance is below a threshold; the lowest and highest threshold allowed.
    """

    distances: Tensor
    labels: Tensor
    reach: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: GlyphBank) -> GlyphBank:
        return GlyphBank(
            torch.cat([self.distances, other.distances]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.reach, other.reach]),
        )


def printed(held_out: bool = False) -> GlyphBank:
    """Return the glyphs of the training fonts, or of the held-out ones."""
    maps, labels = [], []
    for face, font, drawable in _fonts():
        if face.startswith(HELD_OUT) is not held_out:
            continue
        alphabets = [dict(zip(CLASSES, CLASSES, strict=True)), *_mathematical(face)]
        for alphabet in alphabets:
            for glyph, character in alphabet.items():
                if ord(character) in drawable:  # Unicode's alphabets have holes
                    maps.append(_distance_of_print(font, character))
                    labels.append(CLASSES.index(glyph))
    # From a little thinner to as bold as a felt pen; the body is 36 pixels high.
    return _bank(maps, labels, (-0.6, 2.2))


def written(copies: int, random: np.random.Generator) -> GlyphBank:
    """Return handwritten glyphs, ``copies`` of each class."""
    labels = np.repeat(np.arange(len(CLASSES)), copies)
    maps = [_distance_of_strokes(write(CLASSES[label], random)) for label in labels]
    return _bank(maps, labels.tolist(), (0.8, 4.2))


def _bank(
    maps: list[NDArray[np.float16]], labels: list[int], reach: tuple[float, float]
) -> GlyphBank:
    return GlyphBank(
        torch.from_numpy(np.stack(maps)),
        torch.tensor(labels),
        torch.tensor(reach).expand(len(labels), 2).contiguous(),
    )


def _fonts() -> Iterator[tuple[str, ImageFont.FreeTypeFont, Container[int]]]:
    """Yield the name of each face, its font, and the characters it can draw."""
    try:  # only training needs it
        import matplotlib  # noqa: PLC0415
        from matplotlib.ft2font import FT2Font  # noqa: PLC0415
    except ImportError:
        sys.exit("The fonts come with matplotlib: pip install -r tools/glyphnet/requirements.txt")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for face in _PLAIN_FACES:
        file = folder / f"{face}.ttf"
        yield face, ImageFont.truetype(file, 96), FT2Font(file).get_charmap()


def _mathematical(face: str) -> list[dict[str, str]]:
    alphabets = []
    for capital, digit in _MATHEMATICAL.get(face, ()):
        letters = string.ascii_uppercase + string.ascii_lowercase
        alphabet = {glyph: chr(capital + place) for place, glyph in enumerate(letters)}
        if digit is not None:
            alphabet |= {glyph: chr(digit + place) for place, glyph in enumerate(string.digits)}
        alphabets.append(alphabet)
    return alphabets


def _distance_of_print(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.float16]:
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), character, fill=255, font=font)
    scale = 4 * BODY / max(canvas.size)  # drawn four times larger: outlines finer than a pixel
    body = canvas.resize([max(1, round(side * scale)) for side in canvas.size])
    large = Image.new("L", (4 * MAP_SIZE, 4 * MAP_SIZE))
    width, height = body.size
    large.paste(body, ((4 * MAP_SIZE - width) // 2, (4 * MAP_SIZE - height) // 2))
    ink = np.asarray(large) > 127
    signed = (distance_transform_edt(~ink) - distance_transform_edt(ink)) / 4
    return signed.reshape(MAP_SIZE, 4, MAP_SIZE, 4).mean(axis=(1, 3)).astype(np.float16)


def _distance_of_strokes(segments: NDArray[np.float64]) -> NDArray[np.float16]:
    low, high = segments.min(axis=(0, 1)), segments.max(axis=(0, 1))
    centred = (segments - (low + high) / 2) * (BODY / (high - low).max()) + MAP_SIZE / 2
    start, way = centred[:, 0], centred[:, 1] - centred[:, 0]
    y, x = np.mgrid[:MAP_SIZE, :MAP_SIZE] + 0.5
    offset = np.stack([x, y], axis=-1)[:, :, None] - start
    along = (offset * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-9)
    nearest = offset - way * np.clip(along, 0, 1)[..., None]
    return np.sqrt((nearest**2).sum(-1)).min(axis=-1).astype(np.float16)
