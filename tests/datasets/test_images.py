"""Every kind of image file becomes upright RGB, and every broken one an ImageError."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from featpipe.datasets import images
from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.images import FileSource, read_image
from featpipe.datasets.source import Identity
from featpipe.errors import DataError, ImageError
from featpipe.fingerprint import FileHashes

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")

GREY = np.array([[0, 50, 100], [150, 200, 255]], dtype=np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture
def saved(tmp_path):
    """Save a Pillow image and read it with the function under test."""

    def save_and_read(image, suffix=".png", **options):
        path = tmp_path / f"image{suffix}"
        image.save(path, **options)
        return read_image(path)

    return save_and_read


def test_colour_is_kept(saved):
    np.testing.assert_array_equal(saved(Image.fromarray(COLOUR)), COLOUR)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif", ".pgm"])
def test_grey_is_repeated(saved, suffix):
    np.testing.assert_array_equal(saved(Image.fromarray(GREY), suffix), as_rgb(GREY))


def test_one_bit(saved):
    image = Image.fromarray(GREY > 120)
    assert image.mode == "1"
    np.testing.assert_array_equal(saved(image), as_rgb(np.where(GREY > 120, 255, 0)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_composited_on_white(saved, mode, suffix):
    base = Image.new("L" if mode == "LA" else "RGB", (3, 1), 100 if mode == "LA" else (100, 0, 40))
    base.putalpha(Image.fromarray(np.array([[0, 255, 51]], dtype=np.uint8)))
    image = saved(base, suffix)
    expected = [100, 100, 100] if mode == "LA" else [100, 0, 40]
    np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(image[0, 1], expected)
    a_fifth = [round(0.2 * value + 0.8 * 255) for value in expected]
    np.testing.assert_allclose(image[0, 2].astype(int), a_fifth, atol=1)


def test_palette(saved):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8)
    np.testing.assert_array_equal(saved(image), colours[[[0, 1], [2, 1]]])
    see_through = saved(image, transparency=1)
    np.testing.assert_array_equal(see_through[0, 1], [255, 255, 255])
    np.testing.assert_array_equal(see_through[0, 0], [10, 20, 30])


def test_a_colour_declared_transparent(saved):
    image = Image.fromarray(COLOUR)
    marked = tuple(int(value) for value in COLOUR[2, 3])
    expected = COLOUR.copy()
    expected[2, 3] = 255
    np.testing.assert_array_equal(saved(image, transparency=marked), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_16_bit_grey_is_scaled_not_clipped(saved, suffix):
    values = np.array([[0, 255, 256], [32768, 65278, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    options = {"irreversible": False} if suffix == ".jp2" else {}
    expected = np.array([[0, 1, 1], [128, 254, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(saved(image, suffix, **options), as_rgb(expected))


def test_16_bit_big_endian(saved):
    values = np.array([[0, 257 * 7, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    np.testing.assert_array_equal(saved(image, ".tif"), as_rgb(np.array([[0, 7, 255]])))


def test_16_bit_grey_with_a_transparent_value(saved):
    values = np.array([[0, 257 * 7, 65535]], dtype=np.uint16)
    image = saved(Image.fromarray(values), transparency=257 * 7)
    np.testing.assert_array_equal(image, as_rgb(np.array([[0, 255, 255]])))


def test_16_bit_colour(tmp_path):
    """Pillow cannot write such a file, so it is put together by hand."""
    values = np.array([[[0, 0x8000, 0xFFFF], [0x1234, 0x00FF, 0x0100]]], dtype=">u2")

    path = tmp_path / "deep.png"
    path.write_bytes(png_bytes(2, 1, 16, b"\0" + values.tobytes()))
    np.testing.assert_allclose(read_image(path).astype(int), values / 257, atol=1)


def test_floating_point(saved):
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    expected = as_rgb(np.array([[0, 128, 255]]))
    np.testing.assert_array_equal(saved(Image.fromarray(values), ".tif"), expected)


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, np.inf])
def test_floating_point_out_of_range_is_refused(saved, wrong):
    values = np.array([[0.0, wrong]], dtype=np.float32)
    with pytest.raises(ImageError, match="outside the range") as caught:
        saved(Image.fromarray(values), ".tif")
    assert "0 (black) to 1 (white)" in str(caught.value)


def test_32_bit_integers_are_refused(saved):
    with pytest.raises(ImageError, match="32-bit integers"):
        saved(Image.fromarray(np.array([[0, 255]], dtype=np.int32)), ".tif")


def test_cmyk(saved):
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8))
    image = Image.frombytes("CMYK", (3, 1), image.tobytes())
    paper_cyan_black = [[255, 255, 255], [0, 255, 255], [0, 0, 0]]
    np.testing.assert_array_equal(saved(image, ".tif")[0], paper_cyan_black)


def test_cmyk_jpeg_is_inverted_as_adobe_does(saved):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100)
    assert b"Adobe" in buffer.getvalue(), "the marker that means inverted"
    np.testing.assert_allclose(
        saved(image, ".jpg", quality=100).mean((0, 1)), [0, 255, 255], atol=3
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_becomes_upright(saved, orientation, suffix):
    """The file holds the upright picture turned so that the tag turns it back."""
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:8, :8] = [255, 0, 0]
    upright[:8, -8:] = [0, 255, 0]
    upright[-8:, :8] = [0, 0, 255]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),  # the tag says: turn by 90° clockwise to view
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}
    image = Image.fromarray(np.ascontiguousarray(stored))
    read = saved(image, suffix, exif=exif, **options.get(suffix, {}))
    assert read.shape == upright.shape
    np.testing.assert_allclose(read.astype(int), upright, atol=6)


def test_16_bit_grey_is_turned_too(saved):
    values = np.array([[0, 257 * 9, 65535]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    image = saved(Image.fromarray(values), exif=exif)
    np.testing.assert_array_equal(image, as_rgb(np.array([[255, 9, 0]])))


def test_a_jpeg_is_decoded_smaller_but_never_below_the_side_asked_for(tmp_path):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    photo = coarse.resize((200, 160), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", quality=95)
    for side, shape in ((20, (20, 25, 3)), (21, (40, 50, 3)), (81, (160, 200, 3)), (999, None)):
        got = read_image(tmp_path / "photo.jpg", side)
        assert got.shape == (shape or (160, 200, 3))
        near = np.asarray(photo.resize((got.shape[1], got.shape[0]), Image.Resampling.BOX))
        assert np.abs(got.astype(int) - near).mean() < 3
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 40).shape == (50, 40, 3)
    photo.save(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.png", 20).shape == (160, 200, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("block", [b"", b"garbage!", b"II*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff"])
def test_a_damaged_exif_block_does_not_damage_the_image(saved, block, suffix):
    assert saved(Image.fromarray(COLOUR), suffix, exif=b"Exif\0\0" + block).shape == COLOUR.shape


def test_the_orientation_counts_although_another_tag_is_damaged(saved):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    block = bytearray(exif.tobytes())
    block[block.index(b"\x01\x1a") + 3] = 200  # the type of the resolution: there is none of this
    assert saved(Image.fromarray(COLOUR), exif=bytes(block)).shape == (7, 5, 3)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_of_an_animation(saved, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    image = saved(frames[0], suffix, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(image, np.full((4, 4, 3), [255, 0, 0]))


def test_a_stereo_photograph_gives_its_first_picture(tmp_path):
    path = tmp_path / "stereo.jpg"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, "MPO", save_all=True, append_images=frames[1:], quality=100)
    np.testing.assert_allclose(read_image(path).mean((0, 1)), [254, 0, 0], atol=2)


@pytest.mark.parametrize("mode", ["YCbCr", "RGBX", "PA"])
def test_rarer_modes(saved, mode):
    colour = (204, 102, 51)  # one of the standard palette
    image = Image.new("RGB", (4, 4), colour).convert("P" if mode == "PA" else "RGB").convert(mode)
    np.testing.assert_allclose(saved(image, ".tif").mean((0, 1)), colour, atol=2)


def test_the_format_is_detected_from_the_content(saved, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "really.jpg", "PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "really.jpg"), COLOUR)


def test_the_array_may_be_changed(saved):
    assert saved(Image.fromarray(COLOUR)).flags.writeable


def jpeg_bytes(side=64):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def broken_files():
    whole = {}
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        whole[kind] = buffer.getvalue()
    yield from ((f"half a {kind}", content[: len(content) // 2]) for kind, content in whole.items())
    yield from ((f"start of a {kind}", content[:12]) for kind, content in whole.items())
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 255
    yield "PNG with a wrong checksum", bytes(flipped)
    yield "text", b"<html>404 not found</html>"
    yield "empty", b""


@pytest.mark.parametrize(
    ("what", "content"), list(broken_files()), ids=lambda value: str(value)[:30]
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, what, content):
    path = tmp_path / "broken image.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "broken image.jpg" in str(caught.value)
    if what == "empty":
        assert "empty" in str(caught.value)


def test_half_an_image_is_never_filled_with_grey(tmp_path, monkeypatch):
    """Not even where other code of the process has asked Pillow to be lenient."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "half.jpg"
    content = jpeg_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


def png_chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_bytes(width, height, bits, rows):
    """Put a colour PNG together, also one that Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_far_too_large_image_is_refused_before_it_is_decoded(tmp_path, side, recwarn):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes(side, side, 8, b"little"))
    with pytest.raises(ImageError, match="too large") as caught:
        read_image(path)
    assert f"{side * side} pixels" in str(caught.value)
    assert f"at most {Image.MAX_IMAGE_PIXELS} pixels" in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_who_trusts_a_large_image_may_raise_the_limit(saved, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match="35 pixels"):
        saved(Image.fromarray(COLOUR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(saved(Image.fromarray(COLOUR)), COLOUR)


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="does not exist") as caught:
        read_image(tmp_path / "gone.png")
    assert "gone.png" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(COLOUR).save(path)
    path.chmod(0)
    with pytest.raises(ImageError, match="may not be read"):
        read_image(path)


def test_postscript_is_never_run(tmp_path):
    """Pillow would hand such a file to Ghostscript."""
    path = tmp_path / "harmless.jpg"
    Image.fromarray(COLOUR).save(path, "EPS")
    with pytest.raises(ImageError, match="not a readable image"):
        read_image(path)


def test_threads_decode_at_the_same_time(tmp_path):
    paths = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.fromarray(COLOUR + np.uint8(number)).save(path)
        paths.append(path)
    with ThreadPoolExecutor(8) as pool:
        for number, image in enumerate(pool.map(read_image, paths)):
            np.testing.assert_array_equal(image, COLOUR + np.uint8(number))


# --- what is hashed is what is decoded


def files_of(folder, options):
    names = sorted(path.name for path in folder.iterdir())
    return FileSource(Identity("toy", "all", ("a",), names, [0] * len(names)), folder, options)


@pytest.mark.parametrize("remembered", [False, True])
def test_an_image_replaced_after_hashing_is_never_taken_for_it(
    tmp_path, options, let_files_settle, remembered
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(COLOUR).save(folder / name)
    let_files_settle()
    if remembered:
        files_of(folder, options)
    source = files_of(folder, options)
    Image.fromarray(255 - COLOUR).save(tmp_path / "other.png")
    (tmp_path / "other.png").replace(folder / "2.png")
    np.testing.assert_array_equal(source.read(0), COLOUR)
    with pytest.raises(DataError, match="has changed") as caught:
        source.read(1)
    assert not isinstance(caught.value, ImageError), "an option to skip does not skip it"
    assert "2.png" in str(caught.value)
    again = files_of(folder, options)
    assert again.fingerprint != source.fingerprint
    np.testing.assert_array_equal(again.read(1), 255 - COLOUR)


def test_the_bytes_are_read_once(tmp_path, monkeypatch):
    """Between two readings the file could become another."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(COLOUR).save(folder / "1.png")
    source = files_of(folder, DatasetOptions())
    opened = []
    monkeypatch.setattr(
        images, "read_regular", lambda path, most: opened.append(path) or path.read_bytes()
    )
    source.read(0)
    assert opened == [folder / "1.png"]


def test_a_file_that_could_not_be_read_has_another_fingerprint_once_it_can(tmp_path, options):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(COLOUR).save(folder / "1.png")
    (folder / "2.png").symlink_to(tmp_path / "gone.png")
    before = files_of(folder, options)
    assert list(before.unreadable) == [1]
    Image.fromarray(COLOUR).save(tmp_path / "gone.png")
    after = files_of(folder, options)
    assert not after.unreadable
    assert after.fingerprint != before.fingerprint


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageError, match="1099511627776 bytes"):
        read_image(path)


def test_a_file_without_permission_is_listed_as_unreadable(tmp_path, options, monkeypatch):
    """As for a user who is not root, who may read everything."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(COLOUR).save(folder / name)
    os_open, os_access = os.open, os.access
    secret = str(folder / "2.png")

    def refuse(path, *more, **options):
        if str(path) == secret:
            raise PermissionError(errno.EACCES, "Permission denied", secret)
        return os_open(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path != secret and os_access(path, mode))
    source = files_of(folder, options)
    assert source.unreadable == {1: "The image file may not be read."}
    np.testing.assert_array_equal(source.read(0), COLOUR)


def test_the_size_of_all_images_is_that_in_their_headers(tmp_path, let_files_settle, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(folder / f"{number}.png")
    cut = folder / "1.png"
    cut.write_bytes(cut.read_bytes()[:40])  # the header is there, the pixels are not
    (folder / "3.png").write_bytes(b"no image")
    names = [f"{number}.png" for number in range(4)]
    options = DatasetOptions(hashes=FileHashes(tmp_path / "hashes.sqlite"))
    let_files_settle()

    def size(names):
        identity = Identity("folder:x", "all", ("x",), names, [0] * len(names))
        return FileSource(identity, folder, options).size

    assert size(names) == (5, 7)
    monkeypatch.setattr(images, "open_regular", None)
    assert size(names) == (5, 7), "it is remembered"
    monkeypatch.undo()
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(folder / "2.png")
    assert size(names) is None
    assert size(names[:2]) == (5, 7)
    assert size(["3.png"]) is None
