"""The step `finetune`: its options, their small languages and checks, and its earlier results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from featpipe.backbones import MODELS
from featpipe.datasets import short_name
from featpipe.errors import UnknownNameError, UsageError
from featpipe.extract.step import ImageStep
from featpipe.fingerprint import FileHashes
from featpipe.provenance import package_version
from featpipe.steps import LARGEST_SEED, STEPS, Context, Outcome, Status, option, options_of
from featpipe.steps.grammar import need_training, number, protocol
from featpipe.workspace import user_path

# Each optimizer: its class in torch.optim, and the options of its own with torch's defaults.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.0, "nesterov": False}),
    "adam": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adamw": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}),
    "nadam": ("NAdam", {"betas": (0.9, 0.999), "eps": 1e-8}),
}
CROSS_ENTROPY = "cross-entropy"

_MOST_NEURONS = 65_536

# Options that take an argument: "mlp:50", "multistep:80,120", "center:0.1", "crop:4". They are read
# here, without torch, so that what is wrong is refused before anything is computed. All raise
# UnknownNameError for an unknown name, UsageError for an argument that is missing or not possible.


def parse_head(text: str) -> int:
    """Return the hidden neurons of a head; 0: it is linear.

    Examples
    --------
    >>> parse_head("mlp:50"), parse_head("linear")
    (50, 0)
    """
    name, argument = _split(text, "head", plain=("linear",), others=("mlp",))
    neurons = 0 if name == "linear" else number(argument, whole=True)
    if name == "mlp" and not 1 <= neurons <= _MOST_NEURONS:
        raise UsageError(
            f"The head {name!r} needs its number of hidden neurons.",
            expected=f"{name}:50; at most {name}:{_MOST_NEURONS}",
            got=text,
        )
    return int(neurons)


def parse_schedule(text: str) -> tuple[str, list[int]]:
    """Return the name of a schedule and its numbers.

    Examples
    --------
    >>> parse_schedule("multistep:80,120"), parse_schedule("cosine")
    (('multistep', [80, 120]), ('cosine', []))
    """
    plain, others = ("none", "cosine", "onecycle"), ("multistep", "plateau")
    name, argument = _split(text, "schedule", plain, others)
    numbers = [] if name in plain else [number(n.strip(), whole=True) for n in argument.split(",")]
    if name == "multistep":
        right = sorted(set(numbers)) == numbers and numbers[0] > 0
        needed, example = "needs ascending epochs", "multistep:80,120"
    else:
        right, needed, example = len(numbers) < 2, "takes one whole number of epochs", "plateau:5"
    if not right or any(map(math.isnan, numbers)):
        raise UsageError(f"The schedule {name!r} {needed}.", expected=example, got=text)
    return name, [int(value) for value in numbers]


def parse_loss(text: str) -> tuple[str, float]:
    """Return the name of a term of the loss and its weight.

    Examples
    --------
    >>> parse_loss("center:0.1")
    ('center', 0.1)
    """
    name, argument = _split(text, "loss", plain=(CROSS_ENTROPY,), others=("triplet", "center"))
    weight = 1.0 if name == CROSS_ENTROPY else number(argument)
    if not weight > 0:
        raise UsageError(
            f"{text!r} is not a loss.", expected=f"{name}:W with a weight W above zero", got=text
        )
    return name, weight


def parse_augmentation(text: str) -> tuple[str, float]:
    """Return the name of an augmentation and its amount.

    Examples
    --------
    >>> parse_augmentation("rotation:5"), parse_augmentation("flip")
    (('rotation', 5.0), ('flip', 0.0))
    """
    others = ("crop", "rotation", "cutout")
    name, argument = _split(text, "augmentation", plain=("flip",), others=others)
    if name == "flip":
        return name, 0.0
    amount = number(argument, whole=name != "rotation")
    if not amount > 0:
        unit = "degrees" if name == "rotation" else "whole pixels"
        raise UsageError(
            f"The augmentation {name!r} needs its {unit}, above zero.",
            expected=f"{name}:4",
            got=text,
        )
    return name, amount


def _split(
    text: str, kind: str, plain: tuple[str, ...], others: tuple[str, ...]
) -> tuple[str, str]:
    """Return name and argument; the name is known, and a plain one has no argument."""
    name, colon, argument = text.partition(":")
    if name not in plain + others:
        raise UnknownNameError(f"There is no {kind} named {name!r}.", name, plain + others)
    if colon and name in plain:
        raise UsageError(f"The {kind} {name!r} takes no number.", expected=name, got=text)
    return name, argument


@STEPS.register
class Finetune(ImageStep):
    """Train a new head, some stages under it, or a whole network, and test it once."""

    name = "finetune"
    makes = ("result", "network")
    examples = (
        "featpipe finetune --model resnet50 --dataset stl10 --unfreeze layer4 --head mlp:50",
        "featpipe finetune --model resnet9 --dataset cifar10 --optimizer sgd --momentum 0.9 "
        "--nesterov --lr 0.4 --schedule onecycle --augment crop:4,flip,cutout:8",
        "featpipe finetune --model glyphnet --dataset digits --epochs 20 --schedule cosine",
    )

    weights: str = option(
        "DEFAULT",
        help="DEFAULT, the name of published weights, a file, or none: from scratch.",
        selects_input=True,
    )
    unfreeze: str | None = option(
        None,
        help="What learns besides the head: none; a stage (layer4); a stage and all behind "
        "it (layer3+); all. Default: none, or all for an untrained network.",
    )
    head: str = option(
        "linear",
        help="linear, or mlp:50: fifty neurons, then the classes.",
        check=parse_head,
    )
    head_init: str = option(
        "random",
        help="Where the last layer starts: at random, or where a logistic probe of its features "
        "ends, so that it does not distort pretrained stages while it learns.",
        choices=("random", "probe"),
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps.", selects_input=True)
    norm: str = option(
        "batch",
        help="Normalisation of an untrained network.",
        choices=("batch", "layer"),
        selects_input=True,
    )
    batch_norm: str = option(
        "auto",
        help="Running statistics of batch norms behind the boundary: update or keep them; "
        "auto: keep those of pretrained weights.",
        choices=("auto", "update", "keep"),
    )
    epochs: int = option(20, help="Times the training rows are seen.", minimum=1)
    batch_size: int = option(64, help="Images per step.", minimum=1)
    optimizer: str = option("adam", help="How weights follow gradients.", choices=tuple(OPTIMIZERS))
    lr: float = option(1e-3, help="Learning rate, at most.", minimum=1e-12, maximum=1e12)
    momentum: float | None = option(None, help="Momentum of sgd.", minimum=0)
    nesterov: bool = option(False, help="Nesterov's momentum for sgd.")
    betas: tuple[float, ...] | None = option(
        None, help="Decay of both moments of adam, adamw and nadam.", minimum=0
    )
    eps: float | None = option(None, help="What the optimizer divides by at least.", minimum=1e-30)
    weight_decay: float = option(0.0, help="Pull of all weights towards zero.", minimum=0)
    schedule: str = option(
        "none",
        help="none, multistep:80,120, cosine, plateau:5 or onecycle.",
        check=parse_schedule,
    )
    loss: tuple[str, ...] = option(
        (CROSS_ENTROPY,),
        help="cross-entropy; triplet:W or center:W add W times that loss to it.",
        check=parse_loss,
    )
    augment: tuple[str, ...] | None = option(
        None,
        help="crop:4, flip, rotation:5, cutout:16: random changes of training images; the whole "
        "network then runs in every epoch.",
        check=parse_augmentation,
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
    shuffle: bool = option(True, help="Shuffle the rows in every epoch.")
    gradient_flow: bool = option(False, help="Record the gradients of every layer.")
    precision: str = option(
        "auto",
        help="mixed: bfloat16 where it is safe; auto: mixed on a GPU.",
        choices=("auto", "float32", "mixed"),
    )
    dtype: str = option(
        "float16",
        help="Precision of stored activations.",
        choices=("float16", "float32"),
        selects_input=True,
    )
    protocol: str = option(
        "auto",
        help="split, folds, fold:K, kfold:K or holdout:F, as for featpipe svm.",
        check=protocol,
    )
    seed: int = option(0, help="Seed of every random choice.", minimum=0, maximum=LARGEST_SEED)
    title: str | None = option(
        None, help="Name of the method in tables and reports.", affects_result=False
    )
    force: bool = option(False, help="Compute again what is up to date.", affects_result=False)

    def check(self) -> None:
        """Refuse what cannot be right, before anything is loaded."""
        need_training(self.protocol)
        terms = [parse_loss(text)[0] for text in self.loss]
        if len(set(terms)) < len(terms):
            raise UsageError("--loss names a term twice.", got=", ".join(self.loss))
        if "triplet" in terms and self.batch_size < 2:
            raise UsageError(
                "A triplet loss needs batches of several classes.",
                expected="--batch-size of at least 2, better 32",
                got=self.batch_size,
            )
        for name in ("validation", "momentum", "betas"):
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
        own = OPTIMIZERS[self.optimizer][1]
        for name in {name for _, options in OPTIMIZERS.values() for name in options}:
            if getattr(self, name) not in (None, False) and name not in own:
                raise UsageError(
                    f"The optimizer {self.optimizer} has no --{name}.",
                    expected=", ".join(f"--{key}" for key in sorted(own)),
                )
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov is a kind of momentum.", next_step="add --momentum 0.9")
        if not self.validation and (self.patience or self.refit):
            raise UsageError(
                f"{'--patience' if self.patience else '--refit'} chooses by validation rows, "
                "and there are none.",
                next_step="add --validation 0.1",
            )

    def requirements(self) -> Iterator[tuple[str, str]]:
        """Return what a triplet loss, and what a model of timm needs."""
        if any(parse_loss(text)[0] == "triplet" for text in self.loss):
            yield "pytorch_metric_learning", "metric"
        if self.model.partition(":")[0] == "timm":
            yield "timm", "timm"

    def chosen_splits(self, known: Sequence[str]) -> list[str]:
        """Return the training split and, unless the protocol cuts its own rows, the test split.

        The dataset's ``known`` splits begin with that of the training rows; ``UsageError`` if there
        are more than two and none are chosen.
        """
        splits = list(self.split or known)
        if len(splits) > 2:
            raise UsageError(
                "Fine-tuning takes one training split and one test split.",
                got=", ".join(splits),
                next_step=f"--split {splits[0]},{'test' if 'test' in splits else splits[1]}",
            )
        alone = self.protocol.partition(":")[0] in ("kfold", "holdout")
        return splits[: 1 if alone else 2]

    def resolved(self, automatic: Mapping[str, Any]) -> Self:
        """Return the step with one spelling of what can be said in several ways.

        Options that are left to choose become what that means, by ``automatic``; torch's own
        defaults of an optimizer and the cross-entropy, which is always there, are left out.
        """
        known = options_of(type(self))
        chosen = {k: v for k, v in automatic.items() if getattr(self, k) == known[k].default}
        own = OPTIMIZERS[self.optimizer][1]
        usual = {k: known[k].default for k, value in own.items() if getattr(self, k) == value}
        terms = tuple(term for term in self.loss if term != CROSS_ENTROPY)
        return self.replace(**chosen, **usual, loss=terms or (CROSS_ENTROPY,))

    def request_inputs(self, context: Context, sources: Sequence[Any]) -> dict[str, Any]:
        """Return fingerprints of images, weights and torch, as far as torch is not needed."""
        file = user_path(self.weights)
        return {
            "images": [[source.split, len(source), source.fingerprint] for source in sources],
            "weights": FileHashes(context.workspace.hashes).one(file) if file.is_file() else None,
            "torch": package_version("torch"),
        }

    def request(self, inputs: Mapping[str, Any], automatic: Mapping[str, Any]) -> str:
        """Return the fingerprint of what is asked for.

        ``inputs`` are those of :meth:`request_inputs`. What automatic choices mean is known without
        torch only from an earlier result, which says so.
        """
        step = self.resolved(automatic)
        family, _, name = self.model.partition(":")
        network = {
            "model": [MODELS.canonical(family), name],
            "weights": inputs["weights"] or step.weights,
            "device": step.device.partition(":")[0],
            **{option: getattr(step, option) for option in ("norm", "dtype")},
        }
        return step.key({**inputs, **network})

    def status(self, context: Context) -> Status:
        """Say whether the same was asked for before and all its files exist."""
        from featpipe.datasets.dataset import SourceRequest, splits_of  # noqa: PLC0415 - NumPy

        images = SourceRequest.of(self)
        options = images.options(context)
        known = self.split or splits_of(self.dataset, options)
        sources = [images.open(split, options) for split in self.chosen_splits(known)]
        inputs = self.request_inputs(context, sources)
        for path, content in () if self.force else self._results(context):
            extra = content["extra"]
            if extra.get("request") != self.request(inputs, extra.get("automatic", {})):
                continue
            files, models = content["files"], context.workspace.models
            if path.with_name(files["predictions"]).exists() and (models / files["model"]).exists():
                return Status(True, "result is there", content["key"][:8], (path,))
        return Status(False, "no such result yet")

    def estimate(self, context: Context) -> tuple[float, float | None, str] | None:
        """Return what the last training of this network took, on this dataset if there is one."""
        alike = [c for _, c in self._results(context) if c["settings"]["model"] == self.model]
        here = [c for c in alike if c["dataset"]["name"] == short_name(self.dataset)]
        if not alike:
            return None
        last = max(here or alike, key=lambda content: content["created"])
        cost, epochs = last["cost"], last["settings"]["epochs"]
        seconds = (cost["train_seconds"] + cost["predict_seconds"]) * self.epochs / epochs
        basis = f"(as the last one on {last['dataset']['name']}, by epochs)"
        return seconds, cost["model_bytes"], basis

    def run(self, context: Context) -> Outcome:
        """Train and test, unless the same result exists already."""
        self.check_requirements()
        from featpipe.finetune.run import run_finetune  # noqa: PLC0415 - brings torch

        return run_finetune(self, context)

    def _results(self, context: Context) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield its results; NumPy, which reads them whole, is not imported."""
        for path in sorted(context.workspace.results.glob(f"*-{self.name}-*.json")):
            with suppress(OSError, ValueError):
                content = json.loads(path.read_text("utf-8"))
                if content.get("method") == self.name:
                    yield path, content
