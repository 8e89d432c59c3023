"""Tar files as WebDataset writes them: which images one holds, where, and with which labels.

Names in a tar file are texts: none becomes a path, and nothing is unpacked.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from typing import BinaryIO, NamedTuple

from featpipe.datasets.images import IMAGE_SUFFIXES
from featpipe.datasets.remote import Remote, RemoteFolder
from featpipe.errors import DataError
from featpipe.files import open_regular
from featpipe.lazy import Lazy
from featpipe.urls import explaining

fsspec = Lazy("fsspec")

BLOCK = tarfile.BLOCKSIZE
UNPACK = "unpack it: featpipe reads single images, which needs plain .tar files"

_READ_BYTES = 1 << 21  # of a tar at a URL: most images are smaller, so that few bytes are skipped
_MOST_LABEL_BYTES = 4096
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Sample(NamedTuple):
    """An image in a tar file, and what is said of it."""

    name: str
    start: int  # of its bytes; its header ends there
    size: int
    check: int  # CRC-32 of its header: another file in its place would have another one
    label: str | None  # the text of its .cls; None: it has none
    obstacle: str  # why it cannot be read, if so


class Shard(NamedTuple):
    """A tar file of the dataset."""

    name: str  # relative to their common folder, without .tar
    file: Remote
    where: str


def read_index(shard: Shard, place: RemoteFolder) -> list[Sample]:
    """Return the images of a tar file with their labels, in the order of the archive.

    DataError, which names the file, if it is compressed, damaged, cut off, or holds two images of
    one name.
    """
    with explaining(shard.where), _stream(shard.file, place) as stream:
        try:
            return _samples(stream, shard.where)
        except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
            raise _damaged(shard.where, error) from error


def _samples(stream: BinaryIO, where: str) -> list[Sample]:
    images: dict[str, Sample] = {}
    labels: dict[str, str] = {}
    others: dict[str, str] = {}  # masks (7.seg.png) beside an image, or images with odd names
    beginning = stream.read(6)
    for mark, kind in _COMPRESSED.items():
        if beginning.startswith(mark):
            what, expected = "The tar file is compressed.", "a plain .tar"
            raise DataError(what, where=where, expected=expected, got=kind, next_step=UNPACK)
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for each
            name = _text(member.name)
            folder, _, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key, suffix = f"{folder}/{stem}", f".{suffix.lower()}"
            if member.isdir() or any(part.startswith(".") for part in name.split("/")):
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
                stream.seek(member.offset_data - BLOCK)
                check = zlib.crc32(stream.read(BLOCK))
                images[key] = Sample(name, member.offset_data, member.size, check, None, obstacle)
            elif os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES:
                others[key] = name
        # tarfile takes a damaged header, and the end of the file, for the end of the archive.
        stream.seek(tar.offset)
        if stream.read(BLOCK) != bytes(BLOCK):
            raise _damaged(where, f"no end mark at byte {tar.offset}")
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


def _text(name: str) -> str:
    """Return the name of a member as text, relative to the archive."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def _twice(got: str, where: str) -> DataError:
    what, expected = "Two members of a tar file have the same key.", "one image of each name"
    hint = "write the shard again with keys that are unique in it"
    return DataError(what, where=where, expected=expected, got=got, next_step=hint)


def _damaged(where: str, got: object) -> DataError:
    what, expected = "The tar file is damaged or cut off.", "a complete tar archive"
    hint = "copy or download it again, or write it again with tar"
    return DataError(what, where=where, expected=expected, got=got, next_step=hint)
