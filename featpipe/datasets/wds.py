"""``wds:PATH``: WebDataset shards, tar files that are read where they are and never unpacked.

The headers of a tar file are read once, to learn where its images are; then an image is one read of
its own bytes, from the disk or from a URL.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from featpipe.datasets import DATASETS, naming
from featpipe.datasets.dataset import DatasetOptions, PathDataset, refuse_missing, stamp_of
from featpipe.datasets.folder import SPLITS
from featpipe.datasets.images import EncodedSource, changed, refuse_large
from featpipe.datasets.remote import AT_ONCE, Remote, RemoteFolder, as_listed, at_once
from featpipe.datasets.source import NO_TEXT, UNLABELLED, Identity, ImageSource
from featpipe.datasets.tars import BLOCK, UNPACK, Sample, Shard, read_index
from featpipe.errors import DataError, UsageError, nearest_path
from featpipe.urls import explaining

_INDEX = "index of a tar file, 1"  # what is remembered, with the version of its form
_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_SPLIT = re.compile(rf"(?<![a-z0-9])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)


@DATASETS.register
class WebDataset(PathDataset):
    """wds:PATH, WebDataset shards: a tar file, a folder of them, or train-{000..099}.tar.

    The class of an image is in the ``.cls`` beside it (``7.jpg``, ``7.cls``): an integer, -1 for
    unlabelled, or a name. Where there is no ``.cls`` at all, it is the folder in the archive that
    the image is in, if there are several such folders.
    """

    name = "wds"

    @classmethod
    def path_in(cls, argument: str, data: Path | None = None) -> str:
        """Return the argument, or what comes before the first braces: a folder."""
        found = _BRACES.search(argument)
        return argument[: found.start()].rpartition("/")[0] if found else argument

    @classmethod
    def short(cls, argument: str) -> str:
        """Return the last part of the path; with braces, all from the first part that has any."""
        rest = argument[len(cls.path_in(argument)) :].lstrip("/")
        return rest or super().short(argument)

    @classmethod
    def absolute(cls, argument: str, data: Path | None) -> str:
        """Return the argument so that it means the same in every folder."""
        return super().absolute(argument if cls.path_in(argument) else f"./{argument}", data)

    @classmethod
    def moved(cls, argument: str, data: Path) -> str:
        """Return the argument for shards that are in another folder now."""
        return super().moved(argument if cls.path_in(argument) else f"./{argument}", data)

    @cached_property
    def _place(self) -> RemoteFolder:
        """The tar file, the folder of tar files, or the folder before the braces."""
        named = self.absolute(self.argument, self.options.data)
        place = RemoteFolder(self.path_in(named))
        if not place.remote and not os.path.exists(place.path):
            what, path = "There is no such tar file or folder.", Path(place.path)
            expected = "a .tar, a folder of them, or braces: train-{000..099}.tar"
            raise DataError(what, where=path, expected=expected, next_step=nearest_path(path))
        return place

    @cached_property
    def _shards(self) -> Mapping[str, list[Shard]]:
        """The tar files of each split."""
        place = self._place
        named = self.absolute(self.argument, self.options.data)
        whole = False  # whether all tar files of a folder are meant
        if _BRACES.search(named):
            inside = named[len(self.path_in(named)) :]
            paths = [place.path + more for more in expanded(inside, self.spec)]
            files = _existing(place, paths, self.options)
        elif whole := (info := place.info(place.path))["type"] == "directory":
            files = list(place.files().values())
        else:
            files = [as_listed(info)]
        if packed := [posixpath.basename(file.path) for file in files if _PACKED.search(file.path)]:
            what, expected, got = "A tar file is compressed.", "plain .tar files", packed[0]
            raise DataError(what, where=place.url, expected=expected, got=got, next_step=UNPACK)
        if whole:
            got = f"{len(files)} other files"
            files = [file for file in files if file.path.lower().endswith(".tar")]
            if not files:
                what, expected = "There are no tar files.", "shards such as train-000.tar"
                raise DataError(what, where=place.url, expected=expected, got=got)
        if broken := [ascii(file.path) for file in files if NO_TEXT.search(file.path)]:
            what, hint = "The name of a tar file is not valid text (UTF-8).", "rename it"
            raise DataError(what, where=ascii(place.url), got=broken[0], next_step=hint)
        one = [file.path for file in files] == [place.path]
        start = len(posixpath.dirname(place.path) if one else place.path) + 1
        shards = [
            Shard(os.path.splitext(file.path[start:])[0], file, place.url_of(file.path))
            for file in files
        ]
        return _by_split(shards, place.url)

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test``, ``val`` …, if the tar files or their folders say so; or ``all``."""
        return naming.ordered_splits(self._shards)

    def open(self, split: str) -> ImageSource:
        """Find the images of one split; the others are looked at for their classes."""
        place, hashes = self._place, self.options.hashes
        every = [shard for shards in self._shards.values() for shard in shards]
        paths = [] if place.remote else [Path(shard.file.path) for shard in every]
        with self.options.unchanged(paths):
            files = place.marked([shard.file for shard in every], self.options)
            every = [shard._replace(file=file) for shard, file in zip(every, files, strict=True)]

            def samples(shard: Shard) -> list[Sample]:
                name = f"{shard.file.mark}, {shard.file.size} bytes, {shard.where}"
                index = hashes.recall(name, _INDEX, lambda: json.dumps(read_index(shard, place)))
                return [Sample(*row) for row in json.loads(index)]

            indexes = at_once(samples, every, "finding images", self.options)
        names = {shard.name for shard in self._shards[split]}
        pairs = list(zip(every, indexes, strict=True))
        own = [(s, sample) for s, found in pairs if s.name in names for sample in found]
        if not own:
            what, expected = "There are no images in the tar files.", "members such as 000.jpg"
            raise DataError(what, where=place.url, expected=expected)
        of_all = [sample for found in indexes for sample in found]
        classes, labels = _classes([sample for _, sample in own], of_all, place.url)
        ids = [f"{shard.name}/{sample.name}" for shard, sample in own]
        identity = Identity(self.spec, split, classes, ids, labels)
        return ShardSource(identity, place, own, self.options)


class ShardSource(EncodedSource):
    """Images that are members of tar files."""

    def __init__(
        self,
        identity: Identity,
        place: RemoteFolder,
        samples: Sequence[tuple[Shard, Sample]],
        options: DatasetOptions,
    ) -> None:
        self._place, self._samples, self._hashes = place, samples, options.hashes
        shards = {shard.name: shard for shard, _ in samples}
        content = [[shard.file.mark, shard.file.size] for shard in shards.values()]
        super().__init__(identity, content, place.url)
        self.unreadable = {row: s.obstacle for row, (_, s) in enumerate(samples) if s.obstacle}
        self._at_once = AT_ONCE if place.remote else 1
        here = {} if place.remote else shards
        self._stamps = {name: stamp_of(shard.file.path) for name, shard in here.items()}

    def _where(self, row: int) -> str:
        shard, sample = self._samples[row]
        return f"{shard.where}, {sample.name}"

    def _content(self, row: int) -> bytes:
        shard, sample = self._samples[row]
        refuse_large(sample.size, self._where(row))
        with explaining(shard.where):  # with its header, which must be that of the index
            start, end = sample.start - BLOCK, sample.start + sample.size
            content = self._place.read(shard.file.path, start, end)
            stamp = stamp_of(shard.file.path) if self._stamps else None
        header, content = content[:BLOCK], content[BLOCK:]
        kept = stamp == self._stamps.get(shard.name) and zlib.crc32(header) == sample.check
        if not kept or len(content) != sample.size:
            raise changed(self._where(row), "A tar file")
        return content


def expanded(pattern: str, spec: str) -> list[str]:
    """Return all texts that braces stand for: ``{000..099}`` and ``{train,test}``.

    Examples
    --------
    >>> expanded("{train,val}-{08..10}.tar", "wds:…")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, dots, last = found[1].partition("..")
    choices = found[1].split(",")
    if dots and len(choices) == 1:
        numbers = first.isdecimal() and last.isdecimal() and int(first) <= int(last)
        if not numbers or int(last) - int(first) >= _MOST_SHARDS:
            what, expected = "These braces do not hold a range of numbers.", "{000..099}, ascending"
            raise UsageError(what, where=spec, expected=expected, got=found[0])
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    rest = expanded(pattern[found.end() :], spec)
    if len(choices) * len(rest) > _MOST_SHARDS:
        what, expected = "The braces stand for too many files.", f"at most {_MOST_SHARDS}"
        raise UsageError(what, where=spec, expected=expected)
    return [f"{pattern[: found.start()]}{choice}{more}" for choice in choices for more in rest]


def _existing(place: RemoteFolder, paths: Sequence[str], options: DatasetOptions) -> list[Remote]:
    """Return the files that braces stand for; all of them must be there."""

    def look(path: str) -> Remote | None:
        with explaining(place.url_of(path)), suppress(FileNotFoundError, NotADirectoryError):
            return as_listed(place.fs.info(path))
        return None

    files = dict(zip(paths, at_once(look, paths, "finding tar files", options), strict=True))
    missing = [posixpath.basename(path) for path, file in files.items() if file is None]
    what = f"{len(missing)} of {len(paths)} tar files are missing."
    hint = "correct the braces, or name the folder to read all that are there"
    refuse_missing(missing, what, place.url, "every file that the braces stand for", hint)
    return [file for file in files.values() if file is not None]


def _by_split(shards: Sequence[Shard], where: str) -> dict[str, list[Shard]]:
    """Sort tar files by the split that the name of their folder, or their own, says."""
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        said = _SPLIT.search(shard.name)
        found.setdefault(said[1].lower() if said else "all", []).append(shard)
    if len(found) > 1 and "all" in found:
        what, got = "Some tar files belong to no split, others do.", found["all"][0].name
        hint = "name the tar files that you mean with braces: train-{000..099}.tar"
        expected = f"{', '.join(SPLITS)} in every name or folder, or in none"
        raise DataError(what, where=where, expected=expected, got=f"{got}.tar", next_step=hint)
    return found


def _classes(
    own: Sequence[Sample], every: Sequence[Sample], where: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return classes that hold in every split, and the labels of one."""
    if all(sample.label is None for sample in every):
        folders = {sample.name.rpartition("/")[0].rpartition("/")[2] for sample in every} - {""}
        if len(folders) < 2:
            return (), [UNLABELLED] * len(own)
        named = [sample.name.rpartition("/")[0].rpartition("/")[2] or None for sample in own]
        return naming.classes_by_name(named, folders)
    texts = {sample.label for sample in every if sample.label}
    if all(re.fullmatch(r"-1|[0-9]{1,18}", text) for text in texts):
        classes = naming.classes_by_number(np.array([int(text) for text in texts]), where)
        return classes, [int(sample.label or UNLABELLED) for sample in own]
    return naming.classes_by_name([sample.label or None for sample in own], texts)
