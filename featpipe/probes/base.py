"""A probe is a step with a scikit-learn pipeline and a grid of hyper-parameters.

Each probe is one module: a subclass of :class:`Probe` with its options and its
:meth:`Probe.estimator`. Splits, model selection, fits, metrics and files are common to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from featpipe.backbones import MODELS, backbone_name
from featpipe.cluster import OnCluster
from featpipe.errors import UsageError
from featpipe.evaluation.options import RowOptions, TrainingRowOptions
from featpipe.lazy import Lazy
from featpipe.steps import (
    Context,
    Needs,
    Outcome,
    Status,
    Step,
    grammar,
    option,
    options_of,
)

# A step is planned without scikit-learn and NumPy.
estimators, solvers = Lazy("featpipe.probes.estimators"), Lazy("featpipe.probes.solvers")
evaluation, stores = Lazy("featpipe.evaluation.run"), Lazy("featpipe.evaluation.stores")
protocols, results = Lazy("featpipe.evaluation.protocol"), Lazy("featpipe.evaluation.result")

# What "auto" means: with fewer training rows, a single holdout is too noisy and folds are cheap.
FEW_ROWS = 2000
FOLDS = 3
SHARE = 0.2
LARGE = 2_000_000  # features of the training rows: a fit takes seconds
CLASS_WEIGHTS = {"none": None, "balanced": "balanced"}  # their values in scikit-learn


class OnFeatures(Step):
    """A step on the stored features of one dataset × backbone."""

    needs = Needs("features")
    takes_unlabelled: ClassVar[bool] = False  # whether stores without labels need not be named

    dataset: str | None = option(
        None,
        help="Dataset whose stores are used; optional if there is only one.",
        selects_input=True,
    )
    model: str | None = option(
        None,
        help="Backbone whose stores are used; optional if there is only one.",
        selects_input=True,
    )
    layer: str | None = option(
        None,
        help="Stored layer to use; logits: those of the backbone's own classifier. Default: the "
        "first layer.",
    )
    seed: int = option(0, help="Seed of every random choice.", seed=True)
    force: bool = option(
        False, help="Run again even if the result is up to date.", affects_result=False
    )

    def accepts(self, producer: Step) -> bool:
        """Whether this extraction has the dataset, model and layer asked for."""
        made = producer.settings()
        dataset, model, layers = made.get("dataset"), str(made.get("model")), made.get("layer")
        return (
            self.dataset in (None, dataset)
            and (self.model is None or canonical_model(self.model) == canonical_model(model))
            and (layers is None or self.layer in (None, grammar.LOGITS, *layers))
        )

    def planned(self, producer: Step) -> Self:
        """Return the step with the dataset and the model of the extraction."""
        return self.replace(**{name: getattr(producer, name) for name in ("dataset", "model")})


class Evaluation(RowOptions, OnFeatures):
    """A method that is evaluated on stored features."""

    makes = ("result",)

    train: Path | None = option(
        None, help="Store that holds the training rows.", selects_input=True
    )
    test: Path | None = option(None, help="Store that holds the test rows.", selects_input=True)
    protocol: str = option(
        "auto",
        help="split: the dataset's own training and test splits; folds: train on each official "
        "fold; fold:K: on one of them; kfold:K: K-fold cross-validation; holdout:F: test on a "
        "random share F; all: test on every row (zeroshot only). auto: split if there are two "
        f"stores, else holdout:{SHARE}.",
        check=grammar.protocol,
    )
    title: str | None = option(
        None, help="Name of the method in tables and reports.", affects_result=False
    )

    def check(self) -> None:
        """Refuse one store of a pair without the other."""
        if self.test is not None and self.train is None:
            raise UsageError("--test needs --train.", next_step="give both stores, or neither")

    def has_inputs(self) -> bool:
        """Whether the stores are named."""
        return self.train is not None

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Take the stores of one extraction, except those without labels."""
        if not inputs:
            return self
        train, test = stores.train_and_test(map(stores.FeatureStore, inputs[0]))
        return self.replace(train=train.path, test=None if test is None else test.path)

    def status(self, context: Context) -> Status:
        """Look up the result of these options on these stores."""
        setup, path, existing = evaluation.look_up(self, context)
        key = setup.key[:8]
        if existing is None:
            return Status(False, "--force" if self.force else "no such result yet", key)
        return Status(True, "result is there", key, (path,))

    def estimate(self, context: Context) -> tuple[float, float | None, str] | None:
        """Return the time and space of this method's last result, on this dataset if possible."""
        last = results.latest_result(context.workspace.results, self.name, self.dataset)
        if last is None:
            return None
        seconds = last.cost["total_seconds"] - last.cost["extract_seconds"]
        return seconds, last.cost.get("model_bytes"), f"(as the last one on {last.dataset['name']})"

    @property
    def label(self) -> str:
        """The part of a result's name between the model and the key."""
        return self.name

    @property
    def default_title(self) -> str:
        """Name of the method in tables unless the user gives another."""
        raise NotImplementedError

    def subsets(self, splits: list[Any]) -> list[Any]:
        """Return the splits to evaluate, out of those that the protocol makes."""
        return splits

    def resolved(self, splits: list[Any]) -> dict[str, Any]:
        """Return what automatic choices mean on these splits, for the identity."""
        return {"layer": self.layer or splits[0].train.store.layers[0]}

    def answer(self, splits: list[Any], context: Context) -> Any:
        """Predict the test rows of every split; return a ``MethodOutput``."""
        raise NotImplementedError

    def run(self, context: Context) -> Outcome:
        """Train and test, unless the same result exists already."""
        return evaluation.run_evaluation(self, context)


class Probe(OnCluster, TrainingRowOptions, Evaluation):
    """A classifier that is trained on stored features.

    A subclass has a name, options and an :meth:`estimator`. One option may be ``tunable``: a tuple
    of values, of which the best on validation rows is chosen.
    """

    display_name: ClassVar[str]  # in tables
    # Name of the tunable option in the pipeline, as scikit-learn writes it
    # ("logisticregression__C"); empty if nothing is chosen.
    parameter: ClassVar[str] = ""
    open_ended: ClassVar[bool] = False  # whether a value beyond the end of the grid may be better
    # Peak memory of a fit by scikit-learn per number in the training rows, including these,
    # measured with scikit-learn 1.9 on float32 features.
    bytes_per_value: ClassVar[float] = 16
    solver_per_class: ClassVar[bool] = False  # whether the solver runs once per class

    validation: str = option(
        "auto",
        help="How hyper-parameters are chosen on the training rows: holdout:F or kfold:K; "
        f"auto: kfold:{FOLDS} below {FEW_ROWS} training rows, else holdout:{SHARE}.",
        check=grammar.validation,
    )
    train_per_class: tuple[int, ...] | None = option(
        None, help="Low-shot curve: train on N rows per class, for each N.", minimum=1
    )
    repeats: int = option(
        5, help="Random draws per N of a low-shot curve.", minimum=1, maximum=10_000
    )
    save_model: bool = option(
        True, help="Save the trained classifier beside the result.", affects_result=False
    )

    def check(self) -> None:
        """Also refuse a protocol without training rows."""
        super().check()
        grammar.need_training(self.protocol)

    @property
    def default_title(self) -> str:
        """The name in tables, with the number of training rows per class if limited."""
        few = f", {max(self.train_per_class)} per class" if self.train_per_class else ""
        return self.display_name + few

    def subsets(self, splits: list[Any]) -> list[Any]:
        """Draw a few training rows per class if a low-shot curve is asked for."""
        if not self.train_per_class:
            return splits
        return list(protocols.low_shot(splits, self.train_per_class, self.repeats, self.seed))

    def resolved(self, splits: list[Any]) -> dict[str, Any]:
        """Add how the hyper-parameter is chosen on the training rows of each split."""
        used = {"none"}
        if self.chooses:
            resolve = protocols.resolve_validation
            used = {resolve(self.validation, s.train.labels, s.train.groups) for s in splits}
        return {**super().resolved(splits), "validation": " ".join(sorted(used))}

    def answer(self, splits: list[Any], context: Context) -> Any:
        """Train on the training rows of every split and predict its test rows once."""
        return evaluation.train_and_test(self, splits, context)

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Return the unfitted scikit-learn pipeline for training rows of this shape.

        It includes normalisation, which is thus learned from training rows only. The shape may
        decide how fast a fit is (which solver is used), but not its objective.
        """
        raise NotImplementedError

    def strategy(self, n_rows: int, n_features: int) -> Any:
        """Return how rows of this shape are searched and fitted, by a class of ``solvers.py``."""
        return solvers.ScikitLearn(self)

    @property
    def tuned(self) -> str:
        """Name of the option that lists values to choose from; empty if there is none."""
        return next((name for name, s in options_of(type(self)).items() if s.tunable), "")

    def candidates(self) -> tuple[Any, ...]:
        """Return the values to choose from, the most regularised first: ties go to the first."""
        return tuple(sorted(getattr(self, self.tuned))) if self.tuned else ()

    def parameters(self, value: Any) -> dict[str, Any]:
        """Return a value as parameters of the pipeline."""
        return {self.parameter: value}

    def recorded(self, value: Any) -> dict[str, Any]:
        """Return a value under its name in the result."""
        return {self.tuned: value}

    @property
    def chooses(self) -> bool:
        """Whether there is more than one value to choose from."""
        return len(self.candidates()) > 1

    def default(self) -> Any:
        """Return the value to use if there are too few training rows to choose."""
        values = self.candidates()
        return values[len(values) // 2] if values else None

    def admits(self, value: Any, n_rows: int) -> bool:
        """Whether this many rows can be fitted with a value."""
        return True


class LinearProbe(Probe):
    """A linear classifier with an L2 penalty and a grid of C."""

    revision = 2  # 1: searches ended too early for tiny C
    open_ended = True
    hinge: ClassVar[bool]  # squared hinge of each class against the rest, or cross-entropy
    max_iter: int

    solver: str = option(
        "auto",
        help="batched: all classes, folds and values of C together; sklearn: scikit-learn's own; "
        "auto: batched with several values of C or many rows, else sklearn.",
        choices=("auto", "batched", "sklearn"),
        neutral="sklearn",
    )
    check_solver: bool = option(
        False,
        help="Also fit the chosen model with scikit-learn's solver and report differences.",
        affects_result=False,
    )
    class_weight: str = option(
        "none",
        help="balanced: weight rows so that all classes count equally (for an SVM, both sides of "
        "each one-vs-rest problem); none: all rows count equally.",
        choices=tuple(CLASS_WEIGHTS),
    )

    def solver_for(self, n_rows: int, n_features: int) -> str:
        """Return the solver that ``"auto"`` means: the batched one if fits share their work.

        For an SVM that is always faster. scikit-learn's logistic regression stops early by default
        and is as fast for many classes and few folds. Measured on two cores, batched and
        scikit-learn, search of five C on one holdout and refit: 10 classes, 4000 × 2048 features
        1.4 and 3.0 s; 200 classes, 10,000 × 2048 14 and 17 s, 10,000 × 512 5.7 and 5.4 s; 500
        classes, 20,000 × 256 36 and 13 s.
        """
        if self.solver != "auto":
            return self.solver
        return "batched" if self.chooses or n_rows * n_features >= LARGE else "sklearn"

    def resolved(self, splits: list[Any]) -> dict[str, Any]:
        """Add the solver of each split."""
        used = {self.solver_for(len(s.train), s.train.width(self.layer)) for s in splits}
        return {**super().resolved(splits), "solver": " ".join(sorted(used))}

    def strategy(self, n_rows: int, n_features: int) -> Any:
        """Return the strategy of the solver."""
        if self.solver_for(n_rows, n_features) == "sklearn":
            return super().strategy(n_rows, n_features)
        return solvers.BatchedLinear(self)


def canonical_model(name: str) -> str:
    """Return the name of a model in stores; users may ask for it by an alias."""
    return backbone_name(name) if name.partition(":")[0] in MODELS else name
