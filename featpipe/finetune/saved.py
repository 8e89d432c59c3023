"""Training on the disk: trained heads as safetensors and JSON, checkpoints of unfinished ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from featpipe.errors import FitError, ResultError, WeightsError
from featpipe.finetune.nets import Trunk, load_trunk
from featpipe.finetune.network import HeadedNetwork, cut_of
from featpipe.workspace import atomic_write

_FORMAT = 2  # of heads and of checkpoints; 1 is that of featpipe 0.1


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A trained network in evaluation mode; the trunk's preprocessing prepares images for it."""

    network: HeadedNetwork
    trunk: Trunk
    classes: tuple[str, ...]

    def predict_proba(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Return probabilities (n, classes) of prepared images (n, 3, S, S), uint8."""
        with torch.inference_mode():
            logits, _ = self.network(images.to(self.trunk.device))
            return logits.float().softmax(dim=1).cpu().numpy()


def save_head(path: Path, network: HeadedNetwork, about: dict[str, Any]) -> int:
    """Write ``path`` (safetensors) and its JSON; return their size in bytes.

    Only what was trained is written: the frozen stages are those of the weights. ``about`` has
    ``trunk`` (its description), ``request`` (options of ``load_trunk``), ``unfreeze``, ``head``,
    ``classes`` and ``title``.
    """
    state = {n: value.detach().cpu().contiguous() for n, value in network.trained_state().items()}
    with atomic_write(path) as temporary:
        save_file(state, temporary)
    beside = path.with_suffix(".json")
    text = json.dumps({"featpipe_head": _FORMAT, **about}, indent=1, ensure_ascii=False)
    with atomic_write(beside) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return path.stat().st_size + beside.stat().st_size


def load_head(
    path: Path,
    *,
    weights: str | None = None,
    device: str = "auto",
) -> TrainedHead:
    """Read a trained head and put it on its network.

    ``weights`` is where the weights of the frozen stages are now, by default where they were at
    training.

    Raises
    ------
    ResultError
        If a file is missing, damaged or of featpipe 0.1.
    WeightsError
        If the weights are not those the head was trained on.
    """
    beside = path.with_suffix(".json")
    try:
        content = json.loads(beside.read_text("utf-8"))
        form = content.get("featpipe_head") if isinstance(content, dict) else None
        if form not in (1, _FORMAT):
            raise ValueError("it is not a head of this version of featpipe")
    except (OSError, ValueError) as error:
        raise _unreadable(beside, error) from None
    if form == 1:
        raise ResultError(
            "This head was written by featpipe 0.1.",
            where=path,
            next_step="train it again, then delete this file and the .json beside it",
        )
    classes = tuple(content["classes"])
    moved = {"device": device} | ({} if weights is None else {"weights": weights})
    trunk = load_trunk(**{**content["request"], **moved})
    if trunk.description != content["trunk"]:
        raise WeightsError(
            "These are not the weights that the head was trained on.",
            where=path,
            expected=content["trunk"]["weights"],
            got=trunk.description["weights"],
            next_step="name the right ones: --weights FILE",
        )
    cut = cut_of(trunk.stages, content["unfreeze"])
    network = HeadedNetwork(trunk, cut, content["head"], len(classes), from_store=False)
    try:
        network.load_trained_state(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    return TrainedHead(network.eval().to(trunk.device), trunk, classes)


def _unreadable(path: Path, error: Exception) -> ResultError:
    advice = "train it again: the same command with --force"
    return ResultError(f"The head cannot be read: {error}", where=path, next_step=advice)


def write_checkpoint(path: Path, run: str, state: dict[str, Any], history: list[Any]) -> None:
    """Replace the checkpoint, atomically.

    ``run`` is the fingerprint of everything that the numbers of this training follow from;
    ``state`` has tensors, numbers and texts in dicts and lists.
    """
    content = {"format": _FORMAT, "run": run, "history": json.dumps(history), **state}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(path: Path, run: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Return state and history of an unfinished training, or ``None`` where there is none.

    A damaged file and one of another run are refused; nothing in it is ever executed.
    """
    if not path.is_file():
        return None
    advice = f"to start again: rm {str(path)!r}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("no checkpoint of a training")
        found, form = content["run"], content["format"]
        history = json.loads(content["history"])
    except Exception as error:  # torch has no exception type for damaged files
        reason = str(error).partition("\n")[0][:120]
        what = "The checkpoint is damaged."
        raise FitError(what, where=path, got=reason, next_step=advice) from None
    if found != run or form != _FORMAT:
        raise FitError(
            "The checkpoint belongs to another run.",
            where=path,
            expected=f"run {run[:12]}",
            got=f"run {str(found)[:12]}",
            next_step=advice,
        )
    return content, history
