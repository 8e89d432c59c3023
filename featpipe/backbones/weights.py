"""Which file holds the weights: the user's, a published one out of torch hub's folder, ours."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from featpipe.backbones import weights_file
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.errors import WeightsError
from featpipe.fingerprint import FileHashes

__all__ = ["WeightsInfo", "download", "resolve"]

_SILENCE_S = 30.0  # a server that says nothing for so long is given up


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights came from.

    Attributes
    ----------
    name : str
        Name of the published weights, or of the file.
    source : str
        Address or path.
    sha256 : str
        Of the whole file.
    path : Path
        Where the file lies.
    published : PublishedWeights or None
        ``None`` for a file of the user's.
    """

    name: str
    source: str
    sha256: str
    path: Path
    published: PublishedWeights | None


def resolve(architecture: Architecture, weights: str, hashes: FileHashes) -> WeightsInfo:
    """Return which file holds the weights; published ones are downloaded where they are missing.

    Parameters
    ----------
    architecture : Architecture
    weights : str
        ``"DEFAULT"``, the name of published weights, or a file.
    hashes : FileHashes

    Raises
    ------
    UnknownNameError
        If no published weights have this name.
    WeightsError
        If the file is missing, or the download fails.
    """
    path = weights_file(architecture.name, weights)
    if path is not None and weights.upper() not in architecture.published:
        return WeightsInfo(path.name, str(path), hashes.one(path), path, None)
    published = architecture.find_published(weights)
    if isinstance(published.location, Path):
        path, source = published.location, f"shipped with featpipe: {published.location.name}"
    else:
        path, source = download(published.location), published.location
    return WeightsInfo(published.name, source, _checked(path, source, hashes), path, published)


def download(url: str) -> Path:
    """Return the file of an address out of torch hub's folder, downloaded if it is not there.

    Raises
    ------
    WeightsError
        If it cannot be downloaded, or arrives damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _patience(_SILENCE_S):
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=_hash_prefix(path), progress=sys.stderr.isatty()
            )
    except RuntimeError as error:  # torch hub's way to say that the content is another one
        raise WeightsError(
            "The downloaded weights are damaged.", where=url, got=error, next_step="try again"
        ) from None
    except OSError as error:  # urllib's errors are among them
        raise WeightsError(
            f"The weights {path.name} are not here and could not be downloaded.",
            where=url,
            got=getattr(error, "reason", None) or error,
            next_step="one of three: connect to a network and try again; give the weights as a"
            " file with --weights FILE; or run `featpipe demo`, whose backbone is built in",
        ) from None
    return path


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Limit how long a silent server is waited for: torch hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _hash_prefix(path: Path) -> str | None:
    """Return the first digits of the SHA-256 that torch hub's convention puts into the name."""
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return found.group(1) if found else None


def _checked(path: Path, source: str, hashes: FileHashes) -> str:
    digest = hashes.one(path)
    prefix = _hash_prefix(path)
    if prefix is not None and not digest.startswith(prefix):
        raise WeightsError(
            "The downloaded weights are damaged.",
            where=path,
            expected=f"SHA-256 {prefix}…",
            got=f"{digest[: len(prefix)]}…",
            next_step=f"delete the file; it is then downloaded again from {source}",
        )
    return digest
