"""What is written down while training, and what is made of it."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from featpipe.errors import FitError
from featpipe.progress import SILENT, Progress

RECORDED = (
    *("epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy"),
    *("lr", "seconds", "images_per_s"),
)


class EpochRecord(Callback):
    """Writes loss, accuracy, learning rate and speed of every epoch into the history.

    Raises
    ------
    FitError
        As soon as a loss is not finite: nothing good comes after it.
    """

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Begin to count."""
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
            raise diverged(net, f"its loss is {loss}")
        labels = batch[1]
        sums = self.sums_["train" if training else "valid"]
        right = step["y_pred"][0].argmax(dim=1).cpu() == labels
        sums["loss"] += loss * len(labels)
        sums["right"] += int(right.sum())
        sums["rows"] += len(labels)
        if training:
            self.trained_ = time.perf_counter()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Write the epoch's line."""
        for part, sums in self.sums_.items():
            rows = sums["rows"]
            net.history.record(f"{part}_loss", sums["loss"] / rows if rows else None)
            net.history.record(f"{part}_accuracy", sums["right"] / rows if rows else None)
        now = time.perf_counter()
        rate = self.sums_["train"]["rows"] / max(self.trained_ - self.started_, 1e-9)
        net.history.record("seconds", round(now - self.started_, 4))
        net.history.record("images_per_s", round(rate, 1))


def diverged(net: Any, sign: str) -> FitError:
    """Return the error of a training that can come to nothing good any more."""
    done = len(net.history) - 1
    kept = f"the state after epoch {done} is kept: {net.checkpoint}" if net.checkpoint else None
    return FitError(
        f"The training diverged in epoch {done + 1}: {sign}.",
        where=kept if done else None,
        got=f"learning rate {net.history[-1, 'lr']:g}",
        next_step="lower --lr" + (", or --precision float32" * (net.precision == "mixed")),
    )


class GradientFlow(Callback):
    """Writes mean and maximum absolute gradient of every layer and epoch into the history.

    Layers whose mean gradient vanishes do not learn; maxima that grow announce divergence.
    """

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        """Begin to count."""
        self.sums_: dict[str, list[Tensor]] = {}
        self.batches_ = 0

    def on_grad_computed(self, net: Any, named_parameters: Any, **_: Any) -> None:
        """Take down the gradients of one batch."""
        self.batches_ += 1
        for name, parameter in named_parameters:
            if parameter.grad is None or not name.endswith("weight"):
                continue
            size = parameter.grad.detach().abs()
            layer = name.removesuffix(".weight").removeprefix("body.")
            mean, largest = self.sums_.get(layer, (torch.zeros(()), torch.zeros(())))
            self.sums_[layer] = [
                mean + size.mean().cpu(),
                torch.maximum(largest, size.max().cpu()),
            ]

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
        self.epoch_: int | None = None
        self.score_ = (-math.inf, -math.inf)
        self.state_: dict[str, Tensor] = {}

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Compare the epoch with the best one so far."""
        last = net.history[-1]
        if last["valid_loss"] is None:
            return
        score = (last["valid_accuracy"], -last["valid_loss"])
        if score > self.score_:
            self.epoch_, self.score_ = last["epoch"], score
            state = net.module_.trained_state()
            self.state_ = {name: value.detach().cpu().clone() for name, value in state.items()}

    def exhausted(self, epoch: int) -> bool:
        """Return whether training should stop after an epoch."""
        if self.patience is None or self.epoch_ is None:
            return False
        return epoch - self.epoch_ >= self.patience

    def restore(self, net: Any) -> None:
        """Give the network the weights of its best epoch."""
        if self.epoch_ is not None:
            net.module_.load_trained_state(self.state_)

    def state(self) -> dict[str, Any]:
        """Return what must be saved to continue."""
        return {"epoch": self.epoch_, "score": list(self.score_), "state": self.state_}

    def load(self, saved: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.epoch_, self.state_ = saved["epoch"], saved["state"]
        self.score_ = tuple(saved["score"])


class EpochProgress(Callback):
    """Tells a :class:`featpipe.progress.Progress` of each epoch.

    Parameters
    ----------
    label : str
    progress : Progress
    """

    def __init__(self, label: str = "training", progress: Progress = SILENT) -> None:
        self.label = label
        self.progress = progress

    def __deepcopy__(self, memo: dict[int, Any]) -> EpochProgress:
        return EpochProgress(self.label, self.progress)  # a terminal cannot be copied

    def on_train_begin(self, net: Any, **_: Any) -> None:
        """Show the bar."""
        self.bar_ = self.progress.task(self.label, net.epochs_to_run, 0)
        self.task_ = self.bar_.__enter__()

    def continued(self, epochs: int) -> None:
        """Show that some epochs were done before."""
        self.task_.advance(epochs)

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Advance the bar."""
        last = net.history[-1]
        facts = {
            "loss": f"loss {last['train_loss']:.4f}",
            "accuracy": f"accuracy {last['train_accuracy']:.3f}",
            "lr": f"lr {last['lr']:.1e}",
            "rate": f"{last['images_per_s']:.0f} images/s",
        }
        if last["valid_accuracy"] is not None:
            facts["accuracy"] += f" (validation {last['valid_accuracy']:.3f})"
        self.task_.advance(**facts)

    def close(self) -> None:
        """Take the bar away."""
        self.bar_.__exit__(None, None, None)
