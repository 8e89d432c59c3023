"""The official binary files of CIFAR and STL-10: layout, checks, downloads."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets.binary import Cifar10, Cifar100, Stl10
from featpipe.datasets.dataset import open_source, splits_of
from featpipe.errors import DataError
from featpipe.fingerprint import FileHashes

BOTH = pytest.mark.parametrize(("kind", "dataset"), [(Cifar10, "cifar10"), (Cifar100, "cifar100")])


def test_the_fine_label_of_cifar100_is_taken(make, options_for):
    made = make("cifar100")
    source = open_source("cifar100", "train", options_for(made))
    assert source.labels.tolist() == made.labels["train"]
    assert len(source.classes) == 100


@BOTH
def test_the_version_for_python_is_refused_with_what_to_do(options, tmp_path, kind, dataset):
    folder = tmp_path / "data" / kind.pickled_folder
    folder.mkdir(parents=True)
    (folder / next(iter(kind.md5["test"])).removesuffix(".bin")).write_bytes(b"I am a program.")
    for data in (folder, folder.parent):
        with pytest.raises(DataError, match="opens no pickles") as caught:
            open_source(dataset, "test", replace(options, data=data))
        assert caught.value.details["where"] == str(folder)
        assert kind.archive.url in str(caught.value)


def test_the_binary_version_is_read_where_both_are(make, options_for):
    made = make("cifar10")
    folder = made.data / Cifar10.pickled_folder
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"I am a program.")
    assert len(open_source("cifar10", "test", options_for(made))) == 4


def test_a_damaged_batch_is_named(make, options_for):
    made = make("cifar10")
    batch = made.data / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.* is damaged"):
        open_source("cifar10", "train", options_for(made))
    assert len(open_source("cifar10", "test", options_for(made))) == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 3072])
def test_a_batch_of_another_size(make, options_for, monkeypatch, content):
    made = make("cifar10")
    batch = made.data / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(content)
    md5 = {"test": {"test_batch.bin": FileHashes().one(batch, "md5")}}
    monkeypatch.setattr(Cifar10, "md5", md5)
    with pytest.raises(DataError, match="whole number of images"):
        open_source("cifar10", "test", options_for(made))


@pytest.mark.parametrize("text", [None, "", "cat\ndog\n", "\xff\n"])
def test_class_names_that_are_not_ten(make, options_for, text):
    made = make("cifar10")
    names = made.data / "cifar-10-batches-bin" / "batches.meta.txt"
    names.unlink()
    if text is not None:
        names.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="class names") as caught:
        open_source("cifar10", "test", options_for(made))
    assert "10 names" in str(caught.value)


def test_class_names_that_repeat(make, options_for):
    made = make("cifar10")
    names = made.data / "cifar-10-batches-bin" / "batches.meta.txt"
    names.write_text("\n".join(["cat"] * 10))
    with pytest.raises(DataError, match="not unique"):
        open_source("cifar10", "test", options_for(made))


def test_a_label_without_a_class(make, options_for, monkeypatch):
    made = make("cifar10")
    batch = made.data / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
    md5 = {"test": {"test_batch.bin": FileHashes().one(batch, "md5")}}
    monkeypatch.setattr(Cifar10, "md5", md5)
    with pytest.raises(DataError, match="name no class") as caught:
        open_source("cifar10", "test", options_for(made))
    assert "10 in row 0" in str(caught.value)


@BOTH
def test_the_binary_version_is_downloaded(make, web, options, monkeypatch, tmp_path, kind, dataset):
    made = make(dataset)
    folder = kind.archive.folder
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made.data / folder, folder)
    web.content = archive.read_bytes()
    remote = replace(
        kind.archive, url=web.url("cifar.tar.gz"), md5=FileHashes().one(archive, "md5")
    )
    monkeypatch.setattr(kind, "archive", remote)
    shutil.rmtree(made.data)
    options = replace(options, download=True)
    for split in ("train", "test"):
        source = open_source(dataset, split, options)
        np.testing.assert_array_equal(source.read(1), made.images[split][1])
    assert len(web.asked) == 1
    assert os.listdir(options.raw) == [folder]


# STL-10


@pytest.fixture
def made(make, options_for):
    made = make("stl10")
    return made, options_for(made), made.data / "stl10_binary"


def adopt(monkeypatch, folder):
    """Take the files as they are for the official ones."""
    hashes = FileHashes()
    md5 = {
        split: {name: hashes.one(folder / name, "md5") for name in names}
        for split, names in Stl10.md5.items()
    }
    monkeypatch.setattr(Stl10, "md5", md5)


def test_the_folder_itself_or_the_one_above_may_be_named(made):
    _, options, folder = made
    inside = open_source("stl10", "train", replace(options, data=folder))
    above = open_source("stl10", "train", options)
    assert inside.fingerprint == above.fingerprint


def test_the_unlabelled_split_is_there_but_not_offered(made):
    _, options, _ = made
    assert splits_of("stl10", options) == ("train", "test")
    unlabelled = open_source("stl10", "unlabeled", options)
    assert set(unlabelled.labels) == {-1}
    assert unlabelled.folds == ()


def test_official_folds(made):
    _, options, _ = made
    train = open_source("stl10", "train", options)
    assert [fold.tolist() for fold in train.folds] == [[2 * k, 2 * k + 1] for k in range(10)]
    assert open_source("stl10", "test", options).folds == ()


def test_only_the_files_of_the_split_need_to_be_there(made):
    _, options, folder = made
    for path in [*folder.glob("train*"), *folder.glob("unlabeled*"), folder / "class_names.txt"]:
        path.unlink()
    assert len(open_source("stl10", "test", options)) == 20
    with pytest.raises(DataError, match="missing") as caught:
        open_source("stl10", "train", options)
    assert "train_X.bin" in str(caught.value)


@pytest.mark.parametrize("name", ["train_X.bin", "train_y.bin", "fold_indices.txt"])
def test_a_missing_file_is_named(made, name):
    _, options, folder = made
    (folder / name).unlink()
    with pytest.raises(DataError, match="missing") as caught:
        open_source("stl10", "train", options)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["train_X.bin", "train_y.bin"])
def test_a_file_that_is_not_the_official_one(made, name):
    made, options, folder = made
    official = Stl10.md5["train"][name]
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"The file {name} is damaged") as caught:
        open_source("stl10", "train", options)
    assert official in str(caught.value)
    assert len(open_source("stl10", "test", options)) == 20, "the other split is in order"


def test_files_are_read_once_and_then_remembered(made, listener, let_files_settle):
    _, options, _ = made
    options = replace(options, progress=listener)
    let_files_settle()
    open_source("stl10", "train", options)
    assert listener.tasks == [("checking files", 2, 0)]
    assert listener.steps == 2
    open_source("stl10", "train", options)
    assert listener.steps == 2


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("train_X.bin", lambda content: content[:-1], "whole number of images"),
        ("train_X.bin", lambda content: b"", "whole number of images"),
        (
            "train_X.bin",
            lambda content: content[: len(content) // 2],
            "Not every image has one label",
        ),
        ("train_y.bin", lambda content: content[:-1], "Not every image has one label"),
        ("train_y.bin", lambda content: b"", "something else than labels"),
        ("train_y.bin", lambda content: b"\0" + content[1:], "something else than labels"),
        ("train_y.bin", lambda content: b"\x0b" + content[1:], "something else than labels"),
        ("fold_indices.txt", lambda content: b"", "the file is empty"),
        ("fold_indices.txt", lambda content: b"one two", "cannot be read"),
        ("fold_indices.txt", lambda content: b"0 1 20", "Fold 0"),
        ("fold_indices.txt", lambda content: b"0 1\n2 2", "Fold 1"),
    ],
)
def test_contents_that_do_not_fit(made, monkeypatch, name, spoil, message):
    _, options, folder = made
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    adopt(monkeypatch, folder)
    with pytest.raises(DataError, match=message) as caught:
        open_source("stl10", "train", options)
    assert str(folder) in str(caught.value)


@pytest.fixture
def published(made, web, monkeypatch, tmp_path):
    """The same files as an archive on a web server; nothing on the disk."""
    _, options, folder = made
    archive = tmp_path / "stl10_binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "stl10_binary")
    web.content = archive.read_bytes()
    digest = FileHashes().one(archive, "md5")
    shutil.rmtree(folder)
    archive.unlink()
    remote = replace(Stl10.archive, url=web.url("stl10_binary.tar.gz"), md5=digest)
    monkeypatch.setattr(Stl10, "archive", remote)
    return replace(options, data=None, download=True)


def test_a_download_keeps_the_labelled_splits(published, web):
    source = open_source("stl10", "train", published)
    assert len(source) == 20
    kept = sorted(path.name for path in (published.raw / "stl10_binary").iterdir())
    assert kept == [
        "class_names.txt", "fold_indices.txt",
        "test_X.bin", "test_y.bin", "train_X.bin", "train_y.bin",
    ]  # fmt: skip
    assert not list(published.raw.glob("*.tar.gz*")), "the archive is not kept"
    open_source("stl10", "test", published)
    assert len(web.asked) == 1


def test_the_unlabelled_images_are_downloaded_when_asked_for(published, web):
    open_source("stl10", "train", published)
    assert len(open_source("stl10", "unlabeled", published)) == 20
    assert len(web.asked) == 2


def test_an_interrupted_unpacking_is_completed(published, web, tmp_path):
    open_source("stl10", "train", published)
    (published.raw / "stl10_binary" / "test_y.bin").unlink()
    assert len(open_source("stl10", "test", published)) == 20
    assert len(web.asked) == 2


def test_nothing_is_downloaded_unless_allowed(published, web):
    with pytest.raises(DataError, match="not here") as caught:
        open_source("stl10", "train", replace(published, download=False))
    assert "2640 MB" in str(caught.value)
    assert web.asked == []


def test_what_the_user_named_is_never_completed_by_a_download(published, web, tmp_path):
    own = tmp_path / "own" / "stl10_binary"
    own.mkdir(parents=True)
    (own / "train_X.bin").write_bytes(b"")
    with pytest.raises(DataError, match="missing"):
        open_source("stl10", "train", replace(published, data=tmp_path / "own"))
    assert web.asked == []


def test_the_download_is_announced(published, listener):
    open_source("stl10", "train", replace(published, progress=listener))
    assert "stl10 is not here" in listener.notes[0]
    assert [task[0] for task in listener.tasks] == [
        "downloading stl10_binary.tar.gz",
        "unpacking stl10_binary.tar.gz",
        "checking files",
    ]


def test_the_published_sums_are_those_that_torchvision_lists(listed_by):
    listed = listed_by("stl10")
    sums = {name: md5 for files in Stl10.md5.values() for name, md5 in files.items()}
    assert all(f'["{name}", "{md5}"]' in listed for name, md5 in sums.items())
    assert f'url = "{Stl10.archive.url}"' in listed
    assert f'tgz_md5 = "{Stl10.archive.md5}"' in listed


@pytest.mark.real
def test_the_real_training_split(shared, options, listener):
    options = replace(options, data=shared / "data", progress=listener)
    train = open_source("stl10", "train", options)
    assert len(train) == 5000
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert [len(fold) for fold in train.folds] == [1000] * 10
    read = listener.steps
    again = open_source("stl10", "train", options)
    assert listener.steps == read, "the files are not read a second time"
    assert again.fingerprint == train.fingerprint
    first = train.read(0)
    assert first.shape == (96, 96, 3)
    np.testing.assert_allclose(first.mean(), 113.832, atol=0.001)


@pytest.mark.real
def test_real_images_are_upright(shared, options):
    """In photographs taken outdoors the sky is up: brighter than the ground, in most of them."""
    train = open_source("stl10", "train", replace(options, data=shared / "data"))
    ships = np.flatnonzero(train.labels == train.classes.index("ship"))[:100]
    images = np.stack([train.read(row) for row in ships]).astype(float)
    rows, columns = images[:, :20].mean(), images[:, :, :20].mean()
    assert rows - images[:, -20:].mean() > 30
    assert abs(columns - images[:, :, -20:].mean()) < 10
