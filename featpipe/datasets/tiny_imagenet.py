"""Tiny-ImageNet: 64 × 64 colour images of 200 ImageNet classes, named by WordNet id.

Le and Yang, "Tiny ImageNet visual recognition challenge", 2015. The official layout: training
images in a folder per class, validation images in one folder with a list of their classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from featpipe.datasets import DATASETS
from featpipe.datasets.archive import RemoteArchive, locate
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.folder import images_below, natural_key
from featpipe.datasets.images import FileSource
from featpipe.datasets.selection import choose_classes
from featpipe.datasets.source import Identity, ImageSource
from featpipe.errors import DataError

_NAMES = "wnids.txt"
_CHOOSE = "choose the classes that are here with --classes, for instance --classes first:50"


@DATASETS.register
class TinyImageNet(Dataset):
    """Tiny-ImageNet, 64 × 64, 200 classes (downloads).

    ``wnids.txt`` lists the WordNet ids in no order. They are sorted here, as every reader that
    goes by the class folders does, so ``first:50`` means the same fifty classes everywhere. The
    labels of the test split were never published.
    """

    name = "tiny-imagenet"
    splits = ("train", "val")
    selects_classes = True
    archive: ClassVar[RemoteArchive] = RemoteArchive(
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder="tiny-imagenet-200",
        megabytes=248,
    )

    def open(self, split: str) -> ImageSource:
        """List the images of one split, of the chosen classes only."""
        folders = self.options.folders(self.archive.folder)
        root = locate(folders, [_NAMES])
        if root is None:
            if not self.options.download:
                raise self.archive.missing(self, [_NAMES, "train/", "val/"])
            root = self.archive.fetch_folder(self, leave_out="test")
        known = sorted((root / _NAMES).read_text(encoding="utf-8").split())
        chosen = self.options.classes
        kept = range(len(known)) if chosen is None else choose_classes(chosen, known)
        classes = tuple(known[label] for label in kept)
        labelled = (_train_images if split == "train" else _val_images)(root, classes)
        label_of = {wnid: label for label, wnid in enumerate(classes)}
        ids = [image for image, _ in labelled]
        labels = [label_of[wnid] for _, wnid in labelled]
        return FileSource(Identity(self.name, split, classes, ids, labels), root, self.options)


def _train_images(root: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the training images with their classes."""
    train = root / "train"
    if missing := [wnid for wnid in classes if not (train / wnid).is_dir()]:
        raise DataError(
            f"{len(missing)} class folder(s) are missing.",
            where=train,
            expected=f"{len(classes)} folders, one for each id of {_NAMES}",
            got=f"no {_first(missing)}",
            next_step=_CHOOSE,
        )
    found = {wnid: images_below(train / wnid, f"train/{wnid}/") for wnid in classes}
    if empty := [wnid for wnid, images in found.items() if not images]:
        raise DataError("A class folder holds no images.", where=train, got=_first(empty))
    return [(image, wnid) for wnid, images in found.items() for image in images]


def _val_images(root: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the validation images with their classes, in natural order of the files."""
    annotations = root / "val" / "val_annotations.txt"
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "The annotations cannot be read."
        raise DataError(what, where=annotations, got=error) from error
    chosen, found = set(classes), []
    for number, line in enumerate(filter(str.strip, lines), start=1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(
                "A line of the annotations cannot be read.",
                where=f"{annotations}, line {number}",
                expected="file name, WordNet id and box, separated by tabs",
                got=line[:80],
            )
        if fields[1] in chosen:
            found.append((f"val/images/{fields[0]}", fields[1]))
    if absent := [image for image, _ in found if not (root / image).is_file()]:
        what = f"{len(absent)} validation image(s) are missing."
        raise DataError(what, where=root, got=f"no {_first(absent)}")
    if unseen := sorted(chosen - {wnid for _, wnid in found}):
        raise DataError(
            f"{len(unseen)} class(es) have no validation images.",
            where=annotations,
            got=f"none of {_first(unseen)}",
            next_step=_CHOOSE,
        )
    return sorted(found, key=lambda pair: natural_key(pair[0]))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
