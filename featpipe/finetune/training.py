"""The estimator: scikit-learn's contract, skorch's loop, checkpoints and an honest best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNetClassifier
from torch import Tensor
from torch.utils.data import DataLoader

from featpipe.errors import FitError, UsageError
from featpipe.finetune import grammar
from featpipe.finetune.callbacks import (
    RECORDED,
    BestEpoch,
    EpochRecord,
    GradientFlow,
    divergence,
    read_checkpoint,
    write_checkpoint,
)
from featpipe.finetune.losses import HeadLoss
from featpipe.finetune.network import HeadedNetwork
from featpipe.finetune.probe_start import best_probe, set_last_layer
from featpipe.finetune.rows import RowBatches, hold_out
from featpipe.finetune.schedules import Schedule
from featpipe.progress import SILENT, Progress


def derived_seed(*numbers: int) -> int:
    """Return a seed for torch that is the same for the same numbers, and unlike all others.

    Everything random in an epoch (order of rows, augmentation, dropout) follows from the seed
    derived from the run's seed and the epoch's number. A continued run therefore needs no
    saved generator state to go on exactly as it would have.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class HeadClassifier(NeuralNetClassifier):
    """A network with a new head, trained on stored activations or on images.

    ``fit``, ``predict``, ``predict_proba`` and ``clone`` as scikit-learn has them; labels are
    indices into the classes. Everything random follows from ``seed``.

    Parameters
    ----------
    losses : tuple of str
        See :class:`featpipe.finetune.losses.HeadLoss`.
    label_smoothing : float
    schedule : str
        See :class:`featpipe.finetune.schedules.Schedule`.
    validation : float
        Share of the training rows that chooses the epoch; 0: the last epoch is taken.
    patience : int or None
        Stop when so many epochs brought no better one.
    stop_after : int or None
        Train so many of the ``max_epochs`` that the schedule is made for.
    augment : callable or None
        Changes a batch of uint8 training images at random.
    shuffle : bool
    precision : {"float32", "mixed"}
        ``"mixed"``: bfloat16 where torch's autocast allows it.
    head_init : {"random", "probe"}
        Where the last layer starts; see :mod:`featpipe.finetune.probe_start`.
    probe_c : float or None
        Regularisation of that probe; ``None``: chosen on validation rows.
    gradient_flow : bool
        Whether the history holds the gradients of every layer.
    seed : int
    checkpoint : Path or None
        Written after every epoch; an existing one is continued.
    run : str
        Fingerprint of the training, so that no other one is continued.
    progress : Progress
    label : str
        Name of the training in the progress bar.
    **settings
        Those of :class:`skorch.NeuralNetClassifier`: ``lr``, ``max_epochs``, ``batch_size``,
        ``optimizer``, ``optimizer__momentum``, ``device`` …; ``module__trunk``, ``module__cut``
        and the like are those of :class:`featpipe.finetune.network.HeadedNetwork`.

    Attributes
    ----------
    epochs_ : list of dict
        One line per epoch: losses, accuracies, learning rate, seconds, images per second.
    best_epoch_ : int
        The epoch whose weights the network has.
    probe_c_ : float or None
        Regularisation of the probe that the head started from.
    """

    module_: HeadedNetwork

    def __init__(  # noqa: PLR0913 - an estimator takes each of its settings by name
        self,
        module: Callable[..., HeadedNetwork] = HeadedNetwork,
        *,
        losses: Sequence[str] = (grammar.CROSS_ENTROPY,),
        label_smoothing: float = 0.0,
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
        self.losses = losses
        self.label_smoothing = label_smoothing
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.stop_after = stop_after
        self.augment = augment
        self.shuffle = shuffle
        self.precision = precision
        self.head_init = head_init
        self.probe_c = probe_c
        self.gradient_flow = gradient_flow
        self.seed = seed
        self.checkpoint = checkpoint
        self.run = run
        self.progress = progress
        self.label = label
        fixed = {"criterion": HeadLoss, "train_split": None, "verbose": 0}
        super().__init__(module, **{**fixed, "optimizer": torch.optim.Adam, **settings})

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        flow = [("gradient_flow", GradientFlow())] if self.gradient_flow else []
        return [("record", EpochRecord()), *flow, ("best", BestEpoch(self.patience))]

    @property
    def epochs_(self) -> list[dict[str, Any]]:
        """One line per epoch."""
        return [{name: epoch[name] for name in RECORDED} for epoch in self.history]

    @property
    def gradient_flow_(self) -> list[list[dict[str, Any]]]:
        """Mean and maximum absolute gradient of each layer: one list per epoch."""
        return [epoch["gradient_flow"] for epoch in self.history if "gradient_flow" in epoch]

    @property
    def best_epoch_(self) -> int:
        """The epoch whose weights the network has: the best on validation rows, or the last."""
        return self._best.best_["epoch"] or len(self.history)

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels that the columns of ``predict_proba`` stand for."""
        return np.arange(self.module_.head.classifier.out_features)

    @property
    def _best(self) -> BestEpoch:
        best: BestEpoch = dict(self.callbacks_)["best"]
        return best

    def initialize_module(self) -> HeadClassifier:
        """Make the network; convolutions on the CPU and on GPUs are faster channels-last."""
        super().initialize_module()
        self.module_ = self.module_.to(memory_format=torch.channels_last)
        return self

    def initialize_criterion(self) -> HeadClassifier:
        """Make the loss for the head's numbers of classes and features."""
        last = self.module_.head.classifier
        self.criterion_ = self.criterion(
            self.losses, self.label_smoothing, last.out_features, last.in_features
        )
        return self

    def get_dataset(self, X: Any, y: Any = None) -> RowBatches:
        """Return rows as batches."""
        if isinstance(X, RowBatches):
            return X
        labels = np.zeros(len(X), np.int64) if y is None else np.asarray(y, np.int64)
        return RowBatches(X, labels, np.arange(len(X)), self.augment)

    def get_split_datasets(
        self, X: Any, y: Any = None, **fit_params: Any
    ) -> tuple[RowBatches, RowBatches | None]:
        """Return the rows that train and the rows that choose the epoch."""
        rows = self.get_dataset(X, y)
        return hold_out(rows, self.validation, self.seed) if self.validation else (rows, None)

    def get_iterator(self, dataset: RowBatches, training: bool = False) -> Any:
        """Return batches; the order follows from torch's generator."""
        size = self.batch_size
        # Batch norm cannot learn from a single row, nor triplets from a rest of few.
        triplets = any(grammar.loss(spec)[0] == "triplet" for spec in self.losses)
        return DataLoader(
            replace(dataset, training=training),
            batch_size=size,
            shuffle=training and self.shuffle,
            drop_last=training
            and (triplets or len(dataset) % size == 1)
            and 1 < size < len(dataset),
            collate_fn=_collated,
        )

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> HeadClassifier:
        """Train up to the last epoch, from where the training has arrived.

        Unlike skorch's, an interruption by the user is not taken for the end of the training.
        """
        if not self.initialized_:
            self.initialize()
        gpus = range(torch.cuda.device_count()) if str(self.device).startswith("cuda") else ()
        with torch.random.fork_rng(devices=gpus):
            self.notify("on_train_begin", X=X, y=y)
            self.fit_loop(X, y)
            self.notify("on_train_end", X=X, y=y)
        return self

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> HeadClassifier:
        """Train epoch by epoch; take the weights of the best one at the end.

        Raises
        ------
        FitError
            If the rows have a single class or one that the head does not have, or the training
            diverges.
        UsageError
            If the learning rate is not above zero, or a batch is larger than all rows.
        """
        train, valid = self.get_split_datasets(X, y)
        self._check(train.labels)
        batches = self.get_iterator(train, training=True)
        validation = None if valid is None else self.get_iterator(valid)
        self.schedule_ = Schedule(self.schedule, self.optimizer_, self.max_epochs, len(batches))
        self.probe_c_: float | None = None
        if not self._resume() and self.head_init == "probe":
            self._start_from_probe(train, valid)
        best, last_epoch = self._best, min(self.max_epochs, self.stop_after or self.max_epochs)
        with self.progress.task(self.label, last_epoch, len(self.history)) as task:
            for epoch in range(len(self.history) + 1, last_epoch + 1):
                if best.exhausted(epoch - 1):
                    break
                torch.manual_seed(derived_seed(self.seed, epoch))
                self.notify("on_epoch_begin", dataset_train=train, dataset_valid=valid)
                for part, some, step in (
                    ("train", batches, self.train_step),
                    ("valid", validation, self.validation_step),
                ):
                    self.run_single_epoch(some, part == "train", prefix=part, step_fn=step)
                if validation is None:  # no loss says whether the last step broke the network
                    logits, _ = self.evaluation_step(next(iter(batches)), training=False)
                    if not torch.isfinite(logits).all():
                        raise divergence(self, "its outputs are not finite")
                self.notify("on_epoch_end", dataset_train=train, dataset_valid=valid)
                line = self.history[-1]
                loss = line["train_loss"] if valid is None else line["valid_loss"]
                self.schedule_.after_epoch(loss)
                valid_accuracy = line["valid_accuracy"]
                checked = "" if valid is None else f" (validation {valid_accuracy:.3f})"
                task.advance(
                    loss=f"loss {line['train_loss']:.4f}",
                    accuracy=f"accuracy {line['train_accuracy']:.3f}{checked}",
                    lr=f"lr {line['lr']:.1e}",
                    rate=f"{line['images_per_s']:.0f} images/s",
                )
                self._save()
        if best.best_["epoch"] is not None:
            self.module_.load_trained_state(best.best_["state"])
        return self

    def _check(self, labels: NDArray[np.int64]) -> None:
        """Refuse rows, a head, a learning rate or a batch size that do not fit together."""
        outputs = self.module_.head.classifier.out_features
        if labels.min() < 0 or labels.max() >= outputs:
            raise FitError(
                "The head has another number of classes than the rows.",
                expected=f"labels from 0 to {outputs - 1}",
                got=f"{labels.min()} to {labels.max()}",
            )
        if len(np.unique(labels)) < 2:
            raise FitError(
                "A head needs training rows of at least two classes.",
                got=f"class {labels[0]} only",
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError("The learning rate must be above zero.", got=self.lr)
        if not 1 <= self.batch_size <= len(labels):
            raise UsageError(
                "The batch is larger than the training rows.",
                expected=f"--batch-size up to {len(labels)}",
                got=self.batch_size,
            )

    def _start_from_probe(self, train: RowBatches, valid: RowBatches | None) -> None:
        def seen_by_last_layer(rows: RowBatches) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            batches = [self.evaluation_step(batch)[1] for batch in self.get_iterator(rows)]
            return torch.cat(batches).float().cpu().numpy(), rows.labels

        last = self.module_.head.classifier
        choose = None if valid is None or self.probe_c is not None else seen_by_last_layer(valid)
        probe = best_probe(
            seen_by_last_layer(train), choose, c=self.probe_c, bias=last.bias is not None
        )
        set_last_layer(last, probe)
        self.probe_c_ = float(probe[-1].C)

    def _save(self) -> None:
        """Write down how far the training is, if it has a checkpoint."""
        if self.checkpoint is None:
            return
        state = {
            "module": self.module_.trained_state(),
            "criterion": self.criterion_.state_dict(),
            "optimizer": self.optimizer_.state_dict(),
            "schedule": self.schedule_.state_dict(),
            "best": self._best.best_,
            "probe_c": self.probe_c_,
        }
        lines = [{k: v for k, v in epoch.items() if k != "batches"} for epoch in self.history]
        write_checkpoint(self.checkpoint, self.run, state, lines)

    def _resume(self) -> bool:
        """Load the state of an interrupted training; return whether there is one."""
        found = read_checkpoint(self.checkpoint, self.run) if self.checkpoint else None
        if found is None:
            return False
        state, lines = found
        self.module_.load_trained_state(state["module"])
        self.criterion_.load_state_dict(state["criterion"])
        self.optimizer_.load_state_dict(state["optimizer"])
        self.schedule_.load_state_dict(state["schedule"])
        self._best.best_ = state["best"]
        self.probe_c_ = state["probe_c"]
        for line in lines:
            self.history.new_epoch()
            for name, value in line.items():
                self.history.record(name, value)
        return True

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Learn from one batch."""
        step: dict[str, Any] = super().train_step(batch, **fit_params)
        self.schedule_.after_batch()
        return step

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the network on one batch."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "mixed"):
            return super().infer(x, **fit_params)

    def _get_predict_nonlinearity(self) -> Callable[[Tensor], Tensor]:
        return _softmax


def _collated(batch: Any) -> Any:
    """Return a batch that the dataset has put together already; a lambda cannot be pickled."""
    return batch


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=1)
