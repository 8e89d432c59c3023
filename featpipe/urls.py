"""Files at URLs, ``s3://bucket/photos`` for example, read and written with fsspec."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from featpipe.errors import DataError, FeatpipeError, UsageError
from featpipe.lazy import Lazy, check_installed
from featpipe.workspace import atomic_write

fsspec = Lazy("fsspec")

# What fsspec needs for a protocol, and its extra of featpipe; of any other it says so itself.
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
_BLOCK_BYTES = 1 << 21  # read at once from a file that is opened


def protocol_of(argument: str) -> str | None:
    """Return the protocol of a URL, ``"s3"`` for example; ``None``: it is a path or a name.

    A ``file://`` URL is a path, too: :func:`plain_path` tells which.
    """
    found = re.match(r"([a-z][a-z0-9+.-]*)://", plain_path(argument))
    return found and found[1]


def plain_path(argument: str) -> str:
    """Return the path that a ``file://`` URL means, and any other text as it is."""
    return re.sub("^(file|local)://(?=/)", "", argument)


def is_url(text: str) -> bool:
    """Return whether a text is the URL of a place, a ``file://`` one included, and no chain."""
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
        if password:  # before anything records the URL, or a message shows it
            what, expected = "The URL holds a password, which would be recorded.", "one without"
            hint = "give credentials in the way of the file system: environment or configuration"
            raise UsageError(what, expected=expected, next_step=hint)
        with translate_errors(url):
            try:
                self.fs, path = fsspec.core.url_to_fs(url)
            except (ImportError, ValueError) as error:
                what = f"Files at {protocol_of(url)}:// cannot be read here."
                expected = "s3://, gs://, https:// or another protocol that fsspec knows"
                raise UsageError(what, where=url, expected=expected, got=error) from error
        self.path: str = path.rstrip("/")
        self.fs.invalidate_cache()  # what was listed before may have changed

    def where(self, inside: str = "") -> str:
        """Return the URL of something in the folder, for messages."""
        return f"{self.url}/{inside}".rstrip("/")

    def url_of(self, path: str) -> str:
        """Return the URL of what the file system calls so, for messages."""
        return plain_path(self.fs.unstrip_protocol(path))

    def info(self, path: str) -> dict[str, Any]:
        """Return what is known of a file or folder."""
        with translate_errors(self.url_of(path)):
            return dict(self.fs.info(path))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return some bytes of a file; safe to call from several threads at once."""
        return bytes(self.fs.cat_file(path, start=start, end=end))

    def names(self) -> set[str]:
        """Return the names in the folder, of which there may be none yet."""
        with translate_errors(self.url), suppress(FileNotFoundError):
            return {path.rpartition("/")[2] for path in self.fs.ls(self.path, detail=False)}
        return set()

    def has(self, name: str) -> bool:
        """Return whether a file of the folder is there."""
        with translate_errors(self.where(name)):
            return bool(self.fs.exists(f"{self.path}/{name}"))

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Yield a file of the folder; of its bytes only those that are read are fetched."""
        with translate_errors(self.where(name)):
            file = self.fs.open(f"{self.path}/{name}", "rb", block_size=_BLOCK_BYTES)
        with file:
            yield file

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file of the folder to this machine, where it has its name when it is complete."""
        with atomic_write(path) as temporary, translate_errors(self.where(name)):
            self.fs.get_file(f"{self.path}/{name}", str(temporary))

    def put(self, file: Path) -> None:
        """Copy a file into the folder, where it has its name when it is complete."""
        temporary = f"{self.path}/.{file.name}.{secrets.token_hex(8)}.tmp"
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
    """Turn whatever a file system raises into a DataError that says where and what to do."""
    try:
        yield
    except FeatpipeError:
        raise
    except Exception as error:
        kind, said = type(error).__name__, " ".join(str(error).split())[:400]
        if isinstance(error, FileNotFoundError):
            what, got = "Nothing was found at this location.", said if "bucket" in said else None
            expected, hint = "a bucket and a name in it that exist", "correct the URL"
        elif isinstance(error, PermissionError) or _NO_CREDENTIALS.search(kind):
            what, got = "Access to the storage was denied.", said or None
            expected = "credentials that may list and read"
            _, extra = PACKAGES.get(protocol_of(where) or "", ("", ""))
            hint = _CREDENTIALS.get(extra, "give credentials in the way of the file system")
        else:
            what, got = "The storage cannot be read.", f"{kind}: {said}"
            expected = "an answer to the request"
            hint = "check the URL and the network, then run the same command again"
        raise DataError(what, where=where, expected=expected, got=got, next_step=hint) from error
