from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.transforms.functional import center_crop

from featpipe.backbones import MODELS, fit_of_identity, load_backbone
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets.images import read_image
from featpipe.errors import UsageError
from featpipe.fingerprint import of_mapping

IMAGENET = Preprocessing(resize=256, crop=224)
SMALL = Preprocessing(resize=36, crop=32)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth shapes and some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth * 0.8 + rng.integers(0, 50, smooth.shape)).astype(np.uint8)


def with_pillow(image: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """The same in Pillow, whose resize always antialiases."""
    picture = Image.fromarray(image)
    filter_ = Image.Resampling[how.interpolation.upper()]
    if how.fit == "whole":
        return np.asarray(picture.resize((how.crop, how.crop), filter_))
    width, height = picture.size
    short = min(width, height)
    target = how.crop if how.fit == "fill" else how.resize
    size = [int(target * side / short) for side in (width, height)]
    return np.asarray(center_crop(picture.resize(tuple(size), filter_), [how.crop, how.crop]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["fill", "crop", "whole"])
@pytest.mark.parametrize("shape", [(500, 333), (96, 96), (150, 240), (257, 640), (1200, 900)])
def test_resizing_is_pillows(shape: tuple[int, int], fit: str, interpolation: str) -> None:
    how = replace(IMAGENET.adapted(fit=fit), interpolation=interpolation)
    image = picture(*shape)
    ours = how.prepare(image).permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(ours - with_pillow(image, how))
    # Pillow rounds between its two passes; which comes first matters where both sides shrink.
    assert difference.max() <= (2 if fit == "whole" else 1)
    assert difference.mean() < (0.3 if fit == "whole" else 0.02)


def test_shrinking_is_antialiased() -> None:
    # Lines of one pixel, black and white: without antialiasing they come out black or white.
    lines = np.zeros((640, 640, 3), np.uint8)
    lines[:, ::2] = 255
    middle = SMALL.prepare(lines).float()
    assert middle.min() > 110
    assert middle.max() < 145


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    fit=st.sampled_from(["fill", "crop", "whole"]),
)
def test_any_image_becomes_the_networks_square(height: int, width: int, fit: str) -> None:
    image = np.full((height, width, 3), 77, np.uint8)
    prepared = SMALL.adapted(fit=fit).prepare(image)
    assert prepared.shape == (3, 32, 32)
    assert prepared.dtype == torch.uint8
    assert (prepared == 77).all()


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 9000)])
def test_a_line_of_pixels_does_not_explode(shape: tuple[int, int]) -> None:
    # Shorter side to 256 would make five million columns of it.
    prepared = IMAGENET.prepare(np.full((*shape, 3), 9, np.uint8))
    assert prepared.shape == (3, 224, 224)
    assert (prepared == 9).all()


def test_the_centre_of_a_long_image_is_what_a_shorter_one_shows() -> None:
    long = picture(40, 40 * 20)
    middle = long[:, 40 * 6 : 40 * 14]  # eight to one: the longest that is resized as a whole
    assert torch.equal(SMALL.prepare(long), SMALL.prepare(middle))


def test_without_a_margin_an_image_of_the_networks_size_is_used_as_it_is() -> None:
    image = picture(224, 224)
    prepared = IMAGENET.adapted(fit="fill").prepare(image)
    assert np.array_equal(prepared.permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize("side", [96, 224, 225, 400])
def test_a_margin_is_cut_or_not_whatever_the_size_of_an_image(side: int) -> None:
    image = np.zeros((side, side, 3), np.uint8)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = 255
    rim = IMAGENET.adapted(fit="fill").prepare(image)[:, 0]
    assert rim.min() > 0
    assert IMAGENET.adapted(fit="crop").prepare(image).max() == 0


@pytest.mark.parametrize(
    ("sizes", "meant"),
    [
        ([(96, 96)], "fill"),
        ([(224, 500), (224, 500)], "fill"),
        ([(225, 225)], "crop"),
        ([(96, 96), (97, 97)], "crop"),
        ([(96, 96), None], "crop"),
        ([None], "crop"),
        ([], "crop"),
    ],
)
def test_auto_is_decided_for_a_whole_dataset(sizes: list[Any], meant: str) -> None:
    assert IMAGENET.adapted(fit="auto", sizes=sizes).fit == meant
    assert IMAGENET.adapted(fit="crop", sizes=sizes).fit == "crop"


def test_identities_call_no_margin_what_they_always_called_it() -> None:
    fill, crop = (IMAGENET.adapted(fit=fit).as_dict()["fit"] for fit in ("fill", "crop"))
    assert (fill, crop) == ("auto", "crop")
    assert Preprocessing(32, 32).as_dict()["fit"] == "auto"  # where there is none to cut
    assert fit_of_identity(fill) == "fill"
    assert fit_of_identity(crop) == "crop"


@pytest.mark.real
def test_photos_of_mixed_sizes_give_the_features_of_torchvisions_own_pipeline(shared: Path) -> None:
    """Every eighth of 800 photographs, shorter sides of 50 to 500 pixels."""
    weights = shared / "weights" / "resnet18-imagenet-pqf.safetensors"
    backbone = load_backbone("resnet18", str(weights), "cpu", sizes=[None])
    files = sorted((shared / "data" / "dogs-vs-cats" / "train").glob("*.jpg"))[::8]
    photos = [Image.open(file).convert("RGB") for file in files]
    assert min(min(photo.size) for photo in photos) < 224 < max(min(p.size) for p in photos)
    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        network = torch.nn.Sequential(*list(backbone.network.children())[:-1])
        expected = network(torch.stack([theirs(photo) for photo in photos])).flatten(1)
        ours = backbone.embed(
            torch.stack([backbone.preprocessing.prepare(read_image(file)) for file in files])
        )["avgpool"]
    cosines = torch.nn.functional.cosine_similarity(expected, torch.from_numpy(ours))
    assert cosines.min() >= 0.9999


def test_the_whole_image_is_kept_where_asked() -> None:
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, :20] = image[:, -20:] = 255  # bright at both ends, which a centre crop loses
    assert SMALL.prepare(image).max() == 0
    assert SMALL.adapted(fit="whole").prepare(image)[:, :, [0, -1]].min() == 255


def test_the_callers_array_is_neither_needed_writable_nor_changed() -> None:
    image = picture(80, 60)
    image.setflags(write=False)
    before = image.copy()
    prepared = SMALL.prepare(image)
    SMALL.normalise(prepared[None])
    assert np.array_equal(image, before)
    same_size = picture(32, 32)
    same_size.setflags(write=False)
    SMALL.prepare(same_size).zero_()
    assert same_size.any()


def test_strided_arrays_are_understood() -> None:
    planes = np.ascontiguousarray(picture(50, 70).transpose(2, 1, 0))  # STL-10's order on disk
    assert torch.equal(SMALL.prepare(planes.transpose(2, 1, 0)), SMALL.prepare(picture(50, 70)))


def test_threads_get_the_same_result() -> None:
    images = [picture(60 + i, 90, seed=i) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(SMALL.prepare, images))
    assert all(
        torch.equal(one, SMALL.prepare(image)) for one, image in zip(threaded, images, strict=True)
    )


def test_prepared_and_normalised_as_torchvision_does() -> None:
    weights = ResNet50_Weights.IMAGENET1K_V2
    how = MODELS.get("resnet50").published["DEFAULT"].preprocessing
    image = picture(300, 400)
    ours = how.normalise(how.prepare(image)[None])
    theirs = weights.transforms()(Image.fromarray(image))  # Pillow resizes: 1 of 255 apart
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1.01 / 255 / min(how.std))
    assert (ours[0] - theirs).abs().mean() < 1e-3


def test_another_image_size_keeps_the_margin() -> None:
    assert IMAGENET.adapted(448) == replace(IMAGENET, resize=512, crop=448)
    assert Preprocessing(32, 32).adapted(64) == Preprocessing(64, 64)


@pytest.mark.parametrize("size", [-1, 0, 7, 5000])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="8 to 2048"):
        IMAGENET.adapted(size)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 224"):
        Preprocessing(resize=200, crop=224)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, crop, whole"):
        IMAGENET.adapted(fit="stretch")


def test_every_setting_changes_the_fingerprint() -> None:
    variants = [
        IMAGENET,
        IMAGENET.adapted(fit="whole"),
        IMAGENET.adapted(112),
        replace(IMAGENET, resize=232),
        replace(IMAGENET, mean=(0.5, 0.5, 0.5)),
        replace(IMAGENET, std=(0.5, 0.5, 0.5)),
        replace(IMAGENET, interpolation="bicubic"),
    ]
    assert len({of_mapping(variant.as_dict()) for variant in variants}) == len(variants)
    assert json.loads(json.dumps(IMAGENET.as_dict())) == IMAGENET.as_dict()
