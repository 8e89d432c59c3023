"""The state of an unfinished training: written after every epoch, continued after a kill."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from featpipe.errors import FitError
from featpipe.workspace import atomic_write

if TYPE_CHECKING:
    from featpipe.finetune.classifier import HeadClassifier

_FORMAT = 1
# What reading a file raises that is cut off, or whole and something else.
_DAMAGE = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, KeyError, TypeError, IndexError),
)


def save_training(net: HeadClassifier) -> None:
    """Write down where a training stands, if it has a checkpoint."""
    if net.checkpoint is None:
        return
    state = {
        "module": net.module_.trained_state(),
        "criterion": net.criterion_.state_dict(),
        "optimizer": net.optimizer_.state_dict(),
        "schedule": net.schedule_.state(),
        "best": net.callback("best").state(),
        "probe_c": net.probe_c_,
    }
    lines = [{k: v for k, v in epoch.items() if k != "batches"} for epoch in net.history]
    write_checkpoint(net.checkpoint, net.run, state, lines)


def continue_training(net: HeadClassifier) -> bool:
    """Take up the state of an interrupted training; return whether there is one.

    Raises
    ------
    FitError
        If the checkpoint is damaged or belongs to another run.
    """
    found = read_checkpoint(net.checkpoint, net.run) if net.checkpoint else None
    if found is None:
        return False
    content, lines = found
    net.module_.load_trained_state(content["module"])
    net.criterion_.load_state_dict(content["criterion"])
    net.optimizer_.load_state_dict(content["optimizer"])
    net.schedule_.load(content["schedule"])
    net.callback("best").load(content["best"])
    net.probe_c_ = content["probe_c"]
    for line in lines:
        net.history.new_epoch()
        for name, value in line.items():
            net.history.record(name, value)
    net.callback("bar").continued(len(lines))
    return True


def write_checkpoint(path: Path, run: str, state: dict[str, Any], history: list[Any]) -> None:
    """Replace the checkpoint, atomically.

    Parameters
    ----------
    path : Path
    run : str
        Fingerprint of everything that the numbers of this training follow from.
    state : dict
        Tensors, numbers and texts in dicts and lists.
    history : list of dict
    """
    content = {"format": _FORMAT, "run": run, "history": json.dumps(history), **state}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(path: Path, run: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Return state and history of an unfinished training, or ``None`` where there is none.

    Raises
    ------
    FitError
        If the file is damaged or belongs to another run. Nothing in it is ever executed.
    """
    if not path.is_file():
        return None
    advice = f"to begin anew: rm {str(path)!r}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("no checkpoint of a training")
        found, form = content["run"], content["format"]
        history = json.loads(content["history"])
    except _DAMAGE as error:
        raise FitError(
            "The checkpoint is damaged.",
            where=path,
            got=str(error).partition("\n")[0][:120],
            next_step=advice,
        ) from None
    if found != run or form != _FORMAT:
        raise FitError(
            "The checkpoint belongs to another run.",
            where=path,
            expected=f"run {run[:12]}",
            got=f"run {str(found)[:12]}",
            next_step=advice,
        )
    return content, history
