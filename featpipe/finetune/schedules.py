"""How the learning rate changes while training."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer, lr_scheduler

from featpipe.finetune import grammar

_FACTOR = 0.1  # by which steps and plateaus lower the rate


class Schedule:
    """A scheduler of torch that is stepped when it has to be.

    skorch's ``LRScheduler`` cannot continue an interrupted training: it makes a new scheduler
    when training begins and saves none.

    Parameters
    ----------
    spec : str
        ``"none"``, ``"multistep:80,120"``, ``"cosine"``, ``"plateau:5"`` or ``"onecycle"``.
    optimizer : Optimizer
    epochs : int
        That the schedule is made for.
    batches : int
        Per epoch.

    Raises
    ------
    UsageError
        If there is no such schedule, or its numbers are missing or wrong.
    """

    def __init__(self, spec: str, optimizer: Optimizer, epochs: int, batches: int) -> None:
        self.name, numbers = grammar.schedule(spec)
        scheduler: Any = None
        if self.name == "multistep":
            scheduler = lr_scheduler.MultiStepLR(optimizer, numbers, gamma=_FACTOR)
        elif self.name == "cosine":  # Loshchilov and Hutter 2016, without restarts
            scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
        elif self.name == "plateau":
            patience = numbers[0] if numbers else 5
            scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=_FACTOR, patience=patience)
        elif self.name == "onecycle":
            scheduler = lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=optimizer.param_groups[0]["lr"],
                total_steps=epochs * batches,
                cycle_momentum=False,  # momentum and betas stay as they were given
            )
        self._scheduler = scheduler

    def after_batch(self) -> None:
        """Step a schedule that changes the rate batch by batch."""
        if self.name == "onecycle":
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Step any other one; ``loss`` is of validation rows, or of training rows without."""
        if self.name == "plateau":
            self._scheduler.step(loss)
        elif self.name in ("multistep", "cosine"):
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved to continue."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)
