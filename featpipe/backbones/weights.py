"""Weights: which file holds them, and its tensors; nothing in a file can run code here."""

from __future__ import annotations

import pickle
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featpipe.backbones import WEIGHTS_SUFFIXES, weights_file
from featpipe.backbones.architecture import Architecture, PublishedWeights
from featpipe.errors import WeightsError
from featpipe.fingerprint import FileHashes

_SOCKET_TIMEOUT_S = 30.0
# Where training scripts put the state dict among optimiser, epoch and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# A counter that batch norm needs for training only; old checkpoints lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights come from: a file, its SHA-256, and its name or that of the published weights.

    ``published`` is ``None`` for a file of the user's.
    """

    name: str
    sha256: str
    path: Path
    published: PublishedWeights | None


def find_weights(architecture: Architecture, weights: str, hashes: FileHashes) -> WeightsInfo:
    """Return which file holds the weights; published ones are downloaded where they are missing.

    Raises
    ------
    UsageError
        If no published weights have this name, or there are none.
    WeightsError
        If the file is missing or damaged, or the download fails.
    """
    path = weights_file(architecture.name, weights)
    if path is not None and weights.upper() not in architecture.published:
        return WeightsInfo(path.name, hashes.one(path), path, None)
    published = architecture.find_published(weights)
    if isinstance(published.location, Path):
        path = published.location
        return WeightsInfo(published.name, hashes.one(path), path, published)
    url = published.location
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    # By torch hub's convention the first digits of the SHA-256 are part of the name.
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = named[1] if named else ""
    if not path.exists():
        _download(url, path, prefix)
    digest = hashes.one(path)
    if not digest.startswith(prefix):
        raise WeightsError(
            "The downloaded weights are damaged.",
            where=path,
            expected=f"SHA-256 {prefix}…",
            got=f"{digest[: len(prefix)]}…",
            next_step=f"delete the file; it is then downloaded again from {url}",
        )
    return WeightsInfo(published.name, digest, path, published)


def _download(url: str, path: Path, prefix: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT_S)  # torch hub itself would wait for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=prefix or None, progress=sys.stderr.isatty()
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
    finally:
        socket.setdefaulttimeout(before)


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a weights file into a plain state dict on the CPU.

    Parameters
    ----------
    path : Path
        ``.safetensors``; or ``.pt``, ``.pth``, ``.th`` as :func:`torch.save` writes them, a state
        dict or one within ``{"state_dict": …}`` (or ``"model_state_dict"``, ``"model"``).

    Returns
    -------
    state : dict of str to Tensor
        Floating-point tensors as float32; the prefix ``module.`` that torch's DataParallel puts
        before every name is taken off.

    Raises
    ------
    WeightsError
        If the file is no weights file, is damaged, or holds anything but finite tensors.
    """
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise WeightsError(
            "The weights file has a name of unknown kind.",
            where=path,
            expected=", ".join(WEIGHTS_SUFFIXES),
            got=path.suffix or "no suffix",
        )
    if path.stat().st_size == 0:
        raise WeightsError("The weights file is empty (0 bytes).", where=path)
    state = _unwrapped(_read(path), path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point():
            if not torch.isfinite(value).all():
                raise WeightsError(
                    "The weights file holds values that are not finite.", where=path, got=name
                )
            state[name] = value.float()
    return state


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Never a full unpickle: that would run whatever code the file's author wished.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parsers meet in a foreign file
        pickled = isinstance(error, pickle.UnpicklingError)
        stranger = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if pickled and stranger:
            raise WeightsError(
                "The weights file holds more than tensors; loading it could run foreign code, so"
                " featpipe does not.",
                where=path,
                expected="a state dict: names and tensors",
                got=f"the Python object {stranger[1]}",
                next_step="if you trust its author, load it where it was made, save"
                " model.state_dict() with safetensors.torch.save_file, and use that file",
            ) from None
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch file"
        # torch's own text begins with advice to load without weights_only: not repeated here.
        said = "" if pickled else f" ({str(error)[:120]})"
        raise WeightsError(
            f"The weights file is damaged, cut off, or no {kind} at all.",
            where=path,
            got=f"{path.stat().st_size} bytes{said}",
            next_step="fetch or copy the file again and compare its size",
        ) from None


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        wrapped = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        content = wrapped[0] if wrapped else content
        strangers = [
            f"{key!r} ({type(value).__name__})"
            for key, value in content.items()
            if not (isinstance(key, str) and isinstance(value, Tensor))
        ]
    else:
        strangers = [type(content).__name__]
    if strangers or not content:
        raise WeightsError(
            "The weights file holds no state dict.",
            where=path,
            expected=f"names and tensors, or those within one of {', '.join(_WRAPPERS)}",
            got=_some(strangers) if strangers else "nothing",
        )
    return dict(content)


def load_network(architecture: Architecture, path: Path) -> nn.Module:
    """Return the network with the weights of a file, which must be its own to the letter.

    A network trained on another task may have any number of outputs: as many as the file has.

    Raises
    ------
    WeightsError
        If the file cannot be read; or with the first missing, unexpected and wrongly shaped names
        and how many there are.
    """
    state = load_state_dict(path)
    last = state.get(f"{architecture.classifier}.weight")
    num_classes = len(last) if last is not None and last.ndim == 2 else 0
    # Built without memory, then given the file's tensors: no random start to throw away.
    network = architecture.on_meta(num_classes or 1)
    own = network.state_dict()
    expected, got = _shapes(own), _shapes(state)
    if expected != got:
        problems = {
            "missing": [name for name in expected if name not in got],
            "unexpected": [name for name in got if name not in expected],
            "wrong shape": [
                f"{name} {got[name]} instead of {shape}"
                for name, shape in expected.items()
                if got.get(name, shape) != shape
            ],
        }
        raise WeightsError(
            f"These are no weights of {architecture.name}.",
            where=path,
            expected=f"{len(expected)} tensors",
            got="; ".join(
                f"{len(names)} {problem}: {_some(names)}"
                for problem, names in problems.items()
                if names
            ),
        )
    counters = {name: torch.tensor(0) for name in own if name.endswith(_COUNTER)}
    network.load_state_dict(counters | state, assign=True)
    return network


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)
    }


def _some(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
