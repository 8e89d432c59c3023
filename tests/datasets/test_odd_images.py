"""Hundreds of odd image files against numbers that were known before they were written.

Every file is made from an array, and what must come back is computed from the array with NumPy:
nothing here asks the decoder under test, or the library below it, what is right.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from featpipe.datasets.images import read_image
from featpipe.errors import ImageError

Pixels = NDArray[Any]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
# JPEG stores frequencies of 8 × 8 blocks: flat blocks come back as they were, but for rounding.
BLOCKS = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
SHAPES = [(1, 1), (1, 9), (9, 1), (3, 5)]


class Odd(NamedTuple):
    """One file and what it must become; ``None``: an ImageError."""

    name: str
    content: bytes
    expected: Pixels | None
    tolerance: float = 0.5


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(pixels: Pixels) -> Pixels:
    """Return grey as three equal channels."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def on_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """Composite on white: Porter and Duff, "Compositing digital images", 1984, operator over."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def stored_as(upright: Pixels, orientation: int) -> Pixels:
    """Return the pixels that the EXIF tag ``orientation`` turns into the upright picture."""
    transposed = upright.swapaxes(0, 1)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: transposed,
        6: transposed[::-1],
        7: transposed[::-1, ::-1],
        8: transposed[:, ::-1],
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png(kind: int, bits: int, rows: Pixels, more: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """Put a PNG together from the packed bytes of its rows; see the PNG specification, 5 and 11."""
    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    flat = rows.reshape(height, -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        digits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(digits.reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    chunks = [(b"IHDR", header), *(more or []), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    joined = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + joined


# --- what is right


def turned() -> Iterator[Odd]:
    lossless = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    for orientation in range(1, 9):
        tag = exif(orientation)
        for kind, options in lossless.items():
            for mode, upright in (("RGB", COLOUR), ("L", GREY)):
                image = Image.fromarray(np.ascontiguousarray(stored_as(upright, orientation)))
                content = encode(image, kind, exif=tag, **options)
                yield Odd(f"{kind} {mode} turned {orientation}", content, rgb(upright))
        image = Image.fromarray(np.ascontiguousarray(stored_as(BLOCKS, orientation)))
        content = encode(image, "JPEG", exif=tag, quality=100, subsampling=0)
        yield Odd(f"JPEG turned {orientation}", content, BLOCKS, 3)
        alpha = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
        layers = np.dstack([COLOUR, alpha])
        image = Image.fromarray(np.ascontiguousarray(stored_as(layers, orientation)))
        for kind, options in lossless.items():
            expected = on_white(COLOUR, alpha)
            # WebP may change the colour of transparent pixels.
            exact = {"exact": True} if kind == "WEBP" else {}
            content = encode(image, kind, exif=tag, **options, **exact)
            yield Odd(f"{kind} RGBA turned {orientation}", content, expected, 1)
        deep = GREY.astype(np.uint16) * 257
        image = Image.fromarray(np.ascontiguousarray(stored_as(deep, orientation)))
        for kind in ("PNG", "TIFF"):
            content = encode(image, kind, exif=tag)
            yield Odd(f"{kind} 16 bit turned {orientation}", content, rgb(GREY))
        image = Image.fromarray(np.ascontiguousarray(stored_as(GREY > 99, orientation)))
        expected = rgb((GREY > 99) * 255)
        yield Odd(f"PNG 1 bit turned {orientation}", encode(image, "PNG", exif=tag), expected)


def see_through() -> Iterator[Odd]:
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 77)], axis=1)
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for opacity in (0, 1, 64, 127, 128, 200, 254, 255):
        alpha = np.full(COLOUR.shape[:2], opacity, np.uint8)
        layers, flat = np.dstack([COLOUR, alpha]), on_white(COLOUR, alpha)
        image = Image.fromarray(layers)
        yield Odd(f"PNG RGBA {opacity}", encode(image, "PNG"), flat, 1)
        yield Odd(f"TIFF RGBA {opacity}", encode(image, "TIFF"), flat, 1)
        content = encode(image, "WEBP", lossless=True, exact=True)
        yield Odd(f"WEBP RGBA {opacity}", content, flat, 1)
        both = np.dstack([GREY, alpha])
        grey = on_white(rgb(GREY), alpha)
        yield Odd(f"PNG LA {opacity}", png(4, 8, both), grey, 1)
        yield Odd(f"PNG LA 16 bit {opacity}", png(4, 16, both * np.uint16(257)), grey, 1)
        yield Odd(f"PNG RGBA 16 bit {opacity}", png(6, 16, layers * np.uint16(257)), flat, 1)
        table = [(b"PLTE", palette.astype(np.uint8).tobytes()), (b"tRNS", bytes([opacity] * 5))]
        some = np.where(indices < 5, opacity, 255)
        expected = on_white(palette[indices], some)
        yield Odd(f"PNG palette {opacity}", png(3, 8, indices, table), expected, 1)
    for value in (0, 7, 255):
        pixels = np.array([[value, 3, 250]], np.uint8)
        expected = rgb(np.where(pixels == value, 255, pixels))
        tag = [(b"tRNS", struct.pack(">H", value))]
        yield Odd(f"PNG grey but {value}", png(0, 8, pixels, tag), expected)
        deep = [(b"tRNS", struct.pack(">H", value * 257))]
        yield Odd(f"PNG deep grey but {value}", png(0, 16, pixels * np.uint16(257), deep), expected)
        colours = np.array([[[value, 9, 9], [value, 9, 8]]], np.uint8)
        tag = [(b"tRNS", struct.pack(">HHH", value, 9, 9))]
        kept = np.array([[[255, 255, 255], [value, 9, 8]]])
        yield Odd(f"PNG colour but {value}", png(2, 8, colours, tag), kept)
        gif = Image.new("P", (4, 3))
        gif.putdata(indices.ravel().tolist())
        gif.putpalette(palette.astype(np.uint8).tobytes())
        index = value % 12
        expected = np.where((indices == index)[..., None], 255, palette[indices])
        yield Odd(f"GIF but {index}", encode(gif, "GIF", transparency=index), expected)


def depths() -> Iterator[Odd]:
    for height, width in SHAPES:
        size = f"{width} × {height}"
        for bits in (1, 2, 4, 8, 16):
            top = 2**bits - 1
            values = RNG.integers(0, top + 1, (height, width))
            expected = rgb(values * (255 / top))
            yield Odd(f"PNG grey {bits} bit {size}", png(0, bits, values), expected)
            if bits <= 8:
                palette = RNG.integers(0, 256, (top + 1, 3))
                table = [(b"PLTE", palette.astype(np.uint8).tobytes())]
                content = png(3, bits, values, table)
                yield Odd(f"PNG palette {bits} bit {size}", content, palette[values])
            if bits >= 8:
                colours = RNG.integers(0, top + 1, (height, width, 3))
                expected = colours * (255 / top)
                yield Odd(f"PNG colour {bits} bit {size}", png(2, bits, colours), expected, 1)
        colours = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(colours)
        for kind in ("BMP", "PPM", "TIFF"):
            yield Odd(f"{kind} {size}", encode(image, kind), colours)
        content = encode(image, "JPEG2000", irreversible=False)
        yield Odd(f"JPEG2000 {size}", content, colours)
    for top in (1, 15, 100, 255, 1023, 65535):
        values = RNG.integers(0, top + 1, (3, 4))
        raw = values.astype(np.uint8 if top < 256 else ">u2").tobytes()
        text = " ".join(map(str, values.ravel()))
        expected = rgb(values * (255 / top))
        yield Odd(f"PGM to {top}", f"P5 4 3 {top}\n".encode() + raw, expected, 1)
        yield Odd(f"plain PGM to {top}", f"P2 4 3 {top}\n{text}\n".encode(), expected, 1)
        colours = RNG.integers(0, top + 1, (3, 4, 3))
        raw = colours.astype(np.uint8 if top < 256 else ">u2").tobytes()
        content = f"P6 4 3 {top}\n".encode() + raw
        yield Odd(f"PPM to {top}", content, colours * (255 / top), 1)


def packed() -> Iterator[Odd]:
    image = Image.fromarray(COLOUR)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        content = encode(image, "TIFF", compression=compression)
        yield Odd(f"TIFF {compression}", content, COLOUR)
        content = encode(Image.fromarray(GREY), "TIFF", compression=compression)
        yield Odd(f"TIFF grey {compression}", content, rgb(GREY))
    inks = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    paint = Image.frombytes("CMYK", (7, 5), inks.tobytes())
    printed = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    yield Odd("TIFF CMYK", encode(paint, "TIFF"), printed, 1)
    for compression in ("tiff_lzw", "packbits"):
        content = encode(paint, "TIFF", compression=compression)
        yield Odd(f"TIFF CMYK {compression}", content, printed, 1)
    unit = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    yield Odd("TIFF float", encode(Image.fromarray(unit), "TIFF"), rgb(unit * 255))
    for factor in (2.0, -1.0, np.nan, np.inf):
        with np.errstate(invalid="ignore"):
            wrong = Image.fromarray(unit * np.float32(factor))
        yield Odd(f"TIFF float times {factor}", encode(wrong, "TIFF"), None)
    whole = Image.fromarray(GREY.astype(np.int32))
    yield Odd("TIFF 32-bit integers", encode(whole, "TIFF"), None)


def photographs() -> Iterator[Odd]:
    # Chroma that is stored more coarsely is blurred where it changes: here it does not.
    plain = {0: BLOCKS, 1: rgb(BLOCKS[..., 0]), 2: rgb(BLOCKS[..., 1])}
    profile = b"no profile that any program could read" * 9
    for quality in (75, 95, 100):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                name = f"JPEG {quality} {subsampling}{' progressive' * progressive}"
                options = {"quality": quality, "subsampling": subsampling}
                options |= {"progressive": progressive, "icc_profile": profile}
                content = encode(Image.fromarray(plain[subsampling]), "JPEG", **options)
                yield Odd(name, content, plain[subsampling], 12 if quality == 75 else 4)
    yield Odd(
        "PNG with profile", encode(Image.fromarray(COLOUR), "PNG", icc_profile=profile), COLOUR
    )
    for inks in (
        (255, 0, 0, 0),
        (0, 255, 0, 128),
        (30, 60, 90, 0),
        (0, 0, 0, 255),
        (9, 99, 199, 50),
    ):
        ink = np.array(inks, float)
        paper = (255 - ink[:3]) * (255 - ink[3]) / 255
        content = encode(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
        yield Odd(f"JPEG CMYK {inks}", content, np.broadcast_to(paper, (16, 16, 3)), 3)
        # Adobe's other transform: the same numbers, read as luminance, chrominance and black.
        place = content.index(b"Adobe") + 11
        ycck = content[:place] + b"\2" + content[place + 1 :]
        y, cb, cr, k = 255 - ink
        red_green_blue = np.array(
            [y + 1.402 * (cr - 128),
             y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
             y + 1.772 * (cb - 128)]
        ).clip(0, 255)  # fmt: skip
        paper = (255 - red_green_blue) * k / 255
        yield Odd(f"JPEG YCCK {inks}", ycck, np.broadcast_to(paper, (16, 16, 3)), 4)


def several() -> Iterator[Odd]:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    red = np.broadcast_to([255, 0, 0], (16, 16, 3))
    kinds = {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "MPO": {"quality": 100}}
    for kind, options in kinds.items():
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield Odd(f"{kind} of three", content, red, 2)
    if features.check("avif"):
        yield Odd("AVIF", encode(Image.new("RGB", (16, 16), "red"), "AVIF", quality=100), red, 3)


# --- what is wrong


def whole_files() -> dict[str, bytes]:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
    return {kind: encode(noise, kind) for kind in kinds}


def cut_off() -> Iterator[Odd]:
    for kind, content in whole_files().items():
        for percent in (1, 5, 20, 40, 60, 80, 95):
            part = content[: len(content) * percent // 100]
            yield Odd(f"{percent} % of a {kind}", part, None)


def no_images() -> Iterator[Odd]:
    for name, content in (
        ("nothing", b""),
        ("zeros", bytes(999)),
        ("text", b"<svg/>"),
        ("ELF", b"\x7fELF"),
    ):
        yield Odd(name, content, None)
    for kind, content in whole_files().items():
        yield Odd(f"signature of a {kind}", content[:8] + bytes(4096), None)
    content = whole_files()
    huge = {
        "PNG": content["PNG"][:16] + struct.pack(">II", 60_000, 60_000),
        "BMP": content["BMP"][:18] + struct.pack("<ii", 60_000, 60_000),
        "GIF": content["GIF"][:6] + struct.pack("<HH", 65_535, 65_535),
        "PPM": b"P6 60000 60000 255\n",
    }
    for kind, head in huge.items():
        yield Odd(f"{kind} of gigapixels", head + content[kind][len(head) :], None)
    frame = content["JPEG"].index(b"\xff\xc0") + 5
    head = content["JPEG"][:frame] + struct.pack(">HH", 65_535, 65_535)
    yield Odd("JPEG of gigapixels", head + content["JPEG"][frame + 4 :], None)


CASES = [
    case
    for make in (turned, see_through, depths, packed, photographs, several, cut_off, no_images)
    for case in make()
]


def test_there_are_enough() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_odd_file_becomes_what_it_means_or_an_error(case: Odd, tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"  # whatever it is
    path.write_bytes(case.content)
    if case.expected is None:
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert "odd.jpg" in str(caught.value)
    else:
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.shape == case.expected.shape
        difference = np.abs(image.astype(float) - case.expected)
        assert difference.max() <= case.tolerance + 1e-6


# --- what is no file


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # a whole path may be too long for a socket


def make_link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "it is a FIFO"),
    "socket": (make_socket, "it is a socket"),
    "endless device": (make_link("/dev/zero"), "it is a device"),
    "silent device": (make_link("/dev/tty"), "it is a device"),
    "empty device": (make_link(os.devnull), "it is a device"),
    "folder": (os.mkdir, "this is a folder"),
    "link to nowhere": (make_link("gone.jpg"), "does not exist"),
    "link to itself": (make_link("x.jpg"), "cannot be read"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", NO_FILES)
def test_anything_but_a_regular_file_is_an_error_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, reason = NO_FILES[kind]
    make(Path("x.jpg"))
    with pytest.raises(ImageError, match=reason):
        read_image(Path("x.jpg"))
