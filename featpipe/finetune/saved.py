"""Trained heads on the disk: tensors as safetensors, everything else as JSON beside them."""

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

from featpipe.errors import ResultError, WeightsError
from featpipe.finetune.network import HeadedNetwork, Trunk, cut_of, load_trunk
from featpipe.workspace import atomic_write

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A trained network with what is needed to use it on new images.

    Parameters
    ----------
    network : HeadedNetwork
        From uint8 images to logits; in evaluation mode.
    trunk : Trunk
        What it started from; its preprocessing prepares images.
    classes : tuple of str
    title : str
    """

    network: HeadedNetwork
    trunk: Trunk
    classes: tuple[str, ...]
    title: str

    def predict_proba(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Return probabilities (n, classes) of prepared images (n, 3, S, S), uint8."""
        with torch.inference_mode():
            logits, _ = self.network(images.to(self.trunk.device))
            return logits.float().softmax(dim=1).cpu().numpy()


def save_head(path: Path, network: HeadedNetwork, about: dict[str, Any]) -> int:
    """Write ``path`` (safetensors) and the JSON beside it; return their size in bytes.

    Parameters
    ----------
    path : Path
    network : HeadedNetwork
        Only what was trained is written; the frozen stages are those of the weights.
    about : dict
        ``trunk`` (its description), ``request`` (options of ``load_trunk``), ``unfreeze``,
        ``head``, ``classes``, ``title``.
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
    classes: tuple[str, ...] | None = None,
) -> TrainedHead:
    """Read a trained head and put it on its network.

    Parameters
    ----------
    path : Path
        The safetensors file.
    weights : str, optional
        Where the weights of the frozen stages are now; default: where they were at training.
    device : str
    classes : tuple of str, optional
        The classes that the head must know.

    Raises
    ------
    ResultError
        If a file is missing or damaged, or the head knows other classes.
    WeightsError
        If the weights are not those the head was trained on.
    """
    beside = path.with_suffix(".json")
    try:
        content = json.loads(beside.read_text("utf-8"))
    except FileNotFoundError:
        raise ResultError(
            "There is no such head.", where=beside, next_step="featpipe finetune --help"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultError(f"The head cannot be read: {error}", where=beside) from None
    if not isinstance(content, dict) or content.get("featpipe_head") != _FORMAT:
        raise ResultError("This is not a head of this version of featpipe.", where=beside)
    known = tuple(content["classes"])
    if classes is not None and classes != known:
        raise ResultError(
            "The head was trained for other classes.",
            where=path,
            expected=f"{len(classes)} classes: {', '.join(classes[:5])}",
            got=f"{len(known)} classes: {', '.join(known[:5])}",
        )
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
    network = HeadedNetwork(trunk, cut, content["head"], len(known), from_store=False)
    try:
        network.load_trained_state(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ResultError(
            f"The head cannot be read: {error}",
            where=path,
            next_step="train it again: the same command with --force",
        ) from None
    return TrainedHead(network.eval().to(trunk.device), trunk, known, content["title"])
