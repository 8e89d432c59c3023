"""The estimator: scikit-learn's contract, skorch's steps, the best epoch, exact resuming.

skorch's own callbacks cannot do the latter two: ``LRScheduler`` makes a new scheduler when training
starts and saves none; ``EarlyStopping`` raises ``KeyboardInterrupt``, which here means that the
user interrupted, and saves no state either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNetClassifier
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader

from featpipe.errors import FitError, UsageError
from featpipe.finetuning.network import HeadedNetwork, HeadLoss, Rows, start_from_probe
from featpipe.finetuning.rows import RowBatches, hold_out
from featpipe.finetuning.saved import read_checkpoint, write_checkpoint
from featpipe.finetuning.step import CROSS_ENTROPY, parse
from featpipe.progress import SILENT, Progress

RECORDED = (
    *("epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy"),
    *("lr", "seconds", "images_per_s"),
)
# Where skorch's own defaults differ.
_DEFAULTS: dict[str, Any] = {
    "criterion": HeadLoss,
    "optimizer": torch.optim.Adam,
    "predict_nonlinearity": partial(torch.softmax, dim=1, dtype=torch.float32),
    "train_split": None,
    "verbose": 0,
}


def derived_seed(*numbers: int) -> int:
    """Return a seed for torch: the same for the same numbers, different for any others.

    Everything random in an epoch (order of rows, augmentation, dropout) follows from the run's seed
    and the epoch's number, so resuming needs no saved generator state.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_schedule(spec: str, optimizer: Optimizer, epochs: int, batches: int) -> Any:
    """Return torch's scheduler for ``"multistep:80,120"``, ``"cosine"`` and so on.

    It is made for ``epochs`` of ``batches`` each, and stepped after every epoch; a one-cycle
    schedule after every batch.
    """
    name, numbers = parse("schedule", spec)
    if name == "cosine":  # Loshchilov and Hutter 2016, without restarts
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    if name == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=int(numbers[0]))
    if name == "onecycle":
        rate, steps = optimizer.param_groups[0]["lr"], epochs * batches
        # Momentum and betas stay as they were given.
        return lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    return lr_scheduler.MultiStepLR(optimizer, [int(n) for n in numbers], gamma=0.1)


class HeadClassifier(NeuralNetClassifier):
    """A network with a new head, trained on stored activations or on images.

    ``fit``, ``predict``, ``predict_proba`` and ``clone`` as scikit-learn has them; labels are
    indices into the classes. Everything random follows from ``seed``.

    Parameters
    ----------
    losses, schedule : tuple of str, str
        See :class:`featpipe.finetuning.network.HeadLoss` and :func:`make_schedule`.
    validation : float
        Share of the training rows that chooses the epoch; 0: the last epoch is taken.
    patience : int or None
        Stop after this many epochs without improvement.
    stop_after : int or None
        Train only this many of the ``max_epochs`` that the schedule is made for.
    augment : callable or None
        Changes a batch of uint8 training images at random.
    shuffle : bool
    precision : {"float32", "mixed"}
        ``"mixed"``: bfloat16 where torch's autocast allows it.
    head_init : {"random", "probe"}
        How the last layer is initialised; see
        :func:`featpipe.finetuning.network.start_from_probe`.
    probe_c : float or None
        Regularisation of that probe; ``None``: chosen on validation rows.
    gradient_flow : bool
        Whether the history holds the gradients of every layer.
    seed : int
    checkpoint : Path or None
        Written after every epoch; an existing one is continued if it is of the same ``run``, a
        fingerprint of the training.
    progress, label : Progress, str
        Where epochs are reported, and under which name.
    **settings
        Those of :class:`skorch.NeuralNetClassifier`: ``lr``, ``max_epochs``, ``batch_size``,
        ``optimizer``, ``optimizer__momentum``, ``device`` …; with ``module__`` in front, those of
        :class:`featpipe.finetuning.network.HeadedNetwork`.

    Attributes
    ----------
    probe_c_ : float or None
        Regularisation of the probe that the head started from.
    """

    module_: HeadedNetwork

    def __init__(  # noqa: PLR0913 - an estimator takes each of its settings by name
        self,
        module: Callable[..., HeadedNetwork] = HeadedNetwork,
        *,
        losses: Sequence[str] = (CROSS_ENTROPY,),
        schedule: str = "none",
        validation: float = 0.1,
        patience: int | None = None,
        stop_after: int | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        shuffle: bool = True,
        precision: str = "float32",
        head_init: str = "random",
        probe_c: float | None = None,
        gradient_flow: bool = False,
        seed: int = 0,
        checkpoint: Path | None = None,
        run: str = "",
        progress: Progress = SILENT,
        label: str = "training",
        **settings: Any,
    ) -> None:
        self.losses, self.schedule, self.validation = losses, schedule, validation
        self.patience, self.stop_after, self.augment = patience, stop_after, augment
        self.shuffle, self.precision, self.head_init = shuffle, precision, head_init
        self.probe_c, self.gradient_flow, self.seed = probe_c, gradient_flow, seed
        self.checkpoint, self.run, self.progress, self.label = checkpoint, run, progress, label
        super().__init__(module, **{**_DEFAULTS, **settings})

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return []

    @property
    def epochs_(self) -> list[dict[str, Any]]:
        """One line per epoch: losses, accuracies, learning rate, seconds, images per second."""
        return [{name: epoch.get(name) for name in RECORDED} for epoch in self.history]

    @property
    def gradient_flow_(self) -> list[list[dict[str, Any]]]:
        """Mean and maximum absolute gradient of each layer: one list per epoch."""
        return [epoch["gradient_flow"] for epoch in self.history if "gradient_flow" in epoch]

    @property
    def best_epoch_(self) -> int:
        """Number of the epoch whose weights are kept: the best on validation rows, or the last."""
        return self.best_["epoch"] or len(self.history)

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels of the columns of ``predict_proba``."""
        return np.arange(self.module_.head.classifier.out_features)

    def initialize_module(self) -> HeadClassifier:
        """Make the network, channels-last: convolutions on CPUs and GPUs are faster then."""
        super().initialize_module()
        self.module_ = self.module_.to(memory_format=torch.channels_last)
        return self

    def initialize_criterion(self) -> HeadClassifier:
        """Make the loss for the classes and features of the head."""
        last = self.module_.head.classifier
        self.criterion_ = self.criterion(self.losses, last.out_features, last.in_features)
        return self

    def get_dataset(self, X: Any, y: Any = None) -> RowBatches:
        """Return rows as batches."""
        if isinstance(X, RowBatches):
            return X
        labels = np.zeros(len(X), np.int64) if y is None else np.asarray(y, np.int64)
        return RowBatches(X, labels, np.arange(len(X)))

    def get_iterator(self, dataset: RowBatches, training: bool = False) -> Any:
        """Return batches; the order follows from torch's generator."""
        size = self.batch_size
        # Batch norm cannot learn from a single row, nor triplets from a few leftover rows.
        triplets = any(parse("loss", spec)[0] == "triplet" for spec in self.losses)
        incomplete = triplets or len(dataset) % size == 1
        return DataLoader(
            replace(dataset, augment=self.augment if training else None),
            batch_size=size,
            shuffle=training and self.shuffle,
            drop_last=training and incomplete and 1 < size < len(dataset),
            collate_fn=tuple,  # the rows have put a whole batch together
        )

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> HeadClassifier:
        """Train up to the last epoch, from the checkpoint if there is one; take the best weights.

        Unlike in skorch, an interruption by the user is not treated as the end of the training.
        The errors are those of :meth:`split_rows`, and ``FitError`` if the training diverges.
        """
        if not self.initialized_:
            self.initialize()
        gpus = range(torch.cuda.device_count()) if str(self.device).startswith("cuda") else ()
        with torch.random.fork_rng(devices=gpus):
            self.notify("on_train_begin", X=X, y=y)
            self._train(X, y)
            self.notify("on_train_end", X=X, y=y)
        return self

    def _train(self, X: Any, y: Any) -> None:
        train, valid = self.split_rows(self.get_dataset(X, y))
        batches = self.get_iterator(train, training=True)
        steps = self.max_epochs, len(batches)
        self.schedule_ = make_schedule(self.schedule, self.optimizer_, *steps)
        self.best_: dict[str, Any] = {"epoch": None, "score": [-math.inf, -math.inf], "state": {}}
        self.probe_c_: float | None = None
        if not self._resume() and self.head_init == "probe":
            choose = None if valid is None or self.probe_c is not None else self._features(valid)
            last = self.module_.head.classifier
            self.probe_c_ = start_from_probe(last, self._features(train), choose, self.probe_c)
        last_epoch = min(self.max_epochs, self.stop_after or self.max_epochs)
        with self.progress.task(self.label, last_epoch, len(self.history)) as task:
            for epoch in range(len(self.history) + 1, last_epoch + 1):
                best = self.best_["epoch"]
                if self.patience and best and epoch - 1 - best >= self.patience:
                    break
                torch.manual_seed(derived_seed(self.seed, epoch))
                self._train_epoch(batches, valid)
                line = self.history[-1]
                checked = "" if valid is None else f" (validation {line['valid_accuracy']:.3f})"
                task.advance(
                    loss=f"loss {line['train_loss']:.4f}",
                    accuracy=f"accuracy {line['train_accuracy']:.3f}{checked}",
                    lr=f"lr {line['lr']:.1e}",
                    rate=f"{line['images_per_s']:.0f} images/s",
                )
                if self.checkpoint is not None:
                    state = {name: one.state_dict() for name, one in self._stateful.items()}
                    state |= {"module": self.module_.trained_state()}
                    state |= {"best": self.best_, "probe_c": self.probe_c_}
                    lines = [{k: e[k] for k in e if k != "batches"} for e in self.history]
                    write_checkpoint(self.checkpoint, self.run, state, lines)
        if self.best_["epoch"] is not None:
            self.module_.load_trained_state(self.best_["state"])

    def _train_epoch(self, batches: DataLoader[Any], valid: RowBatches | None) -> None:
        """Train once on all batches, write the epoch's line, and step the schedule."""
        rows = {"dataset_train": batches.dataset, "dataset_valid": valid}
        self.notify("on_epoch_begin", **rows)
        record, started = self.history.record, time.perf_counter()
        record("lr", float(self.optimizer_.param_groups[0]["lr"]))
        self.gradients_: dict[str, list[Tensor]] = {}
        loss = self._run_batches("train", batches, self.train_step)
        if valid is not None:
            loss = self._run_batches("valid", self.get_iterator(valid), self.validation_step)
        else:  # no loss says whether the last step broke the network
            logits, _ = self.evaluation_step(next(iter(batches)), training=False)
            if not torch.isfinite(logits).all():
                raise self._divergence("its outputs are not finite")
        record("seconds", round(time.perf_counter() - started, 4))
        if self.gradient_flow:
            flow = [
                {"layer": layer, "mean": float(total) / len(batches), "max": float(largest)}
                for layer, (total, largest) in self.gradients_.items()
            ]
            record("gradient_flow", flow)
        line = self.history[-1]
        score = [line.get("valid_accuracy"), -loss]  # of equals, the lowest loss
        if valid is not None and score > self.best_["score"]:
            state = self.module_.trained_state().items()
            copied = {name: value.detach().cpu().clone() for name, value in state}
            self.best_ = {"epoch": line["epoch"], "score": score, "state": copied}
        if isinstance(self.schedule_, lr_scheduler.ReduceLROnPlateau):
            self.schedule_.step(loss)
        elif not isinstance(self.schedule_, lr_scheduler.OneCycleLR):
            self.schedule_.step()
        self.notify("on_epoch_end", **rows)

    def _run_batches(self, part: str, batches: DataLoader[Any], step: Callable[..., Any]) -> float:
        """Record mean loss, accuracy and, in training, speed of batches; return the loss."""
        total, right, rows, training, started = 0.0, 0, 0, part == "train", time.perf_counter()
        for batch in batches:
            self.notify("on_batch_begin", batch=batch, training=training)
            done = step(batch)
            if training and isinstance(self.schedule_, lr_scheduler.OneCycleLR):
                self.schedule_.step()
            loss, labels = done["loss"].item(), batch[1]
            if not math.isfinite(loss):
                raise self._divergence(f"its loss is {loss}")
            total += loss * len(labels)
            right += int((done["y_pred"][0].argmax(dim=1).cpu() == labels).sum())
            rows += len(labels)
            self.notify("on_batch_end", batch=batch, training=training, **done)
        if training:
            rate = rows / max(time.perf_counter() - started, 1e-9)
            self.history.record("images_per_s", round(rate, 1))
        self.history.record(f"{part}_loss", total / rows)
        self.history.record(f"{part}_accuracy", right / rows)
        return total / rows

    def split_rows(self, rows: RowBatches) -> tuple[RowBatches, RowBatches | None]:
        """Return the rows that train and those that choose the epoch; nothing is computed.

        ``FitError`` if the rows have a single class, or one that the head does not have, or are too
        few to hold some out; ``UsageError`` if the learning rate is not above zero, or a batch is
        larger than the training rows.
        """
        train, valid = rows, None
        if self.validation:
            train, valid = hold_out(rows, self.validation, self.seed)
        labels, n_classes = train.labels, self.module__n_classes
        if labels.min() < 0 or labels.max() >= n_classes:
            what = "The head has another number of classes than the rows."
            expected = f"labels from 0 to {n_classes - 1}"
            raise FitError(what, expected=expected, got=f"{labels.min()} to {labels.max()}")
        if len(np.unique(labels)) < 2:
            what = "A head needs training rows of at least two classes."
            raise FitError(what, got=f"class {labels[0]} only")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError("The learning rate must be above zero.", got=self.lr)
        if not 1 <= self.batch_size <= len(labels):
            what = "The batch is larger than the training rows."
            expected = f"--batch-size up to {len(labels)}"
            raise UsageError(what, expected=expected, got=self.batch_size)
        return train, valid

    def _features(self, rows: RowBatches) -> Rows:
        """Return what the last layer sees of rows, and their labels."""
        batches = [self.evaluation_step(batch)[1] for batch in self.get_iterator(rows)]
        return torch.cat(batches).float().cpu().numpy(), rows.labels

    @property
    def _stateful(self) -> dict[str, Any]:
        names = ("criterion", "optimizer", "schedule")
        return {name: getattr(self, f"{name}_") for name in names}

    def _resume(self) -> bool:
        """Load the state of an interrupted training; return whether there is one."""
        found = read_checkpoint(self.checkpoint, self.run) if self.checkpoint else None
        if found is None:
            return False
        state, lines = found
        self.module_.load_trained_state(state["module"])
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])
        self.best_, self.probe_c_ = state["best"], state["probe_c"]
        self.history.extend(lines)
        return True

    def _divergence(self, sign: str) -> FitError:
        done = len(self.history) - 1
        what = f"The training diverged in epoch {done + 1}: {sign}."
        kept = f"the state after epoch {done} is kept: {self.checkpoint}"
        where = kept if done and self.checkpoint else None
        advice = "lower --lr" + ", or --precision float32" * (self.precision == "mixed")
        got = f"learning rate {self.history[-1, 'lr']:g}"
        return FitError(what, where=where, got=got, next_step=advice)

    def on_grad_computed(self, net: Any, named_parameters: Any, *args: Any, **_: Any) -> None:
        """Add mean and maximum of the gradients of one batch."""
        for name, parameter in named_parameters if self.gradient_flow else ():
            if parameter.grad is not None and name.endswith("weight"):
                size = parameter.grad.detach().abs()
                layer = name.removesuffix(".weight").removeprefix("body.")
                total, largest = self.gradients_.get(layer, [torch.zeros(()), torch.zeros(())])
                largest = torch.maximum(largest, size.max().cpu())
                self.gradients_[layer] = [total + size.mean().cpu(), largest]

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the network on one batch."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "mixed"):
            return super().infer(x, **fit_params)
