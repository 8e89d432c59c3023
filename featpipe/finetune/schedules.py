"""How the learning rate changes while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from featpipe.finetune import SCHEDULES
from featpipe.steps import grammar

_FACTOR = 0.1  # by which steps and plateaus lower the rate


@dataclass(frozen=True)
class Plan:
    """How long training will take.

    Parameters
    ----------
    epochs : int
    batches : int
        Per epoch.
    """

    epochs: int
    batches: int


class Schedule:
    """A scheduler of torch that knows when it wants to be told.

    Parameters
    ----------
    scheduler : object or None
        One of :mod:`torch.optim.lr_scheduler`; ``None``: the rate stays.
    every : {"epoch", "batch", "loss"}
        After what it is stepped; ``"loss"``: after an epoch, with the validation loss.
    """

    def __init__(self, scheduler: Any = None, every: str = "epoch") -> None:
        self._scheduler = scheduler
        self._every = every

    def after_batch(self) -> None:
        """Say that a batch was learned."""
        if self._scheduler is not None and self._every == "batch":
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Say that an epoch has ended, with its validation loss (or training loss without)."""
        if self._scheduler is not None and self._every != "batch":
            self._scheduler.step(*([loss] if self._every == "loss" else []))

    def state(self) -> dict[str, Any]:
        """Return what must be saved to continue."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)


def make_schedule(spec: str, optimizer: Optimizer, plan: Plan) -> Schedule:
    """Build a schedule.

    Parameters
    ----------
    spec : str
        ``"none"``, ``"multistep:80,120"``, ``"cosine"``, ``"plateau:5"`` or ``"onecycle"``.
    optimizer : Optimizer
    plan : Plan

    Raises
    ------
    UnknownNameError
        If there is no such schedule.
    UsageError
        If its numbers are missing or wrong.
    """
    maker = SCHEDULES.load(spec.partition(":")[0])
    schedule: Schedule = maker(optimizer, plan, grammar.schedule(spec)[1])
    return schedule


def none(optimizer: Optimizer, plan: Plan, numbers: list[int]) -> Schedule:
    """Leave the learning rate as it is."""
    return Schedule()


def multistep(optimizer: Optimizer, plan: Plan, numbers: list[int]) -> Schedule:
    """Divide the learning rate by ten at the end of some epochs."""
    return Schedule(lr_scheduler.MultiStepLR(optimizer, numbers, gamma=_FACTOR))


def cosine(optimizer: Optimizer, plan: Plan, numbers: list[int]) -> Schedule:
    """Follow half a cosine down to zero (Loshchilov and Hutter 2016, without restarts)."""
    return Schedule(lr_scheduler.CosineAnnealingLR(optimizer, T_max=plan.epochs))


def plateau(optimizer: Optimizer, plan: Plan, numbers: list[int]) -> Schedule:
    """Divide the learning rate by ten where the loss stays."""
    patience = numbers[0] if numbers else 5
    return Schedule(
        lr_scheduler.ReduceLROnPlateau(optimizer, factor=_FACTOR, patience=patience), "loss"
    )


def onecycle(optimizer: Optimizer, plan: Plan, numbers: list[int]) -> Schedule:
    """Raise the learning rate to the one given, then lower it to almost nothing.

    Momentum and betas stay as they were given; torch would cycle them, too.
    """
    cycle = lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=optimizer.param_groups[0]["lr"],
        total_steps=plan.epochs * plan.batches,
        cycle_momentum=False,
    )
    return Schedule(cycle, "batch")
