"""The steps that train a head or a whole network, and show what it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featpipe.errors import UsageError
from featpipe.steps import grammar
from featpipe.steps.images import ImageStep
from featpipe.steps.oldbase import LARGEST_SEED, Step, option

# Options that only some optimizers have.
_OPTIMIZER_OPTIONS = {
    "sgd": {"momentum", "nesterov"},
    "adam": {"betas", "eps"},
    "adamw": {"betas", "eps"},
    "nadam": {"betas", "eps"},
    "rmsprop": {"momentum", "eps"},
}


@dataclass(frozen=True, kw_only=True)
class FinetuneStep(ImageStep):
    """Train a new head, some stages under it, or a whole network."""

    kind = "finetune"
    summary = "Train a new head, some stages under it, or a whole network, and test it once."
    runner = "featpipe.finetune.command:run_finetune"
    examples = (
        "featpipe finetune --model resnet50 --dataset stl10 --unfreeze layer4 --head mlp:50",
        "featpipe finetune --model resnet9 --dataset cifar10 --optimizer sgd --momentum 0.9 "
        "--nesterov --lr 0.4 --schedule onecycle --augment crop:4,flip,cutout:8",
        "featpipe finetune --model glyphnet --dataset digits --epochs 20 --schedule cosine",
    )

    model: str = option(
        help="Network: a backbone, resnet9, timm:NAME …", registry="featpipe.finetune:NETWORKS"
    )
    weights: str = option(
        "DEFAULT", help="DEFAULT, the name of published weights, a file, or none: from scratch."
    )
    unfreeze: str | None = option(
        None,
        help="What learns besides the head: none or fc; a stage (layer4); a stage and all behind "
        "it (layer3+); all. Default: none, or all for an untrained network.",
    )
    head: str = option(
        "linear",
        help="linear, or mlp:50: fifty neurons, then the classes.",
        registry="featpipe.finetune:HEADS",
        grammar=grammar.head,
    )
    head_init: str = option(
        "random",
        help="Where the last layer starts: at random, or where a logistic probe of its features "
        "ends, so that it does not distort pretrained stages while it learns.",
        choices=("random", "probe"),
    )
    norm: str = option(
        "batch", help="Normalisation of an untrained network.", choices=("batch", "layer")
    )
    batch_norm: str = option(
        "auto",
        help="Running statistics of batch norms behind the boundary: update or keep them; "
        "auto: keep those of pretrained weights.",
        choices=("auto", "update", "keep"),
    )
    epochs: int = option(20, help="Times the training rows are seen.", minimum=1)
    batch_size: int = option(64, help="Images per step.", minimum=1)
    optimizer: str = option(
        "adam",
        help="How weights follow gradients.",
        registry="featpipe.finetune:OPTIMIZERS",
        grammar=grammar.bare_name,
    )
    lr: float = option(1e-3, help="Learning rate, at most.", minimum=1e-12, maximum=1e12)
    momentum: float | None = option(None, help="Momentum of sgd and rmsprop.", minimum=0)
    nesterov: bool = option(False, help="Nesterov's momentum for sgd.")
    betas: tuple[float, ...] | None = option(
        None, help="Decay of both moments of adam, adamw and nadam.", minimum=0
    )
    eps: float | None = option(None, help="What the optimizer divides by at least.", minimum=1e-30)
    weight_decay: float = option(0.0, help="Pull of all weights towards zero.", minimum=0)
    schedule: str = option(
        "none",
        help="none, multistep:80,120, cosine, plateau:5 or onecycle.",
        registry="featpipe.finetune:SCHEDULES",
        grammar=grammar.schedule,
    )
    loss: tuple[str, ...] = option(
        ("cross-entropy",),
        help="cross-entropy; triplet:W or center:W add W times that loss to it.",
        registry="featpipe.finetune:LOSSES",
        grammar=grammar.loss,
    )
    label_smoothing: float = option(0.0, help="Share of the target given to all.", minimum=0)
    augment: tuple[str, ...] | None = option(
        None,
        help="crop:4, flip, rotation:5, cutout:16: random changes of training images.",
        registry="featpipe.finetune:AUGMENTATIONS",
        grammar=grammar.augmentation,
    )
    views: int | None = option(
        None,
        help="Augmented views of each image stored at the frozen boundary; 0: run the whole "
        "network in every epoch. Default: the images as they are, or 0 with --augment.",
        minimum=0,
    )
    validation: float = option(
        0.1,
        help="Share of the training rows that chooses the best epoch; 0: take the last one.",
        minimum=0,
    )
    patience: int | None = option(
        None, help="Stop when so many epochs brought no better one.", minimum=1
    )
    refit: bool = option(
        False, help="Then train again on all training rows, up to the epoch that was chosen."
    )
    shuffle: bool = option(True, help="Draw the order of the rows anew in every epoch.")
    gradient_flow: bool = option(False, help="Record the gradients of every layer.")
    precision: str = option(
        "auto",
        help="mixed: bfloat16 where it is safe; auto: mixed on a GPU.",
        choices=("auto", "float32", "mixed"),
    )
    dtype: str = option(
        "float16", help="Precision of stored activations.", choices=("float16", "float32")
    )
    protocol: str = option(
        "auto",
        help="split, folds, fold:K, kfold:K or holdout:F, as for featpipe svm.",
        grammar=grammar.protocol,
    )
    seed: int = option(0, help="Seed of every random choice.", minimum=0, maximum=LARGEST_SEED)
    title: str | None = option(None, help="Name of the method in tables and reports.")
    force: bool = option(False, help="Compute again what is up to date.")

    def check(self) -> None:
        """Refuse what cannot be right, before anything is loaded."""
        grammar.need_training(self.protocol)
        terms = [grammar.loss(text)[0] for text in self.loss]
        if len(set(terms)) < len(terms):
            raise UsageError("--loss names a term twice.", got=", ".join(self.loss))
        if "triplet" in terms and self.batch_size < 2:
            raise UsageError(
                "A triplet loss needs batches of several classes.",
                expected="--batch-size of at least 2, better 32",
                got=self.batch_size,
            )
        for name in ("label_smoothing", "validation", "momentum", "betas"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value or 0.0,)
            if any(one >= 1 for one in values):
                raise UsageError(f"--{name.replace('_', '-')} must be below 1.", got=value)
        if self.betas is not None and len(self.betas) != 2:
            raise UsageError("--betas takes two numbers.", expected="0.9,0.999", got=self.betas)
        if self.head_init == "probe" and self.head != "linear":
            raise UsageError(
                "A probe is one linear layer.", expected="--head linear", got=self.head
            )
        self._check_optimizer()
        if not self.validation and (self.patience or self.refit):
            raise UsageError(
                f"{'--patience' if self.patience else '--refit'} chooses by validation rows, "
                "and there are none.",
                next_step="add --validation 0.1",
            )
        if self.views and not self.augment:
            raise UsageError(
                "--views stores augmented views.", next_step="say how: --augment crop:4"
            )

    def _check_optimizer(self) -> None:
        taken = _OPTIMIZER_OPTIONS[self.optimizer]
        given = {
            name
            for name in ("momentum", "nesterov", "betas", "eps")
            if getattr(self, name) not in (None, False)
        }
        if foreign := sorted(given - taken):
            raise UsageError(
                f"The optimizer {self.optimizer} has no --{foreign[0]}.",
                expected=", ".join(f"--{key}" for key in sorted(taken)),
            )
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov is a kind of momentum.", next_step="add --momentum 0.9")


@dataclass(frozen=True, kw_only=True)
class ExplainStep(Step):
    """Show what a trained network looked at in the images it got wrong."""

    kind = "explain"
    filled = ("result",)
    summary = "Lay Grad-CAM heat maps over the images that a trained network got wrong."
    runner = "featpipe.finetune.explain:run_explain"
    examples = ("featpipe explain stl10-resnet18-finetune-1a2b3c4d --layer layer3 --strength 0.5",)

    result: str = option(help="Result of featpipe finetune: a file or a name.", positional=True)
    layer: str | None = option(
        None, help="Stage whose maps are shown; default: the last one that has maps."
    )
    strength: float = option(0.5, help="Opacity of the heat map, up to 1.", minimum=0, maximum=1)
    limit: int = option(24, help="Images at most, the surest mistakes first.", minimum=1)
    data: Path | None = option(None, help="Folder to look for the images in.")
    weights: str | None = option(
        None, help="Where the weights are now; default: where they were at training."
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps.")
