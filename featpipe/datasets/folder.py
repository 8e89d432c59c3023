"""``folder:PATH``: a folder of images per class, with or without a folder per split above."""

from __future__ import annotations

from pathlib import Path

from featpipe.datasets.base import ImageSource
from featpipe.datasets.definition import Dataset, DatasetOptions
from featpipe.datasets.images import is_image_name
from featpipe.datasets.listing import images_below, natural_key, subfolders
from featpipe.datasets.sources import FileSource, Identity
from featpipe.errors import DataError

_SPLITS = ("train", "test", "val", "valid", "validation")


class Folder(Dataset):
    """Class per folder; class names are folder names in natural order."""

    takes_path = "PATH"

    def splits(self, path: str, options: DatasetOptions) -> tuple[str, ...]:
        """``train``, ``test``, ``val`` … where PATH has such folders of class folders, or ``all``.

        A single folder called ``train`` beside others is a class (of railway pictures).
        """
        root = _root(path, options)
        inside = {folder.name: folder for folder in subfolders(root)}
        found = tuple(name for name in _SPLITS if name in inside and subfolders(inside[name]))
        flat = [name for name in inside if name in _SPLITS and name not in found]
        if "train" in found and flat and set(inside) <= set(_SPLITS):
            raise DataError(
                f"The split {flat[0]!r} has no class folders.",
                where=inside[flat[0]],
                expected="a subfolder of images for each class, as in 'train'",
                next_step="sort its images into folders, or move it away: featpipe predict "
                "classifies images without labels",
            )
        return found if len(found) > 1 or len(found) == len(inside) > 0 else ("all",)

    def open(self, path: str, split: str, options: DatasetOptions) -> ImageSource:
        """List the images of one split."""
        root = _root(path, options)
        splits = self.splits(path, options)
        classes = _classes(root, splits)
        base = root if splits == ("all",) else root / split
        prefix = "" if base == root else f"{split}/"
        found = {
            folder.name: images_below(folder, f"{prefix}{folder.name}/")
            for folder in subfolders(base)
        }
        if empty := [name for name, images in found.items() if not images]:
            raise DataError(
                "A class folder holds no images.",
                where=base,
                got=", ".join(empty),
                next_step="put images into it, or remove the folder",
            )
        _note_strays(base, options)
        ids = [image for images in found.values() for image in images]
        labels = [classes.index(name) for name, images in found.items() for _ in images]
        identity = Identity(f"folder:{path}", split, classes, ids, labels)
        return FileSource(identity, root, options, root)


def _root(path: str, options: DatasetOptions) -> Path:
    root = options.resolve(path)
    if not root.is_dir():
        raise DataError(
            "The folder of images does not exist." if not root.exists() else "This is no folder.",
            where=root,
            expected="a folder with a subfolder of images for each class",
        )
    return root


def _classes(root: Path, splits: tuple[str, ...]) -> tuple[str, ...]:
    """Class names that hold in every split, so that a label means the same everywhere."""
    if splits == ("all",):
        classes = [folder.name for folder in subfolders(root)]
    else:
        per_split = {
            split: [folder.name for folder in subfolders(root / split)] for split in splits
        }
        for split in splits[1:] if splits[0] == "train" else ():
            if unknown := sorted(set(per_split[split]) - set(per_split["train"]), key=natural_key):
                raise DataError(
                    f"The split {split!r} has classes that the training split does not have.",
                    where=root / split,
                    expected=f"some of {', '.join(per_split['train'])}",
                    got=", ".join(unknown),
                )
        classes = sorted({name for names in per_split.values() for name in names}, key=natural_key)
    if not classes:
        n_images = len(images_below(root))
        raise DataError(
            "There are no class folders.",
            where=root,
            expected="a subfolder of images for each class",
            got=f"{n_images} images without a folder" if n_images else "no images",
            next_step="sort the images into folders, or list them in a CSV: csv:PATH",
        )
    return tuple(classes)


def _note_strays(base: Path, options: DatasetOptions) -> None:
    strays = sum(is_image_name(entry.name) and entry.is_file() for entry in base.iterdir())
    if strays:
        options.progress.note(f"{strays} image(s) in {base}, in no class folder, are left out")
