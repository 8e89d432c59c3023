"""The estimator: scikit-learn's contract, skorch's loop, checkpoints and an honest best epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from featpipe.finetune.callbacks import (
    RECORDED,
    BestEpoch,
    EpochProgress,
    EpochRecord,
    GradientFlow,
    diverged,
)
from featpipe.finetune.checkpoint import continue_training, save_training
from featpipe.finetune.checks import check_training
from featpipe.finetune.losses import HeadLoss, parse_losses
from featpipe.finetune.probe_start import start_from_probe
from featpipe.finetune.rows import ActivationDataset, HoldOut
from featpipe.finetune.schedules import Plan, make_schedule
from featpipe.finetune.seeding import derived_seed
from featpipe.progress import SILENT, Progress


class HeadClassifier(NeuralNetClassifier):
    """A network with a new head, trained on stored activations or on images.

    ``fit``, ``predict``, ``predict_proba`` and ``clone`` as scikit-learn has them; labels are
    indices into the classes. Everything random follows from ``seed``.

    Parameters
    ----------
    module : callable
        Makes the network: :class:`featpipe.finetune.module.NetworkFactory`.
    losses : tuple of str
        ``"cross-entropy"``, ``"triplet:W"``, ``"center:W"``.
    label_smoothing : float
    schedule : str
        See :func:`featpipe.finetune.schedules.make_schedule`.
    validation : float
        Share of the training rows that chooses the epoch; 0: the last epoch is taken.
    patience : int or None
        Stop when so many epochs brought no better one.
    stop_after : int or None
        Train so many of the ``max_epochs`` that the schedule is made for.
    views : int
        Stored augmented views per image.
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
        ``optimizer``, ``optimizer__momentum``, ``device`` …

    Attributes
    ----------
    epochs_ : list of dict
        One line per epoch: losses, accuracies, learning rate, seconds, images per second.
    best_epoch_ : int
        The epoch whose weights the network has.
    probe_c_ : float or None
        Regularisation of the probe that the head started from.
    """

    def __init__(  # noqa: PLR0913 - an estimator takes each of its settings by name
        self,
        module: Callable[[], nn.Module],
        *,
        losses: Sequence[str] = ("cross-entropy",),
        label_smoothing: float = 0.0,
        schedule: str = "none",
        validation: float = 0.1,
        patience: int | None = None,
        stop_after: int | None = None,
        views: int = 0,
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
        self.views = views
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
        return [
            ("record", EpochRecord()),
            *flow,
            ("best", BestEpoch(self.patience)),
            ("bar", EpochProgress(self.label, self.progress)),
        ]

    @property
    def epochs_to_run(self) -> int:
        """Epochs that will be trained unless patience ends first."""
        return min(self.max_epochs, self.stop_after or self.max_epochs)

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
        return self.callback("best").epoch_ or len(self.history)

    def callback(self, name: str) -> Any:
        """Return one of the callbacks by name."""
        return dict(self.callbacks_)[name]

    def initialize_module(self) -> HeadClassifier:
        """Make the network; convolutions on the CPU and on GPUs are faster channels-last."""
        self.module_ = self.module().to(memory_format=torch.channels_last)
        return self

    def initialize_criterion(self) -> HeadClassifier:
        """Make the loss for the head's numbers of classes and features."""
        last = self.module_.head.classifier
        self.criterion_ = self.criterion(
            self.losses, self.label_smoothing, last.out_features, last.in_features
        )
        return self

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels that the columns of ``predict_proba`` stand for."""
        return np.arange(self.module_.head.classifier.out_features)

    def get_dataset(self, X: Any, y: Any = None) -> ActivationDataset:
        """Return rows that know their views."""
        if isinstance(X, ActivationDataset):
            return X
        return ActivationDataset(X, y, views=self.views, augment=self.augment)

    def get_split_datasets(
        self, X: Any, y: Any = None, **fit_params: Any
    ) -> tuple[ActivationDataset, ActivationDataset | None]:
        """Return the rows that train and the rows that choose the epoch."""
        dataset = self.get_dataset(X, y)
        if not self.validation:
            return dataset, None
        return HoldOut(self.validation, self.seed)(dataset)

    def get_iterator(self, dataset: ActivationDataset, training: bool = False) -> Any:
        """Return batches; the order follows from torch's generator."""
        size = self.batch_size
        # Batch norm cannot learn from a single row, nor triplets from a rest of few.
        odd = len(dataset) % size == 1 or "triplet" in parse_losses(self.losses)
        return torch.utils.data.DataLoader(
            dataset.in_mode(training=training),
            batch_size=size,
            shuffle=training and self.shuffle,
            drop_last=training and odd and size > 1 and len(dataset) > size,
            collate_fn=_as_it_is,
        )

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> HeadClassifier:
        """Train up to the last epoch, from where the training stands.

        Unlike skorch's, an interruption by the user is not taken for the end of the training.
        """
        if not self.initialized_:
            self.initialize()
        gpus = range(torch.cuda.device_count()) if str(self.device).startswith("cuda") else ()
        with torch.random.fork_rng(devices=gpus):
            self.notify("on_train_begin", X=X, y=y)
            try:
                self.fit_loop(X, y)
            finally:
                self.callback("bar").close()
            self.notify("on_train_end", X=X, y=y)
        return self

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> HeadClassifier:
        """Train epoch by epoch; take the weights of the best one at the end."""
        train, valid = self.get_split_datasets(X, y)
        check_training(
            train.y[train.places],
            self.module_.head.classifier.out_features,
            self.lr,
            self.batch_size,
        )
        batches = self.get_iterator(train, training=True)
        validation = None if valid is None else self.get_iterator(valid)
        plan = Plan(self.max_epochs, len(batches))
        self.schedule_ = make_schedule(self.schedule, self.optimizer_, plan)
        best = self.callback("best")
        self.probe_c_ = None
        if not continue_training(self) and self.head_init == "probe":
            self.probe_c_ = start_from_probe(self, train, valid)
        for epoch in range(len(self.history) + 1, self.epochs_to_run + 1):
            if best.exhausted(epoch - 1):
                break
            torch.manual_seed(derived_seed(self.seed, epoch))
            self.notify("on_epoch_begin", dataset_train=train, dataset_valid=valid)
            self.run_single_epoch(batches, training=True, prefix="train", step_fn=self.train_step)
            self.run_single_epoch(
                validation, training=False, prefix="valid", step_fn=self.validation_step
            )
            if validation is None:
                self._see_divergence(batches)
            self.notify("on_epoch_end", dataset_train=train, dataset_valid=valid)
            last = self.history[-1]
            self.schedule_.after_epoch(
                last["train_loss"] if last["valid_loss"] is None else last["valid_loss"]
            )
            save_training(self)
        best.restore(self)
        return self

    def _see_divergence(self, batches: Any) -> None:
        """Look whether the last step of an epoch broke the network; no validation loss says so."""
        logits, _ = self.evaluation_step(next(iter(batches)), training=False)
        if not torch.isfinite(logits).all():
            raise diverged(self, "its outputs are not finite")

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


def _as_it_is(batch: Any) -> Any:
    """Return a batch that the dataset has already put together."""
    return batch


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=1)
