"""Fingerprints: short names for content, equal exactly when the content is equal.

They name what is stored. Kept in a file (:func:`sealed_json`, :func:`seal_archive`), they show that
it has changed since; they do not stop anyone from changing both.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.files import open_regular
from featpipe.lazy import Lazy

if TYPE_CHECKING:
    from sqlite3 import Connection

hashlib, sqlite3 = Lazy("hashlib"), Lazy("sqlite3")  # a tenth of the time of `--help`

CLOCK_TICK_NS = 20_000_000  # two changes within one tick of the system's clock look like one
_DIGEST = "digest"  # key of sealed JSON
SEAL = b"featpipe sha256 "  # the comment of a sealed archive, before the digest in hex
_COMMENT_BYTES = 2 + len(SEAL) + 64  # with its length, which ends an archive without a comment
_READ_BYTES = 1 << 22
_COLUMNS = "path, size, mtime_ns, ctime_ns, algorithm, digest, crc32"
_HASHES = (
    "hashes (path text, algorithm text, size integer, mtime_ns integer, ctime_ns integer,"
    " digest text, crc32 integer, primary key (path, algorithm))"
)


def of_mapping(values: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-like value; the order of keys does not matter."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_bytes(*blocks: bytes | memoryview) -> str:
    """Return the SHA-256 (hex) of some bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def of_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file's content, read in blocks."""
    with open_regular(path) as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.hexdigest()


def sealed_json(content: Mapping[str, Any]) -> str:
    """Return content as JSON with its own digest; :func:`unsealed` gives the content back.

    A number that is not finite is a ValueError.
    """
    plain = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: tuples are lists
    sealed = {**plain, _DIGEST: of_mapping(plain)}
    return json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"


def unsealed(content: Any) -> dict[str, Any]:
    """Return the mapping that was read from sealed JSON without its digest.

    A missing digest, or that of another content, is a ValueError.
    """
    if not isinstance(content, dict) or _DIGEST not in content:
        raise ValueError("it has no digest of its content")
    rest = {name: value for name, value in content.items() if name != _DIGEST}
    if content[_DIGEST] != of_mapping(rest):
        raise ValueError("its content was changed after it was written")
    return rest


def of_part(path: Path, start: int, n_bytes: int) -> str:
    """Return the SHA-256 (hex) of some bytes of a file, as many as there are from ``start`` on."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while n_bytes and (piece := stream.read(min(n_bytes, _READ_BYTES))):
            digest.update(piece)
            n_bytes -= len(piece)
    return digest.hexdigest()


def seal_archive(path: Path) -> None:
    """Write the digest of a zip archive that has no comment into its comment."""
    comment = _comment(path, path.stat().st_size - 2)
    with path.open("rb+") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(comment)


def check_archive(path: Path) -> None:
    """Raise ValueError unless a zip archive holds the digest of what it is."""
    end = path.stat().st_size - _COMMENT_BYTES
    with path.open("rb") as stream:
        stream.seek(max(end, 0))
        comment = stream.read()
    if not comment[2:].startswith(SEAL):
        raise ValueError("it does not end with a digest of its content")
    if comment != _comment(path, end):
        raise ValueError("its content was changed after it was written")


def _comment(path: Path, n_bytes: int) -> bytes:
    """Return the sealed end of an archive of so many bytes: length and text of its comment."""
    text = SEAL + of_part(path, 0, n_bytes).encode()
    return len(text).to_bytes(2, "little") + text


@contextmanager
def database(path: Path, table: str) -> Iterator[Connection]:
    """Yield an SQLite file that has a table; it is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.execute(f"create table if not exists {table}")
        yield connection


class FileHashes:
    """Content hashes that are computed once and remembered.

    A hash is computed again when the size, the modification time or the time of the last change
    of anything (``st_ctime``, which no program can set back) differs, so the second look at ten
    thousand unchanged images costs ten thousand ``stat`` calls and no read. ``cache`` is the SQLite
    file of remembered hashes, each with a checksum; ``None`` remembers nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache

    def many(
        self,
        paths: Iterable[str | Path],
        algorithm: str = "sha256",
        on_hashed: Callable[[], None] = lambda: None,
        digest_of: Callable[[Path, str], str] = of_file,
    ) -> list[str]:
        """Return the hex digests of files, in order.

        ``algorithm`` is a name of :mod:`hashlib`, or of what ``digest_of`` makes of a file;
        ``on_hashed`` is called after each file that had to be read.
        """
        began = time.time_ns()
        paths = [os.fspath(path) for path in paths]
        real_folder = cache(os.path.realpath)  # each folder is resolved once, not for every file
        stamps = []
        for path in paths:
            folder, name = os.path.split(path)
            stat = os.stat(path)
            key = os.path.join(real_folder(folder), name)
            key = key.encode("utf-8", "backslashreplace").decode()  # SQLite knows UTF-8 only
            stamps.append((key, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        keys = [stamp[0] for stamp in stamps] or [""]
        within = "algorithm = ? and path between ? and ?"  # not those of all other datasets
        known = self._known(within, algorithm, min(keys), max(keys))
        digests, fresh = [], []
        try:
            for path, stamp in zip(paths, stamps, strict=True):
                digest = known.get(stamp)
                if digest is None:
                    digest = digest_of(Path(path), algorithm)
                    if began - stamp[-1] > CLOCK_TICK_NS:
                        fresh.append((*stamp, algorithm, digest))
                    on_hashed()
                digests.append(digest)
        finally:  # so that an interrupted look at many files can be continued
            self._remember(fresh)
        return digests

    def one(self, path: Path, algorithm: str = "sha256") -> str:
        """Return the hex digest of one file."""
        return self.many([path], algorithm)[0]

    def recall(self, content: str, what: str, make: Callable[[], str]) -> str:
        """Return a text that follows from content alone: made once, then remembered.

        ``content`` is a digest that names the content, ``what`` says which of its texts is meant.
        """
        stamp = (content, 0, 0, 0)
        text = self._known("algorithm = ? and path = ?", what, content).get(stamp)
        if text is None:
            text = make()
            self._remember([(*stamp, what, text)])
        return text

    def _remember(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if self.cache is None or not rows:
            return
        # What cannot be remembered is computed again.
        with suppress(sqlite3.Error, OSError), database(self.cache, _HASHES) as connection:
            into = f"insert or replace into hashes ({_COLUMNS}) values"
            checked = [(*row, _crc32(row)) for row in rows]
            connection.executemany(f"{into} (?, ?, ?, ?, ?, ?, ?)", checked)

    def _known(self, condition: str, *values: str) -> dict[tuple[str, int, int, int], str]:
        if self.cache is None or not self.cache.exists():
            return {}
        try:
            with database(self.cache, _HASHES) as connection:
                query = f"select {_COLUMNS} from hashes where {condition}"  # noqa: S608 - ours
                rows = connection.execute(query, values).fetchall()
        except sqlite3.OperationalError:
            return {}  # busy, or on a disk that is read-only: the hashes are computed again
        except sqlite3.DatabaseError:
            # It only remembers what can be computed again: a damaged one is replaced.
            self.cache.unlink(missing_ok=True)
            return {}
        return {row[:4]: row[5] for *facts, crc32 in rows if _crc32(row := tuple(facts)) == crc32}


def _crc32(row: tuple[Any, ...]) -> int:
    """Return the checksum of a remembered hash; SQLite keeps none."""
    return zlib.crc32(repr(row).encode("utf-8", "surrogatepass"))
