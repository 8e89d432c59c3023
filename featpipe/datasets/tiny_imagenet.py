"""Tiny-ImageNet: 64 × 64 colour images of 200 ImageNet classes, named by WordNet id.

Le and Yang, "Tiny ImageNet visual recognition challenge", 2015. The official layout: training
images in a folder per class, validation images in one folder with a list of their classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from featpipe.datasets.base import ImageSource
from featpipe.datasets.definition import Dataset, DatasetOptions
from featpipe.datasets.listing import images_below, natural_key
from featpipe.datasets.obtain import Publication, locate
from featpipe.datasets.sources import FileSource, Identity
from featpipe.datasets.subset import choose_classes
from featpipe.errors import DataError

_NAMES = "wnids.txt"


class TinyImageNet(Dataset):
    """The official layout; classes are WordNet ids in ascending order.

    ``wnids.txt`` lists the ids in no order. They are sorted here, as every reader that goes by
    the class folders does, so ``first:50`` means the same fifty classes everywhere.
    """

    selects_classes = True
    publication: ClassVar[Publication] = Publication(
        dataset="tiny-imagenet",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder="tiny-imagenet-200",
        megabytes=248,
    )

    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """Training and validation split; the labels of the test split were never published."""
        return ("train", "val")

    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """List the images of one split, of the chosen classes only."""
        root = self._find(options)
        known = sorted((root / _NAMES).read_text(encoding="utf-8").split())
        classes = tuple(known)
        if options.classes is not None:
            classes = tuple(known[label] for label in choose_classes(options.classes, known))
        labelled = (_train_images if split == "train" else _val_images)(root, classes)
        label_of = {wnid: label for label, wnid in enumerate(classes)}
        ids = [image for image, _ in labelled]
        labels = [label_of[wnid] for _, wnid in labelled]
        identity = Identity("tiny-imagenet", split, classes, ids, labels)
        return FileSource(identity, root, options, root)

    def _find(self, options: DatasetOptions) -> Path:
        folders = options.folders(self.publication.folder)
        found = locate(folders, [_NAMES])
        if found is not None:
            return found
        if not options.download:
            raise self.publication.missing(folders, [_NAMES, "train/", "val/"])
        return self.publication.fetch_folder(options, leave_out="test")


def _train_images(root: Path, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    missing = [wnid for wnid in classes if not (root / "train" / wnid).is_dir()]
    if missing:
        there = len(classes) - len(missing)
        raise DataError(
            f"{len(missing)} class folder(s) are missing.",
            where=root / "train",
            expected=f"{len(classes)} folders, one for each id of {_NAMES}",
            got=f"no {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            next_step=f"if only {there} classes lie here, choose them with --classes, "
            "for instance --classes first:50",
        )
    found = [
        (image, wnid)
        for wnid in classes
        for image in images_below(root / "train" / wnid, f"train/{wnid}/")
    ]
    if empty := sorted(set(classes) - {wnid for _, wnid in found}):
        raise DataError(
            "A class folder holds no images.", where=root / "train", got=", ".join(empty)
        )
    return found


def _val_images(root: Path, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pair the validation images with their classes, in natural order of the files."""
    annotations = root / "val" / "val_annotations.txt"
    chosen = set(classes)
    found = []
    for number, line in enumerate(_lines(annotations), start=1):
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
        raise DataError(
            f"{len(absent)} validation image(s) are missing.",
            where=root,
            got=f"no {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}",
        )
    if unseen := sorted(chosen - {wnid for _, wnid in found}):
        raise DataError(
            f"{len(unseen)} class(es) have no validation images.",
            where=annotations,
            got=f"none of {', '.join(unseen[:5])}{' …' if len(unseen) > 5 else ''}",
            next_step="choose the classes that are here with --classes, "
            "for instance --classes first:50",
        )
    return sorted(found, key=lambda pair: natural_key(pair[0]))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("The annotations cannot be read.", where=path, got=error) from error
