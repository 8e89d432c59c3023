"""The step `finetune`: its options, their checks, and its earlier results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from featpipe.backbones import backbone_name, effective_runtime, weights_identity
from featpipe.datasets import short_name
from featpipe.errors import UnknownNameError, UsageError
from featpipe.evaluation.options import TrainingRowOptions
from featpipe.extraction.step import ImageStep, in_machine, in_network
from featpipe.files import read_json
from featpipe.fingerprint import FileHashes, unsealed
from featpipe.probes.base import Evaluation
from featpipe.provenance import package_version
from featpipe.steps import STEPS, Context, Outcome, Status, altered, option, options_of
from featpipe.steps.grammar import need_training, number, protocol
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.datasets.source import ImageSource

# Each optimizer: its class in torch.optim, and the options of its own with torch's defaults.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.0, "nesterov": False}),
    **{
        name.lower(): (name, {"betas": (0.9, 0.999), "eps": 1e-8})
        for name in ("Adam", "AdamW", "NAdam")
    },
}
CROSS_ENTROPY = "cross-entropy"

in_training = partial(option, group="Training")
in_testing = partial(option, group="Choosing and testing")

_MOST_NEURONS = 65_536


class _Numbers(NamedTuple):
    """The numbers behind the colon of an option such as ``mlp:50``."""

    needed: str  # what they are, in a message
    example: str
    whole: bool = True
    valid: Callable[[list[float]], bool] = lambda n: len(n) == 1 and n[0] > 0


_PIXELS = _Numbers("its whole pixels, above zero", "4")
_WEIGHT = _Numbers("a weight above zero", "0.1", whole=False)
_NEURONS = _Numbers(
    f"its number of hidden neurons, at most {_MOST_NEURONS}",
    "50",
    valid=lambda n: len(n) == 1 and 1 <= n[0] <= _MOST_NEURONS,
)
# The names that each option accepts, with the numbers that a name takes.
_NAMES: dict[str, dict[str, _Numbers | None]] = {
    "head": {"linear": None, "mlp": _NEURONS},
    "schedule": {
        **dict.fromkeys(("none", "cosine", "onecycle")),
        "multistep": _Numbers(
            "ascending epochs", "80,120", valid=lambda n: n[0] > 0 and sorted(set(n)) == list(n)
        ),
        "plateau": _Numbers("one whole number of epochs", "5", valid=lambda n: len(n) == 1),
    },
    "loss": {CROSS_ENTROPY: None, "triplet": _WEIGHT, "center": _WEIGHT},
    "augmentation": {
        "flip": None,
        "crop": _PIXELS,
        "rotation": _Numbers("its degrees, above zero", "5", whole=False),
        "cutout": _PIXELS,
    },
}


def parse(kind: str, text: str) -> tuple[str, list[float]]:
    """Read a head, a schedule, a loss or an augmentation, as its name and its numbers.

    It needs no torch, so mistakes are found before anything is computed: an unknown name is an
    ``UnknownNameError``, missing or impossible numbers are a ``UsageError``.

    Examples
    --------
    >>> parse("schedule", "multistep:80,120"), parse("head", "linear")
    (('multistep', [80, 120]), ('linear', []))
    """
    name, colon, argument = text.partition(":")
    if name not in _NAMES[kind]:
        raise UnknownNameError(f"There is no {kind} named {name!r}.", name, _NAMES[kind])
    numbers = _NAMES[kind][name]
    if numbers is None:
        if colon:
            raise UsageError(f"The {kind} {name!r} takes no number.", expected=name, got=text)
        return name, []
    values = [number(part.strip(), whole=numbers.whole) for part in argument.split(",")]
    if any(map(math.isnan, values)) or not numbers.valid(values):
        what = f"The {kind} {name!r} needs {numbers.needed}."
        raise UsageError(what, expected=f"{name}:{numbers.example}", got=text)
    return name, [int(value) for value in values] if numbers.whole else values


@STEPS.register
class Finetune(TrainingRowOptions, ImageStep):
    """Train a new head, some stages under it, or a whole network, and test it once."""

    name = "finetune"
    makes = ("result", "network")
    examples = (
        "featpipe finetune --model resnet50 --dataset stl10 --unfreeze layer4 --head mlp:50",
        "featpipe finetune --model resnet9 --dataset cifar10 --optimizer sgd --momentum 0.9 "
        "--nesterov --lr 0.4 --schedule onecycle --augment crop:4,flip,cutout:8",
        "featpipe finetune --model glyphnet --dataset digits --epochs 20 --schedule cosine",
    )

    weights: str = altered(
        ImageStep.weights,
        help="DEFAULT, the name of published weights, a file, or none: from scratch.",
    )
    unfreeze: str | None = in_network(
        None,
        help="What is trained besides the head: none; a stage (layer4); a stage and all later "
        "ones (layer3+); all. Default: none, or all for an untrained network.",
    )
    head: str = in_network(
        "linear",
        help="linear, or mlp:50: fifty neurons, then the classes.",
        check=partial(parse, "head"),
    )
    head_init: str = in_network(
        "random",
        help="How the last layer is initialised: at random, or from a logistic probe of its "
        "features, which does not distort pretrained stages while the head learns.",
        choices=("random", "probe"),
    )
    device: str = altered(ImageStep.device, affects_result=True, selects_input=True)
    norm: str = in_network(
        "batch",
        help="Normalisation of an untrained network.",
        choices=("batch", "layer"),
        selects_input=True,
    )
    batch_norm: str = in_network(
        "auto",
        help="Running statistics of batch norms in the trained part: update or keep them; "
        "auto: keep those of pretrained weights.",
        choices=("auto", "update", "keep"),
    )
    epochs: int = in_training(20, help="Passes over the training images.", minimum=1)
    batch_size: int = in_training(64, help="Images per step.", minimum=1)
    optimizer: str = in_training("adam", help="Optimizer.", choices=tuple(OPTIMIZERS))
    lr: float = in_training(1e-3, help="Maximum learning rate.", minimum=1e-12, maximum=1e12)
    momentum: float | None = in_training(None, help="Momentum of sgd.", minimum=0)
    nesterov: bool = in_training(False, help="Nesterov's momentum for sgd.")
    betas: tuple[float, ...] | None = in_training(
        None, help="Decay of both moments of adam, adamw and nadam.", minimum=0
    )
    eps: float | None = in_training(None, help="Epsilon of the optimizer.", minimum=1e-30)
    weight_decay: float = in_training(0.0, help="Weight decay.", minimum=0)
    schedule: str = in_training(
        "none",
        help="none, multistep:80,120, cosine, plateau:5 or onecycle.",
        check=partial(parse, "schedule"),
    )
    loss: tuple[str, ...] = in_training(
        (CROSS_ENTROPY,),
        help="cross-entropy; triplet:W or center:W add W times that loss to it.",
        check=partial(parse, "loss"),
    )
    augment: tuple[str, ...] | None = in_training(
        None,
        help="crop:4, flip, rotation:5, cutout:16: random changes of training images; the whole "
        "network then runs in every epoch.",
        check=partial(parse, "augmentation"),
    )
    validation: float = in_testing(
        0.1,
        help="Share of the training rows that chooses the best epoch; 0: take the last one.",
        minimum=0,
    )
    patience: int | None = in_testing(
        None, help="Stop after this many epochs without improvement.", minimum=1
    )
    refit: bool = in_testing(
        False, help="Then train again on all training rows, up to the epoch that was chosen."
    )
    shuffle: bool = in_training(True, help="Shuffle the rows in every epoch.")
    gradient_flow: bool = option(False, help="Record the gradients of every layer.")
    precision: str = in_machine(
        "auto",
        help="mixed: bfloat16 where it is safe; auto: mixed on a GPU.",
        choices=("auto", "float32", "mixed"),
    )
    dtype: str = in_machine(
        "float16",
        help="Precision of stored activations.",
        choices=("float16", "float32"),
        selects_input=True,
    )
    protocol: str = in_testing(
        "auto",
        help="split, folds, fold:K, kfold:K or holdout:F, as for featpipe svm.",
        check=protocol,
    )
    seed: int = in_testing(0, help="Seed of every random choice.", seed=True)
    title: str | None = altered(Evaluation.title)
    force: bool = altered(Evaluation.force)

    def check(self) -> None:
        """Refuse impossible values and combinations, before anything is loaded."""
        super().check()
        need_training(self.protocol)
        terms = [parse("loss", text)[0] for text in self.loss]
        if len(set(terms)) < len(terms):
            raise UsageError("--loss names a term twice.", got=", ".join(self.loss))
        if "triplet" in terms and self.batch_size < 2:
            what = "A triplet loss needs batches of several classes."
            expected = "--batch-size of at least 2, better 32"
            raise UsageError(what, expected=expected, got=self.batch_size)
        for name in ("validation", "momentum", "betas"):
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value or 0.0,)) >= 1:
                raise UsageError(f"--{name} must be below 1.", got=value)
        if self.betas is not None and len(self.betas) != 2:
            raise UsageError("--betas takes two numbers.", expected="0.9,0.999", got=self.betas)
        if self.head_init == "probe" and self.head != "linear":
            what = "A probe is one linear layer."
            raise UsageError(what, expected="--head linear", got=self.head)
        own = OPTIMIZERS[self.optimizer][1]
        for name in sorted({name for _, options in OPTIMIZERS.values() for name in options}):
            if getattr(self, name) not in (None, False) and name not in own:
                what = f"The optimizer {self.optimizer} has no --{name}."
                raise UsageError(what, expected=", ".join(f"--{key}" for key in sorted(own)))
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov is a kind of momentum.", next_step="add --momentum 0.9")
        if not self.validation and (self.patience or self.refit):
            flag = "--patience" if self.patience else "--refit"
            what = f"{flag} chooses by validation rows, and there are none."
            raise UsageError(what, next_step="add --validation 0.1")

    def requirements(self) -> Iterator[tuple[str, str]]:
        """Return what a triplet loss needs."""
        if any(parse("loss", text)[0] == "triplet" for text in self.loss):
            yield "pytorch_metric_learning", "metric"

    def open_images(self, context: Context, *, download: bool) -> list[ImageSource]:
        """Open the training split and, unless the protocol cuts its own rows, the test split.

        ``UsageError`` if there are more than two and none are chosen.
        """
        from featpipe.datasets.dataset import SourceRequest, splits_of  # noqa: PLC0415 - NumPy

        images = SourceRequest.of(self)
        options = images.options(context, download=download)
        splits = list(self.split or splits_of(self.dataset, options))
        if len(splits) > 2:
            what = "Fine-tuning takes one training split and one test split."
            advice = f"--split {splits[0]},{'test' if 'test' in splits else splits[1]}"
            raise UsageError(what, got=", ".join(splits), next_step=advice)
        alone = self.protocol.partition(":")[0] in ("kfold", "holdout")
        return [images.open(split, options) for split in splits[: 1 if alone else 2]]

    def resolved(self, automatic: Mapping[str, Any]) -> Self:
        """Return the step as it is identified: equal for options that mean the same.

        Automatic options are replaced by what ``automatic`` says that they mean; torch's own
        defaults of an optimizer, and the cross-entropy, which is always there, are left out.
        """
        default = {name: option.default for name, option in options_of(type(self)).items()}
        changed = {k: v for k, v in automatic.items() if getattr(self, k) == default[k]}
        usual = OPTIMIZERS[self.optimizer][1].items()
        changed |= {k: default[k] for k, value in usual if getattr(self, k) == value}
        loss = tuple(term for term in self.loss if term != CROSS_ENTROPY) or (CROSS_ENTROPY,)
        return self.replace(**changed, loss=loss, runtime=effective_runtime(self.runtime))

    def request(
        self, context: Context, sources: Sequence[Any], automatic: Mapping[str, Any]
    ) -> str:
        """Return the fingerprint of what is asked for, as far as it is known without torch.

        ``automatic`` is what the automatic options mean, as an earlier result recorded it.
        """
        step, file = self.resolved(automatic), user_path(self.weights)
        hashes = FileHashes(context.workspace.hashes)
        family, _, name = backbone_name(self.model).partition(":")
        weights = hashes.one(file) if file.is_file() else step.weights
        if name:
            weights = weights_identity(self.model, self.weights, hashes, download=self.download)
        inputs = {
            "images": [[source.split, len(source), source.fingerprint] for source in sources],
            "model": [family, name],
            "weights": weights,
            "norm": self.norm,
            "dtype": self.dtype,
            "device": step.device.partition(":")[0],
            "torch": package_version("torch"),
        }
        return step.key(inputs, **step.row_lists())

    def status(self, context: Context) -> Status:
        """Say whether the same was asked for before and all its files exist."""
        sources = self.open_images(context, download=False)
        for path, content in () if self.force else self._results(context):
            # Results without this entry were made when auto was decided for each image.
            automatic = {"fit": "per image", **content["extra"].get("automatic", {})}
            if content["extra"].get("request") != self.request(context, sources, automatic):
                continue
            names, digests = content["files"], content["digests"]
            files = [path.parent / names["predictions"], context.workspace.models / names["model"]]
            if not all(file.exists() for file in files):
                continue
            found = FileHashes(context.workspace.hashes).many(files)
            if found == [digests["predictions"], digests["model"]]:
                return Status(True, "result is there", content["key"][:8], (path,))
            return Status(False, "its files were changed after they were written")
        return Status(False, "no such result yet")

    def estimate(self, context: Context) -> tuple[float, float | None, str] | None:
        """Return the cost of the last training of this network, preferably on this dataset."""
        alike = [c for _, c in self._results(context) if c["settings"]["model"] == self.model]
        if not alike:
            return None
        here = short_name(self.dataset)
        last = max(alike, key=lambda one: (one["dataset"]["name"] == here, one["created"]))
        cost, epochs = last["cost"], last["settings"]["epochs"]
        seconds = (cost["total_seconds"] - cost["extract_seconds"]) * self.epochs / epochs
        basis = f"(as the last one on {last['dataset']['name']}, by epochs)"
        return seconds, cost["model_bytes"], basis

    def run(self, context: Context) -> Outcome:
        """Train and test, unless the same result exists already."""
        self.check_requirements()
        from featpipe.finetuning.run import FinetuneData, run_finetune  # noqa: PLC0415 - torch

        return run_finetune(FinetuneData(self, context))

    def _results(self, context: Context) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield its results; NumPy, which reads them whole, is not imported."""
        for path in sorted(context.workspace.results.glob(f"*-{self.name}-*.json")):
            with suppress(OSError, ValueError):
                content = unsealed(read_json(path))
                if content.get("method") == self.name:
                    yield path, content
