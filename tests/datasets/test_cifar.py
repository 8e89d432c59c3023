"""CIFAR in both published versions."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from featpipe.datasets.cifar import Cifar10, Cifar100, load_plain_pickle
from featpipe.datasets.dataset import open_source
from featpipe.errors import DataError
from featpipe.fingerprint import FileHashes

BOTH = pytest.mark.parametrize(("kind", "dataset"), [(Cifar10, "cifar10"), (Cifar100, "cifar100")])


def test_the_fine_label_of_cifar100_is_taken(make, options_for):
    made = make("cifar100")
    source = open_source("cifar100", "train", options_for(made))
    assert source.labels.tolist() == made.labels["train"]
    assert len(source.classes) == 100


@BOTH
def test_the_version_that_lies_first_is_read(make, options_for, tmp_path, kind, dataset):
    made = make(f"{dataset} pickled")
    options = options_for(made)
    (tmp_path / "raw" / kind.binary.folder).mkdir(parents=True)
    (tmp_path / "raw" / kind.binary.folder / kind.binary.files["test"][0]).write_bytes(
        b"incomplete"
    )
    assert len(open_source(dataset, "test", options)) == 4


@pytest.mark.parametrize("version", ["cifar10", "cifar10 pickled"])
def test_a_damaged_batch_is_named(make, options_for, version):
    made = make(version)
    batch = next(made.data.glob("*/data_batch_3*"))
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.* is damaged"):
        open_source("cifar10", "train", options_for(made))
    assert len(open_source("cifar10", "test", options_for(made))) == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 3072])
def test_a_batch_of_another_size(make, options_for, monkeypatch, content):
    made = make("cifar10")
    batch = made.data / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(content)
    md5 = {**Cifar10.md5, "test_batch.bin": FileHashes().one(batch, "md5")}
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
    md5 = {**Cifar10.md5, "test_batch.bin": FileHashes().one(batch, "md5")}
    monkeypatch.setattr(Cifar10, "md5", md5)
    with pytest.raises(DataError, match="name no class") as caught:
        open_source("cifar10", "test", options_for(made))
    assert "10 in row 0" in str(caught.value)


@BOTH
def test_the_binary_version_is_downloaded(make, web, options, monkeypatch, tmp_path, kind, dataset):
    made = make(dataset)
    layout = kind.binary
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made.data / layout.folder, layout.folder)
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
    assert os.listdir(options.raw) == [layout.folder]


@BOTH
def test_the_sums_of_the_pickles_are_those_that_torchvision_lists(kind, dataset, listed_by):
    listed = listed_by("cifar")
    names = [name for files in kind.pickled.files.values() for name in files]
    assert all(f'["{name}", "{kind.md5[name]}"]' in listed for name in names)
    assert f'"md5": "{kind.md5[kind.pickled.names]}"' in listed
    assert f'base_folder = "{kind.pickled.folder}"' in listed
    assert f'"key": "{kind.pickled.names_key}"' in listed


class Evil:
    def __reduce__(self):
        return os.mkdir, ("i-was-here",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": Evil()}),
        pickle.dumps({"data": os.getcwd}),
        pickle.dumps({"data": np.array([Evil()], dtype=object)}),
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_bytes(content)
    with pytest.raises(DataError, match="refused") as caught:
        load_plain_pickle(tmp_path / "evil")
    assert "not allowed" in str(caught.value)
    assert not (tmp_path / "i-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), b"\x80\x04."])
def test_a_file_that_is_no_pickled_dict(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError):
        load_plain_pickle(tmp_path / "file")


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_plain_values_come_through(tmp_path, protocol):
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "b": b"\xff"}
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol))
    read = load_plain_pickle(tmp_path / "file")
    np.testing.assert_array_equal(read.pop("data"), content["data"])
    assert read["labels"] == [1, 2]


def test_a_file_of_python_2(tmp_path):
    """As the published ones are: byte strings as keys, NumPy's module of that time."""
    (tmp_path / "file").write_bytes(
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xfftb"
        b"U\x06labelsq\x08]q\tK\x05au."
    )
    read = load_plain_pickle(tmp_path / "file")
    assert read["data"].tolist() == [[7, 255]]
    assert read["labels"] == [5]


@pytest.mark.parametrize(
    "batch", [{"data": [1]}, {"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}, {}]
)
def test_a_pickle_that_is_no_batch(make, options_for, monkeypatch, batch):
    made = make("cifar10 pickled")
    file = made.data / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps(batch))
    md5 = {**Cifar10.md5, "test_batch": FileHashes().one(file, "md5")}
    monkeypatch.setattr(Cifar10, "md5", md5)
    with pytest.raises(DataError, match="not a batch"):
        open_source("cifar10", "test", options_for(made))
