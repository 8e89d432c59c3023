"""The step `finetune`: its options, their checks, and its earlier results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featpipe.datasets import short_name
from featpipe.errors import UsageError
from featpipe.extract.step import ImageStep
from featpipe.finetune import grammar
from featpipe.fingerprint import FileHashes
from featpipe.provenance import package_version
from featpipe.steps import STEPS, Context, Outcome, Status, option
from featpipe.steps.grammar import need_training, protocol
from featpipe.workspace import user_path


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
        help="What learns besides the head: none or fc; a stage (layer4); a stage and all behind "
        "it (layer3+); all. Default: none, or all for an untrained network.",
    )
    head: str = option(
        "linear",
        help="linear, or mlp:50: fifty neurons, then the classes.",
        check=grammar.head,
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
    optimizer: str = option(
        "adam", help="How weights follow gradients.", choices=tuple(grammar.OPTIMIZERS)
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
        check=grammar.schedule,
    )
    loss: tuple[str, ...] = option(
        (grammar.CROSS_ENTROPY,),
        help="cross-entropy; triplet:W or center:W add W times that loss to it.",
        check=grammar.loss,
    )
    label_smoothing: float = option(0.0, help="Share of the target given to all.", minimum=0)
    augment: tuple[str, ...] | None = option(
        None,
        help="crop:4, flip, rotation:5, cutout:16: random changes of training images; the whole "
        "network then runs in every epoch.",
        check=grammar.augmentation,
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
    seed: int = option(0, help="Seed of every random choice.", seed=True)
    title: str | None = option(
        None, help="Name of the method in tables and reports.", affects_result=False
    )
    force: bool = option(False, help="Compute again what is up to date.", affects_result=False)

    def check(self) -> None:
        """Refuse what cannot be right, before anything is loaded."""
        need_training(self.protocol)
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
        own = grammar.OPTIMIZERS[self.optimizer][1]
        for name in ("betas", "eps", "momentum", "nesterov"):
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
        if any(grammar.loss(text)[0] == "triplet" for text in self.loss):
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

    def request(self, context: Context, sources: Sequence[Any]) -> str:
        """Return the fingerprint of what is asked for, as far as it is known without torch."""
        weights = user_path(self.weights)
        hashes = FileHashes(context.workspace.hashes)
        file = hashes.one(weights) if weights.is_file() else self.weights
        inputs = {
            "images": [[source.split, len(source), source.fingerprint] for source in sources],
            "network": [self.model, file, self.norm, self.dtype, self.device],
            "torch": package_version("torch"),
        }
        return self.key(inputs)

    def status(self, context: Context) -> Status:
        """Say whether the same was asked for before and all its files exist."""
        from featpipe.datasets.dataset import SourceRequest, splits_of  # noqa: PLC0415 - NumPy

        images = SourceRequest.of(self)
        options = images.options(context)
        known = self.split or splits_of(self.dataset, options)
        sources = [images.open(split, options) for split in self.chosen_splits(known)]
        request = self.request(context, sources)
        for path, content in () if self.force else _results(context):
            if content["extra"].get("request") != request:
                continue
            files, models = content["files"], context.workspace.models
            if path.with_name(files["predictions"]).exists() and (models / files["model"]).exists():
                return Status(True, "result is there", content["key"][:8], (path,))
        return Status(False, "no such result yet")

    def estimate(self, context: Context) -> tuple[float, float | None, str] | None:
        """Return what the last training of this network took, on this dataset if there is one."""
        alike = [c for _, c in _results(context) if c["settings"]["model"] == self.model]
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


def _results(context: Context) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the results of fine-tuning; NumPy, which reads them whole, is not imported."""
    for path in sorted(context.workspace.results.glob("*-finetune-*.json")):
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text("utf-8"))
            if content.get("method") == "finetune":
                yield path, content
