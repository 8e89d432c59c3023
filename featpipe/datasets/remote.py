"""Images at URLs, ``s3://bucket/photos`` for example, listed and read with fsspec.

Nothing is copied to this machine. The checksum or ETag that a store reports for an object
identifies its content; only an object that has neither is read to be hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.images import EncodedSource, changed, is_image_name, refuse_large
from featpipe.datasets.naming import natural_key
from featpipe.datasets.source import Identity
from featpipe.errors import DataError, ImageError
from featpipe.fingerprint import of_bytes
from featpipe.urls import Place, translate_errors

S = TypeVar("S")
T = TypeVar("T")

AT_ONCE = 16  # requests at the same time: each waits for the network most of the time

# What file systems call a digest or a version of the content, best first: a copy elsewhere has the
# same digest, but a different version.
_MARKS = ("md5Hash", "checksum", "crc32c", "ETag", "etag", "VersionId", "version_id", "generation")


class Remote(NamedTuple):
    """A file at a URL, as it was listed."""

    path: str  # as the file system calls it
    size: int
    mark: str  # a digest or version, which changes with the content; "": the listing has none


class RemoteFolder(Place):
    """A folder of images, or one of them, at a URL or on this machine."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._below: dict[str, dict[str, Remote]] = {}

    def folders(self, inside: str = "") -> list[str]:
        """Return the names of the folders in ``inside`` (``""``, ``"train/"``), in natural order.

        Hidden ones are left out.
        """
        folder = f"{self.path}/{inside}"
        with translate_errors(self.where(inside)):
            # Some stores list a folder in itself, as an object without a name.
            listed = self.fs.ls(folder.rstrip("/"), detail=True)
        if any(entry["name"] == self.path and entry["type"] == "file" for entry in listed):
            what, expected = "This is a file, not a folder.", "a folder of images"
            raise DataError(what, where=self.url, expected=expected, got="a file")
        paths = [entry["name"] for entry in listed if entry["type"] == "directory"]
        names = {path.removeprefix(folder).strip("/") for path in paths}
        visible = {name for name in names if name and not name.startswith(".")}
        return sorted(visible, key=natural_key)

    def files(self, inside: str = "") -> dict[str, Remote]:
        """Return all files below ``inside`` by their paths, in natural order; no hidden ones."""
        if inside not in self._below:
            with translate_errors(self.where(inside)):
                listed = self.fs.find(f"{self.path}/{inside}".rstrip("/"), detail=True)
            start, found = len(self.path) + 1, {}
            for path, info in listed.items():
                name = path[start:]
                visible = name and not name.endswith("/") and "/." not in f"/{name}"
                if visible and info["type"] == "file":
                    found[name] = as_listed(info)
            order = sorted(found, key=lambda name: [natural_key(part) for part in name.split("/")])
            self._below[inside] = {name: found[name] for name in order}
        return self._below[inside]

    def images(self, inside: str = "") -> list[str]:
        """Return the paths of all images below ``inside``, in natural order."""
        return [name for name in self.files(inside) if is_image_name(name.rpartition("/")[2])]

    def marked(self, files: Sequence[Remote], options: DatasetOptions) -> list[Remote]:
        """Return files with their marks; those that were listed without one are read and hashed."""
        if not self.remote:
            paths = [file.path for file in files]
            marks = [f"sha256:{digest}" for digest in options.digests(paths)]
            return [Remote(p, os.stat(p).st_size, m) for p, m in zip(paths, marks, strict=True)]

        def mark(file: Remote) -> Remote:
            # A single request may return more than the listing.
            file = file if file.mark else as_listed(self.info(file.path))
            if file.mark:
                return file
            with translate_errors(self.url_of(file.path)):
                content = self.read(file.path)
            return Remote(file.path, len(content), f"sha256:{of_bytes(content)}")

        if all(file.mark for file in files):
            return list(files)
        return at_once(mark, files, "checking files", options)


class RemoteSource(EncodedSource):
    """Images that are files in a remote folder, read and decoded one by one."""

    _at_once = AT_ONCE

    def __init__(
        self, identity: Identity, place: RemoteFolder, inside: str, options: DatasetOptions
    ) -> None:
        listed = place.files(inside)
        self._files = place.marked([listed[name] for name in identity.ids], options)
        self._place, self._hashes = place, options.hashes
        super().__init__(identity, [[file.mark, file.size] for file in self._files], place.url)

    def _where(self, row: int) -> str:
        return self._place.where(self.ids[row])

    def _content(self, row: int) -> bytes:
        file, where = self._files[row], self._where(row)
        refuse_large(file.size, where)
        with translate_errors(where):
            try:
                content = self._place.read(file.path)
            except FileNotFoundError:
                raise ImageError("The image is not there any more.", where=where) from None
        if len(content) != file.size or not self._agrees(content, file):
            expected, got = f"{file.size} bytes, {file.mark}", f"{len(content)} bytes"
            raise changed(where, expected=expected, got=got)
        return content

    def _agrees(self, content: bytes, file: Remote) -> bool:
        """Return whether content may be that of a mark."""
        kind, _, value = file.mark.partition(":")
        if kind == "sha256":
            return of_bytes(content) == value
        if kind == "md5hash" or (kind == "etag" and re.fullmatch("[0-9a-f]{32}", value)):
            md5 = hashlib.md5(content, usedforsecurity=False)
            if value not in (md5.hexdigest(), b64encode(md5.digest()).decode()):
                # The ETag of an encrypted object looks like an MD5 sum and is none: ask the store.
                self._place.fs.invalidate_cache()
                return kind == "etag" and as_listed(self._place.info(file.path)) == file
        return True


def as_listed(info: Mapping[str, Any]) -> Remote:
    """Return a file from what its file system reports."""
    marks = ((key, info[key]) for key in _MARKS if info.get(key))
    mark = next((f"{key.lower()}:{str(value).strip(chr(34))}" for key, value in marks), "")
    return Remote(info["name"], info.get("size") or 0, mark)


def at_once(
    work: Callable[[S], T], items: Sequence[S], label: str, options: DatasetOptions
) -> list[T]:
    """Return the results of work on each item, in order: several at a time, with progress."""
    results = []
    with options.progress.task(label, len(items)) as task, ThreadPoolExecutor(AT_ONCE) as pool:
        for result in pool.map(work, items):
            results.append(result)
            task.advance()
    return results
