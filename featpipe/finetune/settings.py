"""From a step's options to an estimator; what does not fit together is refused here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.errors import UsageError
from featpipe.finetune import OPTIMIZERS
from featpipe.finetune.augment import Augmentation, Canvas
from featpipe.finetune.boundary import Views
from featpipe.finetune.classifier import HeadClassifier
from featpipe.finetune.module import NetworkFactory
from featpipe.finetune.stages import Cut, cut_of
from featpipe.finetune.trunk import Trunk, TrunkRequest
from featpipe.steps.old import FinetuneStep


def trunk_request(step: FinetuneStep) -> TrunkRequest:
    """Return which network a step starts from."""
    weights = Path(step.weights).expanduser()
    return TrunkRequest(
        step.model,
        str(weights.resolve()) if weights.is_file() else step.weights,
        step.norm,
        step.image_size,
        step.fit,
        step.device,
        step.seed,
    )


def optimizer_options(step: FinetuneStep) -> dict[str, Any]:
    """Return what the optimizer is to be made with, beside the learning rate."""
    given = {
        "momentum": step.momentum,
        "nesterov": step.nesterov or None,
        "betas": step.betas,
        "eps": step.eps,
    }
    options = {key: value for key, value in given.items() if value is not None}
    return {**options, "weight_decay": step.weight_decay}


def resolve_cut(step: FinetuneStep, trunk: Trunk) -> Cut:
    """Return which stages learn.

    Raises
    ------
    UsageError
        If stages of an untrained network would stay frozen.
    UnknownNameError
        If the network has no such stage.
    """
    cut = cut_of(trunk.stages, unfreeze_of(step, trunk))
    if not trunk.pretrained and (cut.frozen or cut.passed):
        raise UsageError(
            f"{trunk.name} is untrained: what stays frozen would stay random.",
            expected="--unfreeze all",
            got=f"--unfreeze {step.unfreeze}",
        )
    return cut


def unfreeze_of(step: FinetuneStep, trunk: Trunk) -> str:
    """Return what is unfrozen, by default the head of a pretrained network or all of another."""
    return step.unfreeze or ("none" if trunk.pretrained else "all")


def resolve_views(step: FinetuneStep, cut: Cut) -> Views | None:
    """Return the views stored at the boundary; ``None``: images are stored, all is run each time.

    Raises
    ------
    UsageError
        If views are to be stored where nothing is frozen.
    """
    if step.views and not cut.frozen:
        raise UsageError(
            "Views are stored at a frozen boundary, and nothing is frozen.",
            next_step="leave --views out: images are then augmented anew in every epoch",
        )
    if not cut.frozen or step.views == 0 or (step.augment and step.views is None):
        return None
    return Views(step.views or 0, step.augment or (), step.seed)


def make_factory(
    step: FinetuneStep, trunk: Trunk, cut: Cut, n_classes: int, *, from_store: bool
) -> NetworkFactory:
    """Return what makes the network that is trained."""
    keep = step.batch_norm == "keep" or (step.batch_norm == "auto" and trunk.pretrained)
    return NetworkFactory(trunk, cut, step.head, n_classes, step.seed, from_store, keep)


def make_estimator(
    step: FinetuneStep, factory: NetworkFactory, views: Views | None, **more: Any
) -> HeadClassifier:
    """Return the estimator of a step; ``more`` are its parameters for one training."""
    device = factory.trunk.device
    mixed = step.precision == "mixed" or (step.precision == "auto" and device.type == "cuda")
    augment = None
    if step.augment and views is None:
        augment = Augmentation(step.augment, Canvas.of(factory.trunk.preprocessing))
    options = {f"optimizer__{key}": value for key, value in optimizer_options(step).items()}
    return HeadClassifier(
        factory,
        losses=step.loss,
        label_smoothing=step.label_smoothing,
        schedule=step.schedule,
        validation=step.validation,
        patience=step.patience,
        augment=augment,
        shuffle=step.shuffle,
        precision="mixed" if mixed else "float32",
        head_init=step.head_init,
        gradient_flow=step.gradient_flow,
        seed=step.seed,
        lr=step.lr,
        max_epochs=step.epochs,
        batch_size=step.batch_size,
        optimizer=OPTIMIZERS.load(step.optimizer),
        device=str(device),
        **options,
        **more,
    )
