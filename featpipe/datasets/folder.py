"""Folders of image files: a subfolder per class or none (``folder:PATH``), and two known datasets.

Image files are listed in natural order, through links, without following cycles. A folder may also
be at a URL: the listing differs, the rules are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from featpipe.datasets import DATASETS, IMAGENET, spec_of_path
from featpipe.datasets.dataset import Dataset, PathDataset, read_list, refuse_missing
from featpipe.datasets.download import RemoteArchive
from featpipe.datasets.images import FileSource, is_image_name
from featpipe.datasets.naming import natural_key
from featpipe.datasets.remote import RemoteFolder, RemoteSource
from featpipe.datasets.selection import choose_classes, stratified_split
from featpipe.datasets.source import UNLABELLED, Identity, ImageSource
from featpipe.errors import DataError, nearest_path
from featpipe.urls import protocol_of

SPLITS = ("train", "test", "val", "valid", "validation")


@DATASETS.register
class Folder(PathDataset):
    """folder:PATH, a folder of images per class, or of images without labels; or its URL."""

    name = "folder"

    @cached_property
    def _root(self) -> _LocalFolder | RemoteFolder:
        is_url = protocol_of(self.argument) is not None
        return RemoteFolder(self.argument) if is_url else _LocalFolder(self.path)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test``, ``val`` …, if PATH has such folders of class folders; or ``all``."""
        root = self._root
        inside = root.folders()
        found = tuple(name for name in SPLITS if name in inside and root.folders(f"{name}/"))
        flat = [name for name in inside if name in SPLITS and name not in found]
        if "train" in found and flat and set(inside) <= set(SPLITS):
            what = f"The split {flat[0]!r} has no subfolders for classes."
            where = root.where(flat[0])
            expected = "a subfolder of images for each class, as in 'train'"
            hint = "sort them into folders; featpipe predict classifies images without labels"
            raise DataError(what, where=where, expected=expected, next_step=hint)
        # A single folder called ``train`` among others is a class (railway pictures).
        return found if len(found) > 1 or len(found) == len(inside) > 0 else ("all",)

    @property
    def _classes(self) -> tuple[str, ...]:
        """Class names that hold in every split, so that a label means the same everywhere."""
        root, splits = self._root, self.splits
        if splits == ("all",):
            return tuple(root.folders())
        per_split = {split: root.folders(f"{split}/") for split in splits}
        known = {name for names in per_split.values() for name in names}
        train = per_split.get("train", known)
        for split, names in per_split.items():
            if unknown := ", ".join(name for name in names if name not in train):
                what = f"The split {split!r} has classes that the training split does not have."
                expected = f"some of {', '.join(train)}"
                raise DataError(what, where=root.where(split), expected=expected, got=unknown)
        return tuple(sorted(known, key=natural_key))

    def open(self, split: str) -> ImageSource:
        """List the images of one split."""
        root, classes = self._root, self._classes
        inside = "" if split == "all" else f"{split}/"
        images = root.images(inside)
        if not classes:
            if not images:
                expected = "images, or a subfolder of images for each class"
                raise DataError("There are no images.", where=root.where(), expected=expected)
            labelled = [(image, "") for image in images]
        else:
            found: dict[str, list[str]] = {name: [] for name in root.folders(inside)}
            for image in images:
                name, slash, _ = image[len(inside) :].partition("/")
                if slash and name in found:
                    found[name].append(image)
            labelled = _with_classes(found, root.where(inside))
            if strays := len(images) - len(labelled):
                are = f"{'image' if strays == 1 else 'images'} in {root.where(inside)}"
                self.options.progress.note(f"{strays} {are} outside the class folders: left out")
        identity = _identity(self, split, classes, labelled)
        if isinstance(root, _LocalFolder):
            return FileSource(identity, root.path, self.options)
        return RemoteSource(identity, root, inside, self.options)


class _LocalFolder:
    """A folder on this machine, listed as :class:`RemoteFolder` lists one at a URL."""

    def __init__(self, path: Path) -> None:
        if not os.path.isdir(path):
            what = "The folder of images does not exist."
            nearest = next(above for above in path.absolute().parents if above.is_dir())
            hint = nearest_path(path, folder=True) or f"the nearest folder that exists: {nearest}"
            if os.path.exists(path):
                spec, what = spec_of_path(path), "This is a file, not a folder."
                hint = f"did you mean {spec!r}?" if spec else f"name its folder: {path.parent}"
            expected = "a folder of images, or one with a subfolder of images for each class"
            raise DataError(what, where=path, expected=expected, next_step=hint)
        self.path = path

    def where(self, inside: str = "") -> Path:
        return self.path / inside

    def folders(self, inside: str = "") -> list[str]:
        return [_text_name(entry) for entry in _entries(self.path / inside) if _is_folder(entry)]

    def images(self, inside: str = "") -> list[str]:
        return images_below(self.path / inside, inside)


@DATASETS.register
class TinyImageNet(Dataset):
    """Tiny-ImageNet, 64 × 64, 200 classes (downloads).

    Le and Yang, "Tiny ImageNet visual recognition challenge", 2015. The labels of the test split
    were never published. The WordNet ids of ``wnids.txt`` are sorted, so ``first:50`` means the
    same fifty classes as in readers that list the class folders.
    """

    name = "tiny-imagenet"
    splits = ("train", "val")
    selects_classes = True
    drawn_from: ClassVar[Mapping[str, str]] = {IMAGENET: "Tiny-ImageNet is a part of ImageNet"}
    archive: ClassVar[RemoteArchive] = RemoteArchive(
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder="tiny-imagenet-200",
        megabytes=248,
    )

    def open(self, split: str) -> ImageSource:
        """List the images of one split, of the chosen classes only."""
        root = self.archive.find(self, ["wnids.txt"], lambda name: not name.startswith("test/"))
        known = sorted(read_list(root / "wnids.txt").decode("utf-8", "replace").split())
        chosen = self.options.classes
        kept = range(len(known)) if chosen is None else choose_classes(chosen, known)
        classes = tuple(known[label] for label in kept)
        next_step = "choose the classes that are here with --classes, for instance first:50"
        if split == "train":
            train, expected = root / "train", f"{len(classes)} folders, one for each class"
            missing = [wnid for wnid in classes if not (train / wnid).is_dir()]
            what = f"{len(missing)} class folder(s) are missing."
            refuse_missing(missing, what, train, expected, next_step)
            found = _with_classes(
                {name: images_below(train / name, f"train/{name}/") for name in classes}, train
            )
        else:
            annotations = root / "val" / "val_annotations.txt"
            found, line = [], ""
            content = read_list(annotations)
            try:
                for line in filter(str.strip, content.decode().splitlines()):
                    name, wnid, *_ = line.split("\t")
                    found.append((f"val/images/{name}", wnid))
            except ValueError as error:
                where = f"{annotations}, line {len(found) + 1}" if line else annotations
                what, got = "The annotations cannot be read.", line[:80] or error
                expected = "lines of file name, WordNet id and box, separated by tabs"
                raise DataError(what, where=where, expected=expected, got=got) from error
            found = [pair for pair in found if pair[1] in classes]
            found.sort(key=lambda pair: natural_key(pair[0]))
            missing = [image for image, _ in found if not os.path.lexists(root / image)]
            what = f"{len(missing)} validation image(s) are missing."
            refuse_missing(missing, what, root, f"the images that {annotations.name} lists")
            missing = sorted(set(classes) - {wnid for _, wnid in found})
            what = f"{len(missing)} class(es) have no validation images."
            refuse_missing(missing, what, annotations, "images of every class", next_step)
        return FileSource(_identity(self, split, classes, found), root, self.options)


@DATASETS.register
class DogsVsCats(Dataset):
    """Kaggle's cats and dogs, split 70:30 by seed."""

    name = "dogs-vs-cats"
    splits = ("train", "test")  # of the labelled images: the competition's test images have none

    def open(self, split: str) -> ImageSource:
        """List the images and take the rows of one split."""
        classes, pattern = ("cat", "dog"), re.compile(r"(cat|dog)\.\d+\.jpg", re.IGNORECASE)
        folders = [folder / "train" for folder in self.options.folders(self.name)]
        for folder in filter(os.path.isdir, folders):
            if names := sorted(filter(pattern.fullmatch, os.listdir(folder)), key=natural_key):
                break
        else:
            hint = (
                "Kaggle gives it to registered users only: accept the rules at "
                "https://www.kaggle.com/c/dogs-vs-cats, download train.zip, unpack it and name "
                "the folder that holds train/ with --data DIR"
            )
            raise self.not_found(folders, "cat.N.jpg and dog.N.jpg", next_step=hint)
        kinds = [name[:3].lower() for name in names]
        if missing := [name for name in classes if name not in kinds]:
            what, got = "One of the two classes has no images.", f"no {missing[0]}.N.jpg"
            raise DataError(what, where=folder, expected="cat.N.jpg and dog.N.jpg", got=got)
        labels = [classes.index(kind) for kind in kinds]
        rows = stratified_split(names, labels, 0.3, self.options.seed)[split == "test"]
        labelled = [(names[row], kinds[row]) for row in rows]
        return FileSource(_identity(self, split, classes, labelled), folder, self.options)


def _identity(
    dataset: Dataset, split: str, classes: tuple[str, ...], labelled: Sequence[tuple[str, str]]
) -> Identity:
    """Identify images by pairs of path and class; those of an unknown class are unlabelled."""
    number = {name: label for label, name in enumerate(classes)}
    labels = [number.get(name, UNLABELLED) for _, name in labelled]
    return Identity(dataset.spec, split, classes, [path for path, _ in labelled], labels)


def _with_classes(found: Mapping[str, list[str]], where: object) -> list[tuple[str, str]]:
    """Pair the images in class folders with their classes; a folder without images is refused."""
    empty = [f"images in {name}" for name, images in found.items() if not images]
    what, hint = "A class folder has no images.", "put images into it, or remove the folder"
    refuse_missing(empty, what, where, "at least one image", hint)
    return [(image, name) for name, images in found.items() for image in images]


def images_below(
    folder: str | Path, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> list[str]:
    """Return the image files in a folder and its subfolders, in natural order.

    Hidden files and folders and files of other types are left out. Links are followed, except
    back into a folder that is being listed (``above``: devices and inodes). The paths are relative
    to the folder, after ``prefix``; text and not ``Path`` saves a second with 100 000 images.
    """
    entries, status = _entries(folder), os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return []
    found = []
    for entry in entries:
        if _is_folder(entry):
            found += images_below(entry.path, f"{prefix}{_text_name(entry)}/", above | {here})
        elif is_image_name(entry.name):
            found.append(prefix + entry.name)
    return found


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, in natural order."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError("A folder cannot be read.", where=folder, got=error.strerror) from error
    return sorted(visible, key=lambda entry: natural_key(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises OSError if a link refers to itself.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _text_name(folder: os.DirEntry[str]) -> str:
    """Return the name of a folder, which may become that of a class."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        what, got = "The name of a folder is not valid text (UTF-8).", os.fsencode(folder.name)
        where = os.path.dirname(folder.path)
        raise DataError(what, where=where, got=got, next_step="rename it") from None
    return folder.name
