"""What is kept of a training: its history, its best epoch, its state for the case of a kill.

skorch's own callbacks cannot do it: ``EarlyStopping`` ends a training by ``KeyboardInterrupt``,
which is the user's; its best epoch follows from one number only; none of them saves its state.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from featpipe.errors import FitError
from featpipe.workspace import atomic_write

RECORDED = (
    *("epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy"),
    *("lr", "seconds", "images_per_s"),
)

_FORMAT = 1
# What reading a file raises that is cut off, or whole and something else.
_DAMAGE = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, KeyError, TypeError, IndexError),
)


def divergence(net: Any, sign: str) -> FitError:
    """Return the error of a training that can come to nothing good any more."""
    done = len(net.history) - 1
    kept = f"the state after epoch {done} is kept: {net.checkpoint}" if net.checkpoint else None
    return FitError(
        f"The training diverged in epoch {done + 1}: {sign}.",
        where=kept if done else None,
        got=f"learning rate {net.history[-1, 'lr']:g}",
        next_step="lower --lr" + (", or --precision float32" * (net.precision == "mixed")),
    )


class EpochRecord(Callback):
    """Writes loss, accuracy, learning rate and speed of every epoch into the history.

    Raises
    ------
    FitError
        As soon as a loss is not finite: nothing good comes after it.
    """

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Start counting."""
        self.sums_: dict[str, dict[str, float]] = {
            part: defaultdict(float) for part in ("train", "valid")
        }
        self.started_ = time.perf_counter()
        net.history.record("lr", float(net.optimizer_.param_groups[0]["lr"]))

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool = False, **step: Any
    ) -> None:
        """Count one batch."""
        loss = float(step["loss"].detach())
        if not math.isfinite(loss):
            raise divergence(net, f"its loss is {loss}")
        labels = batch[1]
        sums = self.sums_["train" if training else "valid"]
        sums["loss"] += loss * len(labels)
        sums["right"] += int((step["y_pred"][0].argmax(dim=1).cpu() == labels).sum())
        sums["rows"] += len(labels)
        if training:
            self.trained_ = time.perf_counter()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Write the epoch's line."""
        for part, sums in self.sums_.items():
            rows = sums["rows"]
            net.history.record(f"{part}_loss", sums["loss"] / rows if rows else None)
            net.history.record(f"{part}_accuracy", sums["right"] / rows if rows else None)
        rate = self.sums_["train"]["rows"] / max(self.trained_ - self.started_, 1e-9)
        net.history.record("seconds", round(time.perf_counter() - self.started_, 4))
        net.history.record("images_per_s", round(rate, 1))


class GradientFlow(Callback):
    """Writes mean and maximum absolute gradient of every layer and epoch into the history.

    Layers whose mean gradient vanishes do not learn; maxima that grow announce divergence.
    """

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Start counting."""
        self.sums_: dict[str, tuple[Tensor, Tensor]] = {}
        self.batches_ = 0

    def on_grad_computed(self, net: Any, named_parameters: Any, **_: Any) -> None:
        """Add the gradients of one batch."""
        self.batches_ += 1
        for name, parameter in named_parameters:
            if parameter.grad is None or not name.endswith("weight"):
                continue
            size = parameter.grad.detach().abs()
            layer = name.removesuffix(".weight").removeprefix("body.")
            mean, largest = self.sums_.get(layer, (torch.zeros(()), torch.zeros(())))
            self.sums_[layer] = (
                mean + size.mean().cpu(),
                torch.maximum(largest, size.max().cpu()),
            )

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Write the epoch's gradients: the mean over batches, and the largest of all."""
        net.history.record(
            "gradient_flow",
            [
                {"layer": layer, "mean": float(mean) / self.batches_, "max": float(largest)}
                for layer, (mean, largest) in self.sums_.items()
            ],
        )


class BestEpoch(Callback):
    """Keeps the network of the epoch that did best on validation rows, and knows when to stop.

    The best epoch has the highest validation accuracy; of equals, the lowest validation loss.

    Parameters
    ----------
    patience : int or None
        Stop when so many epochs brought no better one.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Forget earlier trainings."""
        self.best_: dict[str, Any] = {"epoch": None, "score": [-math.inf, -math.inf], "state": {}}

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Compare the epoch with the best one so far."""
        last = net.history[-1]
        if last["valid_loss"] is None:
            return
        score = [last["valid_accuracy"], -last["valid_loss"]]
        if score > self.best_["score"]:
            state = net.module_.trained_state().items()
            copied = {name: value.detach().cpu().clone() for name, value in state}
            self.best_ = {"epoch": last["epoch"], "score": score, "state": copied}

    def exhausted(self, epoch: int) -> bool:
        """Return whether training should stop after an epoch."""
        best = self.best_["epoch"]
        return None not in (self.patience, best) and epoch - best >= self.patience


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
    advice = f"to start again: rm {str(path)!r}"
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
