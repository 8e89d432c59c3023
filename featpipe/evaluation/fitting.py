"""Fit one probe on splits: choose on training rows, refit on all of them, test once, calibrate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import joblib
import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from featpipe.errors import FitError, UsageError
from featpipe.evaluation import on_ray
from featpipe.evaluation.assemble import SplitPredictions
from featpipe.evaluation.classifier import as_logits, predict_with_scores
from featpipe.evaluation.protocol import RowSet, Split, StoredRows, no_labels, validation_folds
from featpipe.probes.base import Probe
from featpipe.probes.solvers import ScikitLearn, Strategy, learners
from featpipe.progress import SILENT, Progress

# A fit of a linear classifier took 0.2 to 0.3 µs per number in its rows (800 × 512 features, mean
# over the grid, one 2.5 GHz core); starting workers that import scikit-learn takes seconds.
_SECONDS_PER_VALUE = 2.5e-7
_WORTH_WORKERS_SECONDS = 10.0
_REFERENCE_TOL = 1e-6  # by default L-BFGS stops while a tenth of a probability may still change
_WIDEST = 12.0  # range of the logarithm of a temperature, both ways
_BATCHED_BYTES = 12  # of memory for each feature of a row, where all are fitted together


def fit_splits(
    splits: Sequence[Split], probe: Probe, jobs: int = 1, progress: Progress = SILENT
) -> Iterator[tuple[BaseEstimator, SplitPredictions]]:
    """Fit a probe on every split.

    Results do not depend on ``jobs``: splits are fitted in parallel, or the parts of a single one,
    and sums have a fixed order. The batched solver uses threads, scikit-learn processes. On a
    cluster, splits are fitted on its cores; of a single split, the candidates, unless batched.

    Yields
    ------
    estimator : BaseEstimator
        Fitted on all training rows of a split; splits come in their order, as soon as each is done.
    predictions : SplitPredictions
        ``facts`` holds ``chosen`` (hyper-parameters, and how they were chosen), ``search`` (value,
        validation accuracy and convergence of each grid point), ``solver`` (which one, and what it
        reports about its solution), ``converged`` and ``seconds``.
    """
    for split in splits:
        check_rows(split, probe)
    workers = workers_for(splits, probe, jobs)
    with ExitStack() as stack:
        if spread := probe.engine == "ray":
            stack.enter_context(on_ray.on_cluster(probe.address, progress))
            check_memory(splits, probe, 1, on_ray.memory_of_nodes())
        else:
            check_memory(splits, probe, workers, psutil.virtual_memory().available)
        stack.enter_context(threadpool_limits(1))
        fits: Iterable[Any]
        if len(splits) == 1:
            fits = [_fit_split(splits[0], probe, jobs, spread=spread)]
        elif spread:
            fits = on_ray.fit_there(_fit_split, splits, probe)
        elif is_batched(splits, probe):
            threads = stack.enter_context(ThreadPoolExecutor(joblib.effective_n_jobs(jobs)))
            fits = threads.map(lambda split: _fit_split(split, probe, 1), splits)
        else:  # with one worker, in this process
            parallel = joblib.Parallel(workers, backend="loky", return_as="generator")
            fits = parallel(joblib.delayed(_fit_split)(split, probe, 1) for split in splits)
        for split, (estimator, answers, facts) in zip(splits, fits, strict=True):
            predicted, scores, probabilities = answers
            yield estimator, SplitPredictions(split, predicted, scores, probabilities, facts=facts)


def is_batched(splits: Sequence[Split], probe: Probe) -> bool:
    """Return whether the batched solver fits every split, all candidates together."""
    width = splits[0].train.width(probe.layer)
    return all(probe.strategy(len(split.train), width).name == "batched" for split in splits)


def _fit_split(
    split: Split, probe: Probe, jobs: int, *, spread: bool = False
) -> tuple[BaseEstimator, Any, dict[str, Any]]:
    """Choose the hyper-parameter on training rows, refit on all of them, predict the test rows.

    With ``spread``, joblib works on a cluster.
    """
    X, y = training_rows(split, probe), split.train.labels
    strategy = probe.strategy(*X.shape)
    if spread and isinstance(X, np.ndarray) and strategy.name != "batched":
        X = on_ray.PlacedArray.of(X)
    workers = workers_for([split], probe, jobs)
    here = {"backend": "loky", "n_jobs": workers, "inner_max_num_threads": 1}
    with threadpool_limits(1), nullcontext() if spread else joblib.parallel_config(**here):
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
        return probe.default(), {"by": "default: too few rows of a class for validation"}, []
    folds, on = cv
    fewest = min(len(train) for train, _ in folds)
    values = [value for value in probe.candidates() if probe.admits(value, fewest)]
    if not values:
        return probe.default(), {"by": "default: too few training rows to validate any value"}, []
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
    """Fit the chosen model precisely with scikit-learn's solver, and compare the answers."""
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


def calibrate(split: Split, probe: Probe, chosen: dict[str, Any], jobs: int) -> dict[str, Any]:
    """Find the temperature that turns the scores of a probe into calibrated probabilities.

    Scores, or the logarithms of probabilities, are divided by a temperature T and go through a
    softmax (Guo et al. 2017, "On calibration of modern neural networks", section 4.2). T minimises
    the log loss of held-out training rows under models with the same settings: ``chosen`` is the
    result's record of what was chosen on these rows.

    Returned are ``temperature`` with the number of ``rows`` it is fitted on and their ``log_loss``,
    or the ``reason`` why there is none.
    """
    y = split.train.labels
    if (parts := validation_folds("auto", y, split.train.groups, probe.seed)) is None:
        return {"reason": "a class has too few training rows to hold some out"}
    X, (folds, on) = training_rows(split, probe), parts
    if isinstance(X, StoredRows):
        return {"reason": "the training rows do not fit into memory"}
    strategy = probe.strategy(*X.shape)
    value = next((v for v in probe.candidates() if {**chosen, **probe.recorded(v)} == chosen), None)
    known, n_classes, logits, truth = np.unique(y), len(split.train.store.classes), [], []
    with threadpool_limits(1):
        for train, held_out in folds:
            try:
                estimator, _ = strategy.fit(X[train], y[train], value, jobs)
                _, scores, graded = predict_with_scores(estimator, X[held_out], n_classes)
            except ValueError as error:  # more neighbours than rows, for example
                return {"reason": f"a part of the training rows is not enough: {error}"}
            if scores is None:
                return {"reason": "the classifier gives no scores"}
            if not np.isfinite(scores).all():
                return {"reason": "the classifier gives scores that are not finite"}
            logits.append(as_logits(scores[:, known], graded=graded))
            truth.append(np.searchsorted(known, y[held_out]))
    temperature, loss = fit_temperature(np.concatenate(logits), np.concatenate(truth))
    return {"temperature": temperature, "log_loss": loss, "rows": sum(map(len, truth)), "on": on}


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Return the temperature with the least log loss, and that loss in nats per row.

    Examples
    --------
    >>> logits = np.array([[2.0, 0.0]] * 4)  # right three times in four: log 3 would be
    >>> temperature, _ = fit_temperature(logits, np.array([0, 0, 0, 1]))
    >>> bool(abs(2 / temperature - np.log(3)) < 1e-3)
    True
    """
    scale = float(np.abs(logits).max()) or 1.0

    def loss(log_t: float) -> float:
        scaled = logits / (scale * np.exp(log_t))
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(truth)), truth]))

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded")
    return scale * float(np.exp(found.x)), float(found.fun)


def training_rows(split: Split, probe: Probe) -> NDArray[np.float32] | StoredRows:
    """Return the features of the training rows; if memory is short, they are read in blocks."""
    n, width = len(split.train), split.train.width(probe.layer)
    scarce = n * width * _BATCHED_BYTES > psutil.virtual_memory().available / 2
    if scarce and probe.strategy(n, width).reads_blocks:
        return StoredRows(split.train, probe.layer)
    return split.train.features(probe.layer)


def at_edge(accuracies: NDArray[np.float64]) -> bool:
    """Return whether accuracy was still rising where the grid ends; a plateau is no edge."""
    best, last = int(np.argmax(accuracies)), len(accuracies) - 1
    return best == last > 0 or (best == 0 < last and bool(accuracies[0] > accuracies[1]))


def check_rows(split: Split, probe: Probe | None = None) -> None:
    """Refuse rows that no classifier, or not this probe, can validly be trained or tested on."""
    store, tested = split.train.store, split.test.store
    if not len(split.test):
        raise FitError(f"{split.name}: there is no labelled test row.", where=tested.path)
    if tested.classes != store.classes:
        what = "The training and the test store have different classes."
        expected, got = (", ".join(one.classes[:8]) for one in (store, tested))
        raise FitError(what, where=tested.path, expected=expected, got=got)
    if not len(split.train) and not (store.labels >= 0).any():
        raise no_labels(store)
    found = np.unique(split.train.labels)
    if len(found) < 2:
        what = f"{split.name}: a classifier needs training rows of at least two classes."
        got = ", ".join(store.classes[c] for c in found) or "no labelled row"
        raise FitError(what, where=store.path, got=got)
    if probe is None:
        return
    train, test = (each.features(probe.layer).shape[1:] for each in (store, tested))
    if train != test:
        what = "The training and the test rows have different features."
        expected, got = (f"shape {shape} per image" for shape in (train, test))
        raise FitError(what, where=tested.path, expected=expected, got=got)
    if probe.tuned and not probe.admits(probe.default(), len(split.train)):
        what = f"{split.name}: {probe.tuned}={probe.default()} needs as many training rows."
        got, advice = f"{len(split.train)} training rows", f"--{probe.tuned} with a smaller value"
        raise FitError(what, where=store.path, got=got, next_step=advice)


def workers_for(splits: Sequence[Split], probe: Probe, jobs: int) -> int:
    """Return how many processes to use: one where starting more costs more than it saves.

    The batched solver uses threads.
    """
    if jobs == 0:
        raise UsageError("--jobs cannot be 0.", expected="-1 (one per core), or 1 and more")
    if is_batched(splits, probe):
        return 1
    width = splits[0].train.width(probe.layer)
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


def check_memory(splits: Sequence[Split], probe: Probe, workers: int, available: float) -> None:
    """Refuse a fit that needs more than the ``available`` bytes of memory, before it starts."""
    largest, width = max(len(split.train) for split in splits), splits[0].train.width(probe.layer)
    reads_blocks = probe.strategy(largest, width).reads_blocks
    alone = largest * width * probe.bytes_per_value
    in_blocks = reads_blocks and not getattr(probe, "check_solver", False)
    if in_blocks or alone * workers <= available:
        return
    advice = "--train-per-class N, a layer with fewer features"
    if probe.bytes_per_value > 12:
        advice += ", or featpipe centroid, which needs less"
    if reads_blocks:
        advice = "leave out --check-solver: scikit-learn needs all rows at once"
    elif fewer := int(available // alone):
        advice = f"--jobs {fewer}"
    what, expected = "This fit would not fit into memory.", f"at most {available / 1e9:.1f} GB"
    got = f"{alone * workers / 1e9:.1f} GB for {largest} training rows of {width} features"
    got += f" in {workers} {'process' if workers == 1 else 'processes'}"
    raise FitError(what, expected=expected, got=got, next_step=advice)


def n_parameters(estimator: BaseEstimator) -> int | None:
    """Return how many numbers a fitted classifier has learned: weights, biases, means.

    Neighbours learn none; for other kinds, such as trees, the number is not known.
    """
    names = ("coef_", "intercept_", "means_")
    solvers = learners(estimator)
    found = [getattr(s, name).size for s in solvers for name in names if hasattr(s, name)]
    rows_only = all(hasattr(s, "n_samples_fit_") for s in solvers)
    return int(sum(found)) if found or rows_only else None
