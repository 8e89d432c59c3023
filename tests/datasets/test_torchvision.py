"""torchvision:CLASS, on small folders laid out as torchvision expects them."""

from __future__ import annotations

import bz2
import hashlib
import inspect
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from featpipe.datasets import short_name, slug
from featpipe.datasets.dataset import open_source, splits_of
from featpipe.datasets.torchvision import OFFERED, REFUSED
from featpipe.errors import DataError, DownloadError, UnknownNameError, UsageError
from tests.datasets.conftest import pictures

datasets = pytest.importorskip("torchvision.datasets")

# Detection, segmentation, optical flow, stereo, captions, video and base classes.
NOT_CLASSIFICATION = {
    "CREStereo", "CarlaStereo", "Cityscapes", "CocoCaptions", "CocoDetection", "ETH3DStereo",
    "FallingThingsStereo", "Flickr30k", "Flickr8k", "FlyingChairs", "FlyingThings3D", "HD1K",
    "HMDB51", "InStereo2k", "Kinetics", "Kitti", "Kitti2012Stereo", "Kitti2015Stereo", "KittiFlow",
    "LFWPairs", "Middlebury2014Stereo", "MovingMNIST", "SBDataset", "SBU", "SceneFlowStereo",
    "Sintel", "SintelStereo", "UCF101", "VOCDetection", "VOCSegmentation", "VisionDataset",
    "WIDERFace", "wrap_dataset_for_transforms_v2",
}  # fmt: skip
UNPICKLES = re.compile(r"pickle|torch\.load|allow_pickle=True")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def save_all(folder, names, seed=0):
    """Save an image under each name, as PNG whatever the name says; return the images."""
    images = pictures(len(names), seed=seed)
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name, "PNG")
    return images


def flowers102(root, monkeypatch):
    """Labels and splits in MATLAB files with a published MD5 sum."""
    folder = root / "flowers-102"
    images = save_all(folder / "jpg", [f"image_{number:05d}.jpg" for number in range(1, 7)])
    savemat(folder / "imagelabels.mat", {"labels": [1, 2, 3, 1, 2, 102]})
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [6, 5]})
    files = {
        key: (name, md5(folder / name) if name.endswith(".mat") else None)
        for key, (name, _) in datasets.Flowers102._file_dict.items()
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    made = {"train": ([0, 1], [0, 1]), "test": ([4, 5], [1, 101]), "val": ([2, 3], [2, 0])}
    return images, made, ("pink primrose", 102)


def country211(root, monkeypatch):
    """Class folders below split folders; the validation split is called valid."""
    names = [f"{s}/{c}/0.jpg" for s in ("train", "test", "valid") for c in ("AD", "ZW")]
    images = save_all(root / "country211", names)
    made = {"train": ([0, 1], [0, 1]), "test": ([2, 3], [0, 1]), "valid": ([4, 5], [0, 1])}
    return images, made, ("AD", 2)


def eurosat(root, monkeypatch):
    """Class folders, no splits."""
    images = save_all(root / "eurosat" / "2750", ["Forest/b10.jpg", "Forest/b9.jpg", "River/1.jpg"])
    return images, {"all": ([1, 0, 2], [0, 0, 1])}, ("Forest", 2)


def oxford_pets(root, monkeypatch):
    """Lists of images with labels from 1; the training split is called trainval."""
    folder = root / "oxford-iiit-pet"
    images = save_all(folder / "images", [f"{n}.jpg" for n in ("Bengal_1", "pug_1", "Bengal_2")])
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text("Bengal_1 1 1 1\npug_1 2 2 1\n")
    (folder / "annotations" / "test.txt").write_text("Bengal_2 1 1 2\n")
    return images, {"trainval": ([0, 1], [0, 1]), "test": ([2], [0])}, ("Bengal", None)


def aircraft(root, monkeypatch):
    """Lists per split; trainval overlaps two others."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    images = save_all(folder / "images", [f"{number}.jpg" for number in range(4)])
    (folder / "variants.txt").write_text("707-320\nA300 B4\n")
    for split, lines in {
        "train": "0 A300 B4\n", "val": "1 707-320\n", "trainval": "0 A300 B4\n1 707-320\n",
        "test": "2 707-320\n3 A300 B4\n",
    }.items():  # fmt: skip
        (folder / f"images_variant_{split}.txt").write_text(lines)
    made = {"train": ([0], [1]), "test": ([2, 3], [0, 1]), "val": ([1], [0])}
    return images, made, ("707-320", 2)


def gtsrb(root, monkeypatch):
    """Numbered class folders to train, a table to test; the classes have no names."""
    folder = root / "gtsrb"
    names = ["Training/00000/1.ppm", "Training/00001/1.ppm", "Final_Test/Images/00000.ppm"]
    images = save_all(folder / "GTSRB", names)
    (folder / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    return images, {"train": ([0, 1], [0, 1]), "test": ([2], [1])}, ("0", 2)


def sun397(root, monkeypatch):
    """Listed in the order of the file system."""
    images = save_all(
        root / "SUN397", ["b/bar/sun_b.jpg", "a/abbey/sun_z.jpg", "a/abbey/sun_a.jpg"]
    )
    (root / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")
    return images, {"all": ([2, 1, 0], [0, 0, 1])}, ("abbey", 2)


def caltech101(root, monkeypatch):
    """No loader, no list of files."""
    folder = root / "caltech101" / "101_ObjectCategories"
    images = save_all(folder, ["ant/image_0001.jpg", "ant/image_0002.jpg", "cup/image_0001.jpg"])
    (folder / "BACKGROUND_Google").mkdir()
    return images, {"all": ([0, 1, 2], [0, 0, 1])}, ("ant", 2)


def caltech256(root, monkeypatch):
    """The number of the class is a part of the name."""
    folder = root / "caltech256" / "256_ObjectCategories"
    images = save_all(folder, ["001.ak47/001_0001.jpg", "002.flag/002_0001.jpg"])
    return images, {"all": ([0, 1], [0, 1])}, ("001.ak47", 2)


def svhn(root, monkeypatch):
    """One MATLAB file per split; the digit 0 has the label 10."""
    images = pictures(4)
    lists = {}
    for split, rows in {"train": [0, 1], "test": [2, 3], "extra": [0, 2]}.items():
        file = root / f"{split}_32x32.mat"
        labels = np.array([[[10], [3], [9], [1]][row] for row in rows])
        savemat(file, {"X": images[rows].transpose(1, 2, 3, 0), "y": labels})
        lists[split] = ["no url", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    return images, {"train": ([0, 1], [0, 3]), "test": ([2, 3], [9, 1])}, ("0", None)


def mnist(root, monkeypatch):
    """Grey images in the format of the first publication; ``train=`` and not ``split=``."""
    images, folder = pictures(3, colours=False), root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, rows, labels in (("train", [0, 1], [7, 0]), ("t10k", [2], [9])):
        header = struct.pack(">IIII", 0x803, len(rows), 8, 8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images[rows].tobytes())
        header = struct.pack(">II", 0x801, len(rows))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(labels))
    grey = np.repeat(images[..., None], 3, axis=3)
    return grey, {"train": ([0, 1], [7, 0]), "test": ([2], [9])}, ("0 - zero", 10)


def usps(root, monkeypatch):
    """Compressed text."""
    values = np.array([np.full(256, -1.0), np.full(256, 1.0)])
    for name, row, label in (("usps.bz2", 0, 3), ("usps.t.bz2", 1, 10)):
        pairs = " ".join(f"{at}:{value}" for at, value in enumerate(values[row], 1))
        (root / name).write_bytes(bz2.compress(f"{label} {pairs}\n".encode()))
    images = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 255)])
    return images, {"train": ([0], [2]), "test": ([1], [9])}, ("0", None)


def pcam(root, monkeypatch):
    """HDF5 files that stay on the disk."""
    images = pictures(6)
    (root / "pcam").mkdir()
    for split, rows in {"train": [0, 1], "test": [2, 3], "valid": [4, 5]}.items():
        stem = root / "pcam" / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = images[rows]
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)
    made = {"train": ([0, 1], [1, 0]), "test": ([2, 3], [1, 0]), "val": ([4, 5], [1, 0])}
    return images, made, ("0", 2)


MAKERS = {
    "Flowers102": flowers102, "Country211": country211, "EuroSAT": eurosat, "GTSRB": gtsrb,
    "OxfordIIITPet": oxford_pets, "FGVCAircraft": aircraft, "SUN397": sun397, "SVHN": svhn,
    "Caltech101": caltech101, "Caltech256": caltech256, "MNIST": mnist, "USPS": usps, "PCAM": pcam,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_images_labels_and_splits(name, tmp_path, monkeypatch, options):
    root = tmp_path / "root"
    root.mkdir()
    images, made, (first_class, n_classes) = MAKERS[name](root, monkeypatch)
    spec, options = f"torchvision:{name}", replace(options, data=root)
    assert splits_of(spec, options) == tuple(made)
    prints = set()
    for split, (rows, labels) in made.items():
        source = open_source(spec, split, options)
        assert source.name == spec
        assert source.labels.tolist() == labels
        assert source.classes[0] == first_class
        assert n_classes is None or len(source.classes) == n_classes
        read = np.stack([source.read(row) for row in range(len(source))])
        np.testing.assert_array_equal(read, images[rows])
        assert open_source(spec, split, options).fingerprint == source.fingerprint
        prints.add(source.fingerprint)
    assert len(prints) == len(made)
    root.rename(tmp_path / "raw")
    assert open_source(spec, split, replace(options, data=None)).fingerprint in prints


def test_the_rest_of_the_splits_is_opened_on_request(tmp_path, monkeypatch, options):
    aircraft(tmp_path, monkeypatch)
    options = replace(options, data=tmp_path)
    assert len(open_source("torchvision:FGVCAircraft", "trainval", options)) == 2


def test_random_images_need_no_folder(monkeypatch, options):
    few = (6, (3, 8, 8), *datasets.FakeData.__init__.__defaults__[2:])
    monkeypatch.setattr(datasets.FakeData.__init__, "__defaults__", few)
    source = open_source("torchvision:FakeData", "all", options)
    image, label = datasets.FakeData()[5]
    np.testing.assert_array_equal(source.read(5), np.asarray(image))
    assert source.labels[5] == label


def test_its_name_in_manifests_and_paths():
    assert short_name("torchvision:DTD") == "torchvision:DTD"
    assert slug("torchvision:DTD") == "torchvision-DTD"


def test_every_dataset_of_torchvision_is_offered_refused_or_no_classification():
    """A new one is offered once its source code was checked."""
    groups = [set(OFFERED), set(REFUSED), NOT_CLASSIFICATION]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert set(datasets.__all__) <= set.union(*groups)
    documented = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert [name for name in OFFERED if f"`{name}`" not in documented] == []


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_unpickles_nothing(name):
    kind = getattr(datasets, name)
    source = "".join(inspect.getsource(base) for base in kind.__mro__[:-3])
    if issubclass(kind, datasets.MNIST):  # its old files are refused, see below
        source = source.replace(inspect.getsource(datasets.MNIST._load_legacy_data), "")
    assert not UNPICKLES.search(source)
    module = Path(sys.modules[kind.__module__].__file__).read_text(encoding="utf-8")
    assert "import pickle" not in module


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_dataset_says_why(name, options):
    with pytest.raises(UsageError, match=f"{name} of torchvision is not used") as caught:
        splits_of(f"torchvision:{name}", options)
    assert REFUSED[name] in str(caught.value)


def test_files_of_old_versions_are_not_loaded(tmp_path, monkeypatch, options):
    mnist(tmp_path, monkeypatch)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    (processed / "training.pt").write_bytes(b"a pickle")
    with pytest.raises(DataError, match=r"torch\.load; refused") as caught:
        open_source("torchvision:MNIST", "train", replace(options, data=tmp_path))
    assert f"remove {processed}" in str(caught.value)


def test_an_unknown_class_is_named_with_the_nearest(options):
    with pytest.raises(UnknownNameError, match="'Flower102'") as caught:
        splits_of("torchvision:Flower102", options)
    assert "did you mean 'Flowers102'?" in str(caught.value)


def test_a_torchvision_that_lists_no_files_is_too_old(monkeypatch, options):
    class DTD:
        def __init__(self, root, split="train", partition=1, download=False):
            """As it was before torchvision 0.22."""

    monkeypatch.setattr(datasets, "DTD", DTD)
    with pytest.raises(UsageError, match="does not list the files of DTD") as caught:
        open_source("torchvision:DTD", "train", options)
    assert "torchvision 0.22 or newer" in str(caught.value)
    assert "pip install --upgrade torch torchvision" in str(caught.value)


def test_a_damaged_file_is_reported_with_its_folder(tmp_path, monkeypatch, options):
    oxford_pets(tmp_path, monkeypatch)
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Bengal_2\n")
    with pytest.raises(DataError, match="cannot read its dataset OxfordIIITPet") as caught:
        open_source("torchvision:OxfordIIITPet", "test", replace(options, data=tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_torchvision_stumbles_over_while_it_reads(tmp_path, monkeypatch, options):
    svhn(tmp_path, monkeypatch)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": pictures(2).transpose(1, 2, 3, 0), "y": [[1]]})
    lists = {**datasets.SVHN.split_list, "test": ["no url", file.name, md5(file)]}
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    with pytest.raises(DataError, match="cannot read its dataset SVHN"):
        open_source("torchvision:SVHN", "test", replace(options, data=tmp_path))


def test_files_that_torchvision_misses_are_named(tmp_path, monkeypatch, options):
    oxford_pets(tmp_path, monkeypatch)
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match="is not here") as caught:
        open_source("torchvision:OxfordIIITPet", "test", replace(options, data=tmp_path))
    assert "annotations/test.txt" in str(caught.value)


@pytest.mark.parametrize("name", ["Caltech101", "Caltech256"])
def test_looking_for_a_dataset_makes_no_folder(name, tmp_path, options):
    with pytest.raises(DataError, match="is not here"):
        open_source(f"torchvision:{name}", "all", replace(options, data=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_only_where_it_is_allowed(tmp_path, monkeypatch, options, listener):
    monkeypatch.setattr(
        datasets.EuroSAT, "download", lambda self: eurosat(Path(self.root), monkeypatch)
    )
    with pytest.raises(DataError, match="is not here"):
        open_source("torchvision:EuroSAT", "all", options)
    options = replace(options, download=True, progress=listener)
    assert len(open_source("torchvision:EuroSAT", "all", options)) == 3
    assert "torchvision fetches it" in listener.notes[0]
    assert [path.name for path in (options.raw / "torchvision").iterdir()] == ["eurosat"]
    assert len(open_source("torchvision:EuroSAT", "all", replace(options, download=False))) == 3


def test_a_download_that_fails(monkeypatch, options):
    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.EuroSAT, "download", fail)
    with pytest.raises(DownloadError, match="could not fetch") as caught:
        open_source("torchvision:EuroSAT", "all", replace(options, download=True))
    assert "no network" in str(caught.value)
    assert "--data DIR" in str(caught.value)
