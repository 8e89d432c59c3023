"""``wds:PATH``: WebDataset shards, tar files that are read where they are and never unpacked.

The headers of a tar file are read once, to learn where its images are; then an image is one read of
its own bytes, from the disk or from a URL. Names in a tar file are texts: none becomes a path.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from featpipe.datasets import DATASETS, naming
from featpipe.datasets.dataset import DatasetOptions, PathDataset, refuse_missing, stamp_of
from featpipe.datasets.folder import SPLITS
from featpipe.datasets.images import IMAGE_SUFFIXES, EncodedSource, changed, refuse_large
from featpipe.datasets.remote import AT_ONCE, Remote, RemoteFolder, as_listed, at_once
from featpipe.datasets.source import NOT_TEXT, UNLABELLED, Identity, ImageSource
from featpipe.errors import DataError, UsageError, nearest_path
from featpipe.files import open_regular
from featpipe.lazy import Lazy
from featpipe.urls import translate_errors

fsspec = Lazy("fsspec")

_INDEX = "index of a tar file, 1"  # what is remembered, with the version of its form
_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_SPLIT = re.compile(rf"(?<![a-z0-9])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UNPACK = "unpack it: featpipe reads single images, which needs plain .tar files"
_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 1 << 21  # of a tar at a URL: most images are smaller, so that few bytes are skipped
_MOST_LABEL_BYTES = 4096


class Sample(NamedTuple):
    """An image in a tar file, and what is said of it."""

    name: str
    start: int  # of its bytes; its header ends there
    size: int
    check: int  # CRC-32 of its header, to notice that the tar file was replaced
    label: str | None  # the text of its .cls; None: it has none
    obstacle: str  # why it cannot be read, if so

    @property
    def folder(self) -> str | None:
        """The name of the folder in the tar file that the image is in, if any."""
        return posixpath.basename(posixpath.dirname(self.name)) or None


class Shard(NamedTuple):
    """A tar file of the dataset."""

    name: str  # relative to their common folder, without .tar
    file: Remote
    where: str
    split: str = "all"


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
    def _shards(self) -> list[Shard]:
        """The tar files, with the splits that their names or those of their folders give."""
        place, start = self._place, len(self._place.path) + 1
        named = self.absolute(self.argument, self.options.data)
        whole = False  # whether all tar files of a folder are meant
        if _BRACES.search(named):
            inside = named[len(self.path_in(named)) :]
            paths = [place.path + more for more in expanded(inside, self.spec)]
            files = _existing(place, paths, self.options)
        elif whole := (info := place.info(place.path))["type"] == "directory":
            files = list(place.files().values())
        else:
            files, start = [as_listed(info)], place.path.rfind("/") + 1
        if packed := [posixpath.basename(file.path) for file in files if _PACKED.search(file.path)]:
            what, expected, got = "A tar file is compressed.", "plain .tar files", packed[0]
            raise DataError(what, where=place.url, expected=expected, got=got, next_step=_UNPACK)
        if whole:
            got = f"{len(files)} other files"
            files = [file for file in files if file.path.lower().endswith(".tar")]
            if not files:
                what, expected = "There are no tar files.", "shards such as train-000.tar"
                raise DataError(what, where=place.url, expected=expected, got=got)
        if broken := [ascii(file.path) for file in files if NOT_TEXT.search(file.path)]:
            what, hint = "The name of a tar file is not valid text (UTF-8).", "rename it"
            raise DataError(what, where=ascii(place.url), got=broken[0], next_step=hint)
        shards = []
        for file in files:
            name = os.path.splitext(file.path[start:])[0]
            split = found[1].lower() if (found := _SPLIT.search(name)) else "all"
            shards.append(Shard(name, file, place.url_of(file.path), split))
        others = [f"{shard.name}.tar" for shard in shards if shard.split == "all"]
        if 0 < len(others) < len(shards):
            what, got = "Some tar files belong to no split, others do.", others[0]
            hint = "name the tar files that you mean with braces: train-{000..099}.tar"
            expected = f"{', '.join(SPLITS)} in every name or folder, or in none"
            raise DataError(what, where=place.url, expected=expected, got=got, next_step=hint)
        return shards

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test``, ``val`` …, if the tar files or their folders say so; or ``all``."""
        return naming.ordered_splits(shard.split for shard in self._shards)

    def open(self, split: str) -> ImageSource:
        """Find the images of one split; the others are read for their classes."""
        place, hashes, shards = self._place, self.options.hashes, self._shards
        paths = [] if place.remote else [Path(shard.file.path) for shard in shards]
        with self.options.unchanged(paths):
            files = place.marked([shard.file for shard in shards], self.options)
            shards = [shard._replace(file=file) for shard, file in zip(shards, files, strict=True)]

            def samples(shard: Shard) -> list[Sample]:
                name = f"{shard.file.mark}, {shard.file.size} bytes, {shard.where}"
                index = hashes.recall(name, _INDEX, lambda: json.dumps(read_index(shard, place)))
                return [Sample(*row) for row in json.loads(index)]

            indexes = at_once(samples, shards, "finding images", self.options)
        pairs = zip(shards, indexes, strict=True)
        own = [(shard, s) for shard, found in pairs if shard.split == split for s in found]
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
        with translate_errors(shard.where):  # with its header, which must be that of the index
            start, end = sample.start - _BLOCK, sample.start + sample.size
            content = self._place.read(shard.file.path, start, end)
            stamp = stamp_of(shard.file.path) if self._stamps else None
        header, content = content[:_BLOCK], content[_BLOCK:]
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
        with translate_errors(place.url_of(path)), suppress(FileNotFoundError, NotADirectoryError):
            return as_listed(place.fs.info(path))
        return None

    files = dict(zip(paths, at_once(look, paths, "finding tar files", options), strict=True))
    missing = [posixpath.basename(path) for path, file in files.items() if file is None]
    what = f"{len(missing)} of {len(paths)} tar files are missing."
    hint = "correct the braces, or name the folder to read all that are there"
    refuse_missing(missing, what, place.url, "every file that the braces stand for", hint)
    return [file for file in files.values() if file is not None]


def _classes(
    own: Sequence[Sample], every: Sequence[Sample], where: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return classes that hold in every split, and the labels of one."""
    if all(sample.label is None for sample in every):
        folders = {sample.folder for sample in every} - {None}
        if len(folders) < 2:
            return (), [UNLABELLED] * len(own)
        return naming.classes_by_name([sample.folder for sample in own], folders)
    texts = {sample.label for sample in every if sample.label}
    if all(re.fullmatch(r"-1|[0-9]{1,18}", text) for text in texts):
        classes = naming.classes_by_number(np.array([int(text) for text in texts]), where)
        return classes, [int(sample.label or UNLABELLED) for sample in own]
    return naming.classes_by_name([sample.label or None for sample in own], texts)


def read_index(shard: Shard, place: RemoteFolder) -> list[Sample]:
    """Return the images of a tar file with their labels, in the order of the archive.

    DataError, which names the file, if it is compressed, damaged, cut off, or holds two images of
    one name.
    """
    where = shard.where
    with translate_errors(where), _stream(shard.file, place) as stream:
        try:
            return _samples(stream, where)
        except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
            what, expected = "The tar file is damaged or cut off.", "a complete tar archive"
            hint = "copy or download it again, or write it again with tar"
            refused = DataError(what, where=where, expected=expected, got=error, next_step=hint)
            raise refused from error


def _samples(stream: BinaryIO, where: str) -> list[Sample]:
    images: dict[str, Sample] = {}
    labels: dict[str, str] = {}
    others: dict[str, str] = {}  # masks (7.seg.png) beside an image, or images with odd names
    beginning = stream.read(6)
    if kind := next((kind for mark, kind in _COMPRESSED.items() if beginning.startswith(mark)), ""):
        what, expected = "The tar file is compressed.", "a plain .tar"
        raise DataError(what, where=where, expected=expected, got=kind, next_step=_UNPACK)
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for each
            encoded = member.name.encode("utf-8", "surrogateescape")
            parts = encoded.decode("utf-8", "backslashreplace").split("/")
            name = "/".join(part for part in parts if part not in ("", ".", ".."))
            folder, _, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key, suffix = f"{folder}/{stem}", f".{suffix.lower()}"
            if member.isdir() or "/." in f"/{name}":  # hidden
                continue
            if suffix == ".cls" and member.isreg():
                stream.seek(member.offset_data)
                if key in labels:
                    raise _twice(f"{name}: a second label", where)
                content = stream.read(min(member.size, _MOST_LABEL_BYTES + 1))
                labels[key] = _label(content, name, where)
            elif suffix in IMAGE_SUFFIXES:
                if key in images:
                    raise _twice(f"{images[key].name} and {name}", where)
                plain = member.isreg() and not member.issparse()
                obstacle = "" if plain else "It is a link in the tar file, not an image."
                stream.seek(member.offset_data - _BLOCK)
                check = zlib.crc32(stream.read(_BLOCK))
                images[key] = Sample(name, member.offset_data, member.size, check, None, obstacle)
            elif os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES:
                others[key] = name
        # tarfile takes a damaged header, and the end of the file, for the end of the archive.
        stream.seek(tar.offset)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise EOFError(f"no end mark at byte {tar.offset}")
    if odd := [name for key, name in others.items() if key not in images]:
        what, expected = "The name of an image has several dots.", "one dot: KEY.jpg, KEY.cls"
        hint = "write the shard again with other names: the key ends at the first dot"
        raise DataError(what, where=where, expected=expected, got=odd[0], next_step=hint)
    return [sample._replace(label=labels.get(key)) for key, sample in images.items()]


def _stream(file: Remote, place: RemoteFolder) -> BinaryIO:
    """Open a tar file for its headers, one at a URL to be read in blocks."""
    if not place.remote:
        return open_regular(file.path)

    class Blocks(fsspec.spec.AbstractBufferedFile):  # type: ignore[name-defined]
        def _fetch_range(self, start: int, end: int) -> bytes:
            return place.read(self.path, start, end)

    return Blocks(place.fs, file.path, block_size=_READ_BYTES, size=file.size)


def _label(content: bytes, name: str, where: str) -> str:
    text = content.decode("utf-8", "replace").strip()
    if len(content) > _MOST_LABEL_BYTES or "\ufffd" in text or len(text.splitlines()) > 1:
        what, expected = "A .cls is not a label.", "an integer, or a name in UTF-8, on one line"
        raise DataError(what, where=f"{where}, {name}", expected=expected, got=ascii(text[:60]))
    return text


def _twice(got: str, where: str) -> DataError:
    what, expected = "Two members of a tar file have the same key.", "one image of each name"
    hint = "write the shard again with keys that are unique in it"
    return DataError(what, where=where, expected=expected, got=got, next_step=hint)
