"""Files at URLs, ``s3://bucket/photos`` for example, read and written with fsspec."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from featpipe.errors import DataError, FeatpipeError, UsageError
from featpipe.lazy import Lazy, check_installed
from featpipe.workspace import atomic_write

fsspec = Lazy("fsspec")

# The package that fsspec needs for a protocol, and the extra of featpipe that installs it; fsspec
# itself names what other protocols need.
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gcs")),
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure; "
    "FSSPEC_S3_ANON=true reads public buckets",
    "gcs": "run gcloud auth application-default login; FSSPEC_GS_TOKEN=anon reads public buckets",
}
_NO_CREDENTIALS = re.compile("Credential|Token|RefreshError|Unauthorized")
_BLOCK_BYTES = 1 << 21  # read at once from an open file


def protocol_of(argument: str) -> str | None:
    """Return the protocol of a URL, ``"s3"`` for example; ``None`` for a path or a name.

    A ``file://`` URL is a path, too, which :func:`plain_path` returns.
    """
    found = re.match(r"([a-z][a-z0-9+.-]*)://", plain_path(argument))
    return found and found[1]


def plain_path(argument: str) -> str:
    """Return the path of a ``file://`` URL, and any other text unchanged."""
    return re.sub("^(file|local)://(?=/)", "", argument)


def is_url(text: str) -> bool:
    """Return whether a text is a URL, including ``file://``, but not a chain of URLs."""
    return "::" not in text and re.match("[a-z][a-z0-9+.-]*://.", text) is not None


def check_protocol(url: str) -> None:
    """Raise ``MissingExtraError`` unless what reads files at a URL is installed."""
    needed = PACKAGES.get(protocol_of(url) or "")
    if needed:
        check_installed(*needed)


class Place:
    """A folder or file that fsspec reads: at a URL, or on this machine."""

    def __init__(self, url: str) -> None:
        self.url = plain_path(url).rstrip("/")
        self.remote = protocol_of(url) is not None
        try:
            password = urlsplit(url).password
        except ValueError as error:
            what, expected = "This is not a URL.", "s3://BUCKET/FOLDER, for example"
            raise UsageError(what, expected=expected, got=error) from error
        if password:  # refused before anything records or shows the URL
            what, expected = "The URL holds a password, which would be recorded.", "one without"
            hint = "give credentials in the file system's own way: environment or configuration"
            raise UsageError(what, expected=expected, next_step=hint)
        with translate_errors(url):
            try:
                self.fs, path = fsspec.core.url_to_fs(url)
            except (ImportError, ValueError) as error:
                what = f"Files at {protocol_of(url)}:// cannot be read here."
                expected = "s3://, gs://, https:// or another protocol that fsspec knows"
                raise UsageError(what, where=url, expected=expected, got=error) from error
        self.path: str = path.rstrip("/")
        self.fs.invalidate_cache()  # earlier listings may be out of date

    def where(self, inside: str = "") -> str:
        """Return the URL of something in the folder, for messages."""
        return f"{self.url}/{inside}".rstrip("/")

    def url_of(self, path: str) -> str:
        """Return the URL of a path of the file system, for messages."""
        return plain_path(self.fs.unstrip_protocol(path))

    def info(self, path: str) -> dict[str, Any]:
        """Return what the file system reports of a file or folder."""
        with translate_errors(self.url_of(path)):
            return dict(self.fs.info(path))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return some bytes of a file; safe to call from several threads at once."""
        return bytes(self.fs.cat_file(path, start=start, end=end))

    def names(self) -> set[str]:
        """Return the names in the folder; none if it does not exist yet."""
        with translate_errors(self.url), suppress(FileNotFoundError):
            return {path.rpartition("/")[2] for path in self.fs.ls(self.path, detail=False)}
        return set()

    def has(self, name: str) -> bool:
        """Return whether a file of the folder exists."""
        with translate_errors(self.where(name)):
            return bool(self.fs.exists(f"{self.path}/{name}"))

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Yield an open file of the folder; only bytes that are read are fetched."""
        with translate_errors(self.where(name)):
            file = self.fs.open(f"{self.path}/{name}", "rb", block_size=_BLOCK_BYTES)
        with file:
            yield file

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file of the folder to a path of this machine, which exists once it is complete."""
        with atomic_write(path) as temporary, translate_errors(self.where(name)):
            self.fs.get_file(f"{self.path}/{name}", str(temporary))

    def put(self, file: Path) -> None:
        """Copy a file into the folder, where it gets its name once it is complete."""
        temporary = f"{self.path}/.{file.name}.{os.urandom(8).hex()}.tmp"
        with translate_errors(self.where(file.name)):
            if protocol_of(self.url) not in PACKAGES:  # buckets have no folders
                self.fs.makedirs(self.path, exist_ok=True)
            try:
                self.fs.put_file(str(file), temporary)
                self.fs.mv(temporary, f"{self.path}/{file.name}")
            except BaseException:
                with suppress(Exception):
                    self.fs.rm(temporary)
                raise


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn what a file system raises into a DataError that says where, and what to do."""
    try:
        yield
    except FeatpipeError:
        raise
    except Exception as error:
        kind, text = type(error).__name__, " ".join(str(error).split())[:400]
        if isinstance(error, FileNotFoundError):
            what, got = "Nothing was found at this location.", text if "bucket" in text else None
            expected, hint = "a bucket and a name in it that exist", "correct the URL"
        elif isinstance(error, PermissionError) or _NO_CREDENTIALS.search(kind):
            what, got = "Access to the storage was denied.", text or None
            expected = "credentials that may list and read"
            _, extra = PACKAGES.get(protocol_of(where) or "", ("", ""))
            hint = _CREDENTIALS.get(extra, "give credentials in the file system's own way")
        else:
            what, got = "The storage cannot be read.", f"{kind}: {text}"
            expected = "an answer to the request"
            hint = "check the URL and the network, then run the same command again"
        raise DataError(what, where=where, expected=expected, got=got, next_step=hint) from error
