"""Files of fine-tuning: trained heads (safetensors and JSON), checkpoints of unfinished ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from featpipe import fingerprint
from featpipe.backbones import fit_of_identity
from featpipe.backbones.architecture import digest_of
from featpipe.errors import FeatpipeError, FitError, ResultError, WeightsError
from featpipe.files import read_json
from featpipe.finetuning.nets import Trunk, load_trunk
from featpipe.finetuning.network import HeadedNetwork
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
    ``trunk`` (its description), ``request`` (options of ``load_trunk``), ``unfreeze``, ``head`` and
    ``classes``. The JSON holds the digest of ``path`` and its own, the header of ``path`` that of
    the tensors.
    """
    state = {n: value.detach().cpu().contiguous() for n, value in network.trained_state().items()}
    content = save(state, {"featpipe": digest_of(state)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    about = {"featpipe_head": _FORMAT, **about, "sha256": fingerprint.of_bytes(content)}
    with atomic_write(beside := path.with_suffix(".json")) as temporary:
        temporary.write_text(fingerprint.sealed_json(about), "utf-8")
    return path.stat().st_size + beside.stat().st_size


def load_head(path: Path, *, weights: str | None = None, device: str = "auto") -> TrainedHead:
    """Read a trained head and attach it to its network.

    ``weights`` is where the weights of the frozen stages are now, by default where they were during
    training. ``ResultError`` if a file is missing, damaged or of featpipe 0.1, ``WeightsError`` if
    the weights are not those the head was trained on.
    """
    read = beside = path.with_suffix(".json")
    try:
        content = read_json(beside)
        form = content.get("featpipe_head") if isinstance(content, dict) else None
        if form == 1:
            advice = "train it again, then delete this file and the .json beside it"
            what = "This head was written by featpipe 0.1."
            raise ResultError(what, where=path, next_step=advice)
        if form != _FORMAT:
            raise ValueError("it is not a head of this version of featpipe")
        content, read = fingerprint.unsealed(content), path
        if fingerprint.of_file(path) != content.get("sha256"):
            raise ValueError("it is not the file that the .json beside it names")
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("featpipe") != digest_of(state):
                raise ValueError("its tensors are not those that its header was written for")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(read, error) from None
    try:
        classes, asked = tuple(content["classes"]), content["request"]
        asked |= {"device": device, "fit": fit_of_identity(asked.get("fit", "crop"))}
        asked |= {} if weights is None else {"weights": weights}
        trunk = load_trunk(**asked)
        if trunk.description != content["trunk"]:
            what = "These are not the weights that the head was trained on."
            expected, got = content["trunk"]["weights"], trunk.description["weights"]
            advice = "name the right ones: --weights FILE"
            raise WeightsError(what, where=path, expected=expected, got=got, next_step=advice)
        unfreeze, head = content["unfreeze"], content["head"]
        network = HeadedNetwork(trunk, unfreeze, head, len(classes), from_store=False)
        network.load_trained_state(state)
    except FeatpipeError:
        raise
    except Exception as error:  # whatever unexpected names and types lead to
        raise _unreadable(beside, f"{type(error).__name__}: {error}") from error
    return TrainedHead(network.eval().to(trunk.device), trunk, classes)


def _unreadable(path: Path, error: object) -> ResultError:
    advice = "train it again: the same command with --force"
    return ResultError(f"The head cannot be read: {error}", where=path, next_step=advice)


def write_checkpoint(path: Path, run: str, state: dict[str, Any], history: list[Any]) -> None:
    """Replace the checkpoint, atomically; ``run`` is the fingerprint of the training."""
    content = {"format": _FORMAT, "run": run, "history": json.dumps(history), **state}
    with atomic_write(path) as temporary:
        with temporary.open("wb") as stream:  # unlike torch's own, its errors say why writing fails
            torch.save(content, stream)
        fingerprint.seal_archive(temporary)


def read_checkpoint(path: Path, run: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Return state and history of an unfinished training, or ``None`` where there is none.

    A damaged or changed file, and one of another run, is refused; nothing in it is executed.
    """
    if not path.is_file():
        return None
    advice = f"to start again: rm {str(path)!r}"
    try:
        fingerprint.check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("no checkpoint of a training")
        found, history = (content["run"], content["format"]), json.loads(content["history"])
    except Exception as error:  # torch has no exception type for damaged files
        what, got = "The checkpoint is damaged.", str(error).partition("\n")[0][:120]
        raise FitError(what, where=path, got=got, next_step=advice) from None
    if found != (run, _FORMAT):
        what, runs = "The checkpoint belongs to another run.", (run[:12], str(found[0])[:12])
        raise FitError(what, where=path, expected=runs[0], got=runs[1], next_step=advice)
    return content, history
