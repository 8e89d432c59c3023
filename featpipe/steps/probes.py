"""The steps that train a classifier on stored features, or map a stored classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featpipe.steps import grammar
from featpipe.steps.oldbase import LARGEST_SEED, Step, option


@dataclass(frozen=True, kw_only=True)
class EvaluationStep(Step):
    """What all methods that work from a store have in common."""

    runner = "featpipe.evaluate:run_evaluation"

    dataset: str | None = option(
        None, help="Dataset whose stores are used; may be left out where there is only one."
    )
    model: str | None = option(
        None, help="Backbone whose stores are used; may be left out where there is only one."
    )
    layer: str | None = option(None, help="Stored layer to use; default: the first one.")
    train: Path | None = option(None, help="This store holds the training rows.")
    test: Path | None = option(None, help="This store holds the test rows.")
    protocol: str = option(
        "auto",
        help="split: the dataset's own train and test rows; folds: train on each official fold; "
        "fold:K: on one of them; kfold:K: cross-validation; holdout:F: a share F of the rows is "
        "tested; all (zeroshot only): every row is tested. auto: split where there are two "
        "stores, else holdout:0.2.",
        grammar=grammar.protocol,
    )
    seed: int = option(0, help="Seed of every random choice.", minimum=0, maximum=LARGEST_SEED)
    title: str | None = option(None, help="Name of the method in tables and reports.")
    force: bool = option(False, help="Compute again what is up to date.")


@dataclass(frozen=True, kw_only=True)
class ProbeStep(EvaluationStep):
    """What all trained probes have in common."""

    validation: str = option(
        "auto",
        help="How hyper-parameters are chosen on training rows: holdout:F or kfold:K; "
        "auto: kfold:3 below 2000 training rows, else holdout:0.2.",
        grammar=grammar.validation,
    )
    train_per_class: tuple[int, ...] | None = option(
        None, help="Low-shot curve: train on N rows of each class, for each N.", minimum=1
    )
    repeats: int = option(5, help="Random draws for each N of a low-shot curve.", minimum=1)
    save_model: bool = option(True, help="Save the trained classifier beside the result.")

    def check(self) -> None:
        """Refuse a protocol without training rows."""
        grammar.need_training(self.protocol)


@dataclass(frozen=True, kw_only=True)
class SvmStep(ProbeStep):
    """One-vs-rest linear support vector machine on standardised features."""

    kind = "svm"
    chosen = ("c",)
    summary = "Train a one-vs-rest linear SVM on stored features and test it once."
    examples = (
        "featpipe svm",
        "featpipe svm --model resnet50 --dataset stl10 --protocol folds",
        "featpipe svm --train-per-class 1,2,5,10,50,100",
    )
    c: tuple[float, ...] = option(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1), help="Values of C to choose from.", minimum=1e-12
    )
    max_iter: int = option(5000, help="Iterations of the solver at most.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LogisticStep(ProbeStep):
    """Multinomial logistic regression on standardised features."""

    kind = "logistic"
    chosen = ("c",)
    summary = "Train a multinomial logistic probe on stored features and test it once."
    examples = ("featpipe logistic", "featpipe logistic --protocol kfold:5")
    c: tuple[float, ...] = option(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0), help="Values of C to choose from.", minimum=1e-12
    )
    max_iter: int = option(2000, help="Iterations of the solver at most.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class KnnStep(ProbeStep):
    """Nearest neighbours by cosine."""

    kind = "knn"
    chosen = ("k",)
    summary = "Classify by the nearest neighbours (cosine), k chosen on validation rows."
    examples = ("featpipe knn", "featpipe knn --k 1,5,20")
    k: tuple[int, ...] = option(
        (1, 3, 5, 10, 20, 50), help="Numbers of neighbours to choose from.", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class CentroidStep(ProbeStep):
    """Nearest class mean."""

    kind = "centroid"
    summary = "Classify by the nearest class mean of L2-normalised features."
    examples = ("featpipe centroid",)


@dataclass(frozen=True, kw_only=True)
class ZeroshotStep(EvaluationStep):
    """The backbone's own classifier, mapped to the dataset's classes plus "other"."""

    kind = "zeroshot"
    summary = "Map the backbone's own classifier to the dataset's classes plus 'other'."
    examples = (
        "featpipe zeroshot --policy argmax",
        "featpipe zeroshot --map my_classes.csv --policy restricted",
    )
    policy: str = option(
        "argmax",
        help="argmax: the highest of all source classes, mapped; group: probabilities summed by "
        "target class, other included; restricted: among target classes only.",
        choices=("argmax", "group", "restricted"),
    )
    map: str | None = option(
        None, help="Label map: a built-in name or a CSV file; default: the one that fits."
    )
