"""Fit one probe on splits (choose on training rows, refit on all of them, test once), and keep it.

Trained classifiers are skops files, which hold no pickle and run no code.
"""

from __future__ import annotations

import importlib
import math
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import joblib
import numpy as np
import psutil
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.tree._tree import Tree
from threadpoolctl import threadpool_limits

from featpipe.errors import FitError, ResultError, UsageError
from featpipe.evaluation.assemble import SplitPredictions
from featpipe.evaluation.protocol import RowSet, Split, StoredRows, no_labels, validation_folds
from featpipe.evaluation.result import Result
from featpipe.fingerprint import check_archive, seal_archive
from featpipe.probes.base import Probe
from featpipe.probes.solvers import ScikitLearn, Strategy, learners
from featpipe.workspace import atomic_write

# A fit of a linear classifier took 0.2 to 0.3 µs per number in its rows (800 × 512 features, mean
# over the grid, one 2.5 GHz core); starting workers that import scikit-learn takes seconds.
_SECONDS_PER_VALUE = 2.5e-7
_WORTH_WORKERS_SECONDS = 10.0
_REFERENCE_TOL = 1e-6  # by default L-BFGS stops while a tenth of a probability may still change
_BATCHED_BYTES = 12  # of memory for each feature of a row, where all are fitted together

_MODEL_FORMAT = 2  # 1 is that of featpipe 0.1
# Beside what skops trusts: plain classes, and trees, whose nodes are checked before they are used.
_TRUSTED = [
    "featpipe.probes.estimators.NearestMean",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
]


def fit_splits(
    splits: Sequence[Split], probe: Probe, jobs: int = 1
) -> Iterator[tuple[BaseEstimator, SplitPredictions]]:
    """Fit a probe on every split.

    Results do not depend on ``jobs``: splits are fitted in parallel, or the parts of a single one,
    and sums have a fixed order. What fits all candidates together needs threads only,
    scikit-learn processes.

    Yields
    ------
    estimator : BaseEstimator
        Fitted on all training rows of a split; splits come in their order, as soon as each is done.
    predictions : SplitPredictions
        ``facts`` holds ``chosen`` (hyper-parameters, and how they were chosen), ``search`` (value,
        validation accuracy and convergence of each grid point), ``solver`` (which one, and what it
        says of its solution), ``converged`` and ``seconds``.
    """
    for split in splits:
        check_rows(split, probe)
    workers = workers_for(splits, probe, jobs)
    check_memory(splits, probe, workers)
    with threadpool_limits(1), ThreadPoolExecutor(joblib.effective_n_jobs(jobs)) as threads:
        fits: Iterable[Any]
        if len(splits) == 1:
            fits = [_fit_split(splits[0], probe, jobs)]
        elif is_batched(splits, probe):
            fits = threads.map(lambda split: _fit_split(split, probe, 1), splits)
        elif workers == 1:
            fits = (_fit_split(split, probe, 1) for split in splits)
        else:
            with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
                parallel = joblib.Parallel(return_as="generator")
            fits = parallel(joblib.delayed(_fit_split)(split, probe, 1) for split in splits)
        for split, (estimator, answers, facts) in zip(splits, fits, strict=True):
            predicted, scores, probabilities = answers
            yield estimator, SplitPredictions(split, predicted, scores, probabilities, facts=facts)


def is_batched(splits: Sequence[Split], probe: Probe) -> bool:
    """Return whether every split is fitted with all candidates together."""
    width = width_of(splits[0], probe)
    return all(probe.strategy(len(split.train), width).name == "batched" for split in splits)


def _fit_split(split: Split, probe: Probe, jobs: int) -> tuple[BaseEstimator, Any, dict[str, Any]]:
    """Choose the hyper-parameter on training rows, refit on all of them, predict the test rows."""
    X, y = training_rows(split, probe), split.train.labels
    strategy = probe.strategy(*X.shape)
    with (
        threadpool_limits(1),
        joblib.parallel_config(
            "loky", n_jobs=workers_for([split], probe, jobs), inner_max_num_threads=1
        ),
    ):
        times = [time.perf_counter()]
        value, how, search = _choose(X, split.train, probe, strategy, jobs)
        times.append(time.perf_counter())
        estimator, solved = strategy.fit(X, y, value, jobs)
        times.append(time.perf_counter())
        test, classes = split.test.features(probe.layer), split.train.store.classes
        answers = predict_with_scores(estimator, test, len(classes))
        times.append(time.perf_counter())
    facts = {
        "chosen": {**probe.recorded(value), **how} if probe.tuned else {},
        "search": search,
        "converged": solved.pop("converged"),
        "solver": {"name": strategy.name, **solved},
        "seconds": dict(zip(("search", "fit", "predict"), np.diff(times).tolist(), strict=True)),
    }
    if isinstance(X, StoredRows):
        facts["solver"]["rows"] = "read in blocks: they take too much memory"
    if getattr(probe, "check_solver", False) and strategy.name == "batched":
        facts["reference"] = _compare_with_reference(split, probe, value, answers)
    return estimator, answers, facts


def _choose(
    X: Any, trained: RowSet, probe: Probe, strategy: Strategy, jobs: int
) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Return the best grid value, how it was chosen, and the score of every grid point."""
    if not probe.chooses:
        return probe.default(), {"by": "given"}, []
    y = trained.labels
    cv = validation_folds(probe.validation, y, trained.groups, probe.seed)
    if cv is None:
        return probe.default(), {"by": "default: too few rows per class to choose"}, []
    folds, on = cv
    fewest = min(len(train) for train, _ in folds)
    values = [value for value in probe.candidates() if probe.admits(value, fewest)]
    if not values:
        return probe.default(), {"by": "default: too few rows for the other values"}, []
    found = strategy.search(X, y, folds, values, jobs)
    validated = sum(len(rows) for _, rows in folds)
    rows = [
        {**probe.recorded(value), **one, "rows": validated}
        for value, one in zip(values, found, strict=True)
    ]
    accuracies = np.array([row["accuracy"] for row in rows])
    how: dict[str, Any] = {"by": f"accuracy on {on} of the training rows"}
    if probe.open_ended and at_edge(accuracies):
        how["at_edge"] = True
    return values[int(np.argmax(accuracies))], how, rows  # the first best: most regularised


def _compare_with_reference(
    split: Split, probe: Probe, value: Any, answers: tuple[Any, Any, bool]
) -> dict[str, Any]:
    """Fit the chosen model with scikit-learn's solver, precisely; say what it answers otherwise."""
    X, y = split.train.features(probe.layer), split.train.labels
    began = time.perf_counter()
    estimator, solved = ScikitLearn(probe, tol=_REFERENCE_TOL).fit(X, y, value, 1)
    seconds = time.perf_counter() - began
    test, n_classes = split.test.features(probe.layer), len(split.train.store.classes)
    predicted, scores, _ = predict_with_scores(estimator, test, n_classes)
    known = estimator.classes_
    return {
        **solved,
        "seconds": seconds,
        "answers": len(predicted),
        "different_answers": int(np.count_nonzero(predicted != answers[0])),
        "largest_difference": float(np.abs(scores - answers[1])[:, known].max()),
    }


def training_rows(split: Split, probe: Probe) -> NDArray[np.float32] | StoredRows:
    """Return the features of the training rows, or what reads them where memory is short."""
    n_bytes = len(split.train) * width_of(split, probe) * _BATCHED_BYTES
    strategy = probe.strategy(len(split.train), width_of(split, probe))
    if strategy.reads_blocks and n_bytes > psutil.virtual_memory().available / 2:
        return StoredRows(split.train, probe.layer)
    return split.train.features(probe.layer)


def at_edge(accuracies: NDArray[np.float64]) -> bool:
    """Return whether accuracy was still rising where the grid ends; a plateau is no edge."""
    best, last = int(np.argmax(accuracies)), len(accuracies) - 1
    return best == last > 0 or (best == 0 < last and bool(accuracies[0] > accuracies[1]))


def predict_with_scores(
    estimator: BaseEstimator, X: NDArray[Any], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, bool]:
    """Return predictions, a score for every class of the dataset, and whether it is a probability.

    Classes that no training row had get the lowest score there is, or probability zero.
    """
    predicted = estimator.predict(X).astype(np.int64)
    probabilities = hasattr(estimator, "predict_proba")
    if probabilities:
        known = estimator.predict_proba(X)
    elif hasattr(estimator, "decision_function"):
        known = estimator.decision_function(X)
        if known.ndim == 1:  # scikit-learn gives one column for two classes
            known = np.column_stack([-known, known])
    else:
        return predicted, None, False
    lowest = 0.0 if probabilities else float(known.min()) - 1.0
    scores = np.full((len(known), n_classes), lowest, dtype=np.float32)
    scores[:, estimator.classes_] = known
    return predicted, scores, probabilities


def n_parameters(estimator: BaseEstimator) -> int:
    """Return how many numbers a fitted classifier has learned (weights, biases, means)."""
    names = ("coef_", "intercept_", "means_")
    solvers = learners(estimator)
    return int(sum(getattr(s, name).size for s in solvers for name in names if hasattr(s, name)))


def check_rows(split: Split, probe: Probe | None = None) -> None:
    """Refuse rows that no classifier, or not this probe, can validly be trained or tested on."""
    store, tested = split.train.store, split.test.store
    if not len(split.test):
        raise FitError(f"{split.name}: there is no labelled test row.", where=tested.path)
    if tested.classes != store.classes:
        raise FitError(
            "The training and the test store have different classes.",
            where=tested.path,
            expected=", ".join(store.classes[:8]),
            got=", ".join(tested.classes[:8]),
        )
    if not len(split.train) and not (store.labels >= 0).any():
        raise no_labels(store)
    found = np.unique(split.train.labels)
    if len(found) < 2:
        raise FitError(
            f"{split.name}: a classifier needs training rows of at least two classes.",
            where=store.path,
            got=", ".join(store.classes[c] for c in found) or "no labelled row",
        )
    if probe is None:
        return
    train, test = (each.features(probe.layer).shape[1:] for each in (store, tested))
    if train != test:
        raise FitError(
            "The training and the test rows have different features.",
            where=tested.path,
            expected=f"shape {train} per image",
            got=f"shape {test} per image",
        )
    if probe.tuned and not probe.admits(probe.default(), len(split.train)):
        raise FitError(
            f"{split.name}: {probe.tuned}={probe.default()} needs as many training rows.",
            where=store.path,
            got=f"{len(split.train)} training rows",
            next_step=f"--{probe.tuned} with a smaller value",
        )


def workers_for(splits: Sequence[Split], probe: Probe, jobs: int) -> int:
    """Return how many processes to use: one where starting more costs more than it saves.

    What fits all candidates together uses threads.
    """
    if jobs == 0:
        raise UsageError("--jobs cannot be 0.", expected="-1 (one per core), or 1 and more")
    if is_batched(splits, probe):
        return 1
    width = width_of(splits[0], probe)
    rows = sum(len(split.train) * n_fits(split, probe) for split in splits)
    solvers = len(splits[0].train.store.classes) if probe.solver_per_class else 1
    if rows * width * solvers * _SECONDS_PER_VALUE < _WORTH_WORKERS_SECONDS:
        return 1
    return joblib.effective_n_jobs(jobs)


def n_fits(split: Split, probe: Probe) -> int:
    """Return how often a probe is fitted on one split: once per grid point and fold, and refit."""
    if not probe.chooses:
        return 1
    cv = validation_folds(probe.validation, split.train.labels, split.train.groups, probe.seed)
    return 1 if cv is None else len(probe.candidates()) * len(cv[0]) + 1


def check_memory(splits: Sequence[Split], probe: Probe, workers: int) -> None:
    """Refuse a fit that would not fit into memory, before it starts."""
    largest, width = max(len(split.train) for split in splits), width_of(splits[0], probe)
    reads_blocks = probe.strategy(largest, width).reads_blocks
    if reads_blocks and not getattr(probe, "check_solver", False):
        return
    alone = largest * width * probe.bytes_per_value
    available = psutil.virtual_memory().available
    if alone * workers <= available:
        return
    advice = "--train-per-class N, a layer with fewer features"
    if probe.bytes_per_value > 12:
        advice += ", or featpipe centroid, which needs less"
    if reads_blocks:
        advice = "leave out --check-solver: scikit-learn needs all rows at once"
    elif fewer := int(available // alone):
        advice = f"--jobs {fewer}"
    raise FitError(
        "This fit would not fit into memory.",
        expected=f"at most {available / 1e9:.1f} GB",
        got=f"{alone * workers / 1e9:.1f} GB for {largest} training rows of {width} features"
        f" in {workers} {'process' if workers == 1 else 'processes'}",
        next_step=advice,
    )


def width_of(split: Split, probe: Probe) -> int:
    """Return how many numbers a row holds."""
    return math.prod(split.train.store.features(probe.layer).shape[1:])


# Trained classifiers on the disk.


@dataclass(frozen=True)
class TrainedModel:
    """A classifier with what is needed to use it on new images."""

    estimator: BaseEstimator  # fitted pipeline: features → classes
    classes: tuple[str, ...]
    backbone: dict[str, Any]  # its description, as in the store's manifest
    layer: str
    title: str
    weights: str  # where the weights came from when the features were made
    request: dict[str, Any]  # options of the extraction that change the preprocessing
    temperature: float | None = None  # of its probabilities; None if they are not calibrated
    model: str = ""  # what the backbone was asked for as, where that is more than its name


class UnsafeModelError(ResultError):
    """A classifier that skops cannot keep, or only in a way that could run code when loaded."""


def save_model(path: Path, estimator: BaseEstimator, result: Result) -> int:
    """Write a classifier and what it needs of its features; return the size in bytes.

    Raises
    ------
    UnsafeModelError
        If it could not be loaded again by :func:`load_model`; then nothing is written.
    """
    store = result.stores[0]
    model = TrainedModel(
        estimator,
        classes=tuple(result.dataset["classes"]),
        backbone=store["manifest"]["backbone"],
        layer=store["layer"],
        title=result.title,
        weights=store["run"].get("weights", "DEFAULT"),
        request=store["run"].get("request", {}),
        temperature=result.extra.get("calibration", {}).get("temperature"),
        model=store["run"].get("model", ""),
    )
    from skops import io as skops_io  # noqa: PLC0415 - takes seconds

    with atomic_write(path) as temporary:
        try:
            skops_io.dump({"featpipe_model": _MODEL_FORMAT, **vars(model)}, temporary)
            unknown = skops_io.get_untrusted_types(file=temporary)
            foreign = sorted(name for name in unknown if not _is_trusted(name))
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise UnsafeModelError(f"The model is not saved: {error}") from error
        if foreign:
            raise UnsafeModelError(
                "The model is not saved: a file of skops would hold types that it does not trust "
                f"({', '.join(foreign)})."
            )
        seal_archive(temporary)
    return path.stat().st_size


def load_model(path: Path) -> TrainedModel:
    """Read a classifier; only types of scikit-learn, numpy and featpipe are loaded.

    Raises
    ------
    ResultError
        If the file is missing, damaged, of featpipe 0.1, or holds anything else.
    """
    from skops import io as skops_io  # noqa: PLC0415 - takes seconds

    if not path.is_file():
        raise ResultError("There is no such model.", where=path, next_step="featpipe results")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, as no model of featpipe is")
        unknown = skops_io.get_untrusted_types(file=path)
        foreign = sorted(name for name in unknown if not _is_trusted(name))
        bundle = None if foreign else skops_io.load(path, trusted=unknown)
    except Exception as error:  # skops raises whatever its parts raise on damaged files
        raise _unreadable(path, error) from error
    version = bundle.get("featpipe_model") if isinstance(bundle, dict) else None
    if version == 1 or foreign == ["featpipe.probes.neighbours.NearestMean"]:
        raise ResultError(
            "This model was written by featpipe 0.1.",
            where=path,
            next_step="train it again, then delete this file",
        )
    if foreign:
        raise ResultError(
            "The model holds types that are not trusted, so it is not loaded.",
            where=path,
            got=", ".join(foreign),
        )
    parts = {item.name for item in fields(TrainedModel)}
    required = {item.name for item in fields(TrainedModel) if item.default is MISSING}
    if not isinstance(bundle, dict) or version != _MODEL_FORMAT or not required <= set(bundle):
        raise ResultError("This is not a model of featpipe.", where=path)
    model = TrainedModel(**{name: bundle[name] for name in parts & set(bundle)})
    try:
        check_archive(path)
        _try_out(model)
    except Exception as error:  # an estimator whose parts do not fit together may raise anything
        raise _unreadable(path, error) from error
    return model


def import_skops_fast() -> None:
    """Import skops without all of scikit-learn, to be called where nothing else needs skops.

    skops imports every estimator, for two seconds, to list those that it trusts; without the list
    :func:`load_model` looks a name up.
    """
    with mock.patch("sklearn.utils.all_estimators", list):
        importlib.import_module("skops.io")


def _is_trusted(name: str) -> bool:
    """Return whether objects of a type may be loaded: scikit-learn's estimators, and a few more."""
    module, _, kind = name.rpartition(".")
    if name in _TRUSTED or not module.startswith("sklearn.") or kind.startswith("_"):
        return name in _TRUSTED
    found = getattr(importlib.import_module(module), kind, None)
    return isinstance(found, type) and issubclass(found, BaseEstimator)


def _try_out(model: TrainedModel) -> None:
    """Raise whatever comes where a model cannot answer, or its facts are of other types."""
    for item in ("layer", "title", "model", "weights"):
        if not isinstance(getattr(model, item), str):
            raise TypeError(f"its {item} is no text")
    if not (model.temperature is None or 0 < model.temperature < math.inf):
        raise ValueError("its temperature is no positive number")
    if not isinstance(model.backbone, dict):
        raise TypeError("its backbone is not described")
    if not all(isinstance(name, str) for name in model.classes):
        raise TypeError("its classes have no names")
    _check_trees(model.estimator)
    row = np.zeros((1, model.estimator.n_features_in_), np.float32)
    predicted, scores, _ = predict_with_scores(model.estimator, row, len(model.classes))
    finite = scores is None or np.isfinite(scores).all()
    if not 0 <= predicted[0] < len(model.classes) or not finite:
        raise ValueError("its answers are no classes")


def _check_trees(part: Any, owners: tuple[Any, ...] = ()) -> None:
    """Refuse decision trees whose nodes lead out of them, or back: they are followed blindly.

    ``owners`` are the estimators around a part. A tree asks for no feature that the one around it,
    or the ensemble around that one, does not take.
    """
    if isinstance(part, Tree):
        width = min([part.n_features, *(owner.n_features_in_ for owner in owners[-2:])])
        left, right, nodes = part.children_left, part.children_right, np.arange(part.node_count)
        below = (nodes < left) & (left < len(nodes)) & (nodes < right) & (right < len(nodes))
        known = (part.feature >= 0) & (part.feature < width)
        if not len(nodes) or not (below & known)[left != -1].all():
            raise ValueError("a decision tree is damaged")
    elif isinstance(part, BaseEstimator):
        for value in vars(part).values():
            _check_trees(value, (*owners, part))
    elif isinstance(part, dict):
        _check_trees(list(part.values()), owners)
    elif isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype == object):
        for value in part:
            _check_trees(value, owners)


def _unreadable(path: Path, error: Exception) -> ResultError:
    return ResultError(
        f"The model cannot be read: {str(error).partition(chr(10))[0][:200]}",
        where=path,
        next_step="train it again: the same command with --force",
    )
