"""What an image looks like: the same for the same pixels, whatever the file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featpipe.datasets.images import read_image
from featpipe.extraction.engine import look_at
from tests.images import pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_the_format_of_a_file_does_not_matter(tmp_path, suffix):
    (picture,) = pictures(1)
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}")
    one, other = look_at(picture), look_at(read_image(tmp_path / f"a.{suffix}"))
    for part in one:
        np.testing.assert_array_equal(one[part], other[part])


def test_grey_is_the_same_in_one_channel_and_in_three(tmp_path):
    grey = pictures(1)[0, :, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    look = look_at(read_image(tmp_path / "grey.png"))
    same = look_at(np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(look["looks/digest"], same["looks/digest"])


def test_one_pixel_or_another_shape_makes_another_image():
    (picture,) = pictures(1, 16)
    digests = {look_at(picture)["looks/digest"].tobytes()}
    changed = picture.copy()
    changed[3, 5, 1] ^= 1
    for other in (changed, picture.reshape(8, 32, 3), picture[:, ::-1]):
        digests.add(look_at(other)["looks/digest"].tobytes())
    assert len(digests) == 4


def test_the_thumbnail_is_the_mean_of_what_it_shows():
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32] = 200
    look = look_at(picture)
    assert tuple(look["looks/size"]) == (64, 128)
    assert (look["looks/thumbnail"][:16] == 200).all()
    assert (look["looks/thumbnail"][16:] == 0).all()
