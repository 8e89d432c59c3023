"""Read weights files and check them against a network; nothing in a file can run code here."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featpipe.backbones import MODELS, WEIGHTS_SUFFIXES
from featpipe.backbones.architecture import Architecture
from featpipe.errors import WeightsError

__all__ = ["build_with", "load_state_dict"]

# Where training scripts put the state dict among optimiser, epoch and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_LISTED = 3  # of many wrong names a message names this many
# A counter that batch norm needs for training only; old checkpoints lack it.
_COUNTER = "num_batches_tracked"

Shapes = dict[str, tuple[int, ...]]


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
        Floating-point tensors as float32; a prefix ``module.`` of all names is taken off.

    Raises
    ------
    WeightsError
        If the file is no weights file, is damaged, or holds anything but tensors.
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
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _without_prefix(_unwrapped(content, path))
    return {name: _float32(name, value, path) for name, value in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "safetensors file", error) from None


def _read_torch(path: Path) -> Any:
    try:
        # Never a full unpickle: that would run whatever code the file's author wished.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's parsers meet in a foreign file
        stranger = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if not isinstance(error, pickle.UnpicklingError) or stranger is None:
            raise _unreadable(path, "PyTorch file", error) from None
        raise WeightsError(
            "The weights file holds more than tensors; loading it could run foreign code, so"
            " featpipe does not.",
            where=path,
            expected="a state dict: names and tensors",
            got=f"the Python object {stranger[1]}",
            next_step="if you trust its author, load it where it was made, save"
            " model.state_dict() with safetensors.torch.save_file, and use that file",
        ) from None


def _unreadable(path: Path, kind: str, error: Exception) -> WeightsError:
    # torch's own text begins with advice to load without weights_only; that is not repeated here.
    said = "" if isinstance(error, pickle.UnpicklingError) else f" ({str(error)[:120]})"
    return WeightsError(
        f"The weights file is damaged, cut off, or no {kind} at all.",
        where=path,
        got=f"{path.stat().st_size} bytes{said}",
        next_step="fetch or copy the file again and compare its size",
    )


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    strangers = (
        [f"{key!r} ({type(value).__name__})" for key, value in content.items() if _odd(key, value)]
        if isinstance(content, Mapping)
        else [type(content).__name__]
    )
    if strangers or not content:
        raise WeightsError(
            "The weights file holds no state dict.",
            where=path,
            expected=f"names and tensors, or those within one of {', '.join(_WRAPPERS)}",
            got=_some(strangers) if strangers else "nothing",
        )
    return dict(content)


def _odd(key: object, value: object) -> bool:
    return not (isinstance(key, str) and isinstance(value, Tensor))


def _without_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Take off what torch's DataParallel puts before every name."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _float32(name: str, value: Tensor, path: Path) -> Tensor:
    if not value.is_floating_point():
        return value
    if not torch.isfinite(value).all():
        raise WeightsError(
            "The weights file holds values that are not finite.", where=path, got=name
        )
    return value.float()


def _count_classes(architecture: Architecture, state: Mapping[str, Tensor]) -> int:
    """Return how many logits the classifier in a state dict has; the usual number if it has none.

    A network trained on another task may have any number of outputs.
    """
    weight = state.get(f"{architecture.classifier}.weight")
    if weight is not None and weight.ndim == 2 and len(weight) > 0:
        return len(weight)
    return len(architecture.published["DEFAULT"].source_classes().ids)


def build_with(architecture: Architecture, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Return the network with the weights of a state dict, which must be its own to the letter.

    Returns
    -------
    network : nn.Module
        In evaluation mode; it shares the tensors of ``state``.

    Raises
    ------
    WeightsError
        With the first missing, unexpected and wrongly shaped names, how many there are, and the
        architecture whose weights these look like.
    """
    # Built without memory, then given the file's tensors: no random start to throw away.
    network = architecture.on_meta(_count_classes(architecture, state))
    own = network.state_dict()
    expected, got = _shapes(own), _shapes(state)
    if expected != got:
        missing = [name for name in expected if name not in got]
        unexpected = [name for name in got if name not in expected]
        reshaped = [
            f"{name} {got[name]} instead of {shape}"
            for name, shape in expected.items()
            if got.get(name, shape) != shape
        ]
        problems = {"missing": missing, "unexpected": unexpected, "wrong shape": reshaped}
        raise WeightsError(
            f"These are no weights of {architecture.name}.",
            where=path,
            expected=f"{len(expected)} tensors",
            got="; ".join(
                f"{len(names)} {problem}: {_some(names)}"
                for problem, names in problems.items()
                if names
            ),
            next_step=_guess(architecture, state),
        )
    counters = {name: torch.tensor(0) for name in own if name.endswith(_COUNTER)}
    network.load_state_dict(counters | state, assign=True)
    return network


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {
        name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)
    }


def _guess(architecture: Architecture, state: Mapping[str, Tensor]) -> str | None:
    got = _shapes(state)
    for entry in MODELS:
        other: Architecture = entry.load()
        # Building a network costs a tenth of a second even without memory: only likely ones.
        if other is architecture or f"{other.classifier}.weight" not in state:
            continue
        if _shapes(other.on_meta(_count_classes(other, state)).state_dict()) == got:
            return f"these look like {entry.name} weights: --model {entry.name}"
    return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
