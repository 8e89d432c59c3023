"""The Python API: what the commands do, as functions.

>>> from featpipe.api import compare, evaluate, extract, report
>>> train, test = extract("digits", "glyphnet")                         # doctest: +SKIP
>>> svm = evaluate("svm", train, test)                                  # doctest: +SKIP
>>> knn = evaluate("knn", train, test, k=(1, 5, 20))                    # doctest: +SKIP
>>> compare([svm, knn]).table()                                         # doctest: +SKIP
>>> report([svm, knn], "reports/digits")                                # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featpipe.errors import UnknownNameError
from featpipe.evaluate.compare import Comparison, compare
from featpipe.progress import SILENT, Progress
from featpipe.registry import did_you_mean
from featpipe.evaluation.result import Result
from featpipe.steps.old import STEPS, Context, EvaluationStep, ExtractStep, ReportStep
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace

__all__ = ["Comparison", "FeatureStore", "Result", "compare", "evaluate", "extract", "report"]


def extract(
    dataset: str,
    model: str,
    *,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[FeatureStore]:
    """Embed a dataset; return one sealed store per split, the training split first.

    What is up to date is not computed again; an interrupted extraction continues.

    Parameters
    ----------
    dataset : str
        Name, or ``"folder:PATH"``, ``"csv:PATH"``, ``"npz:PATH"``.
    model : str
        Name of the backbone.
    workspace : path, optional
        Where stores are kept; default: the current folder.
    progress : Progress
    **options
        As of ``featpipe extract``: ``split``, ``weights``, ``layer``, ``limit`` …

    Raises
    ------
    FeatpipeError
        If a name is unknown, an image or weights file cannot be read, the disk is full …
    """
    step = ExtractStep.from_mapping({"dataset": dataset, "model": model, **options})
    outcome = step.run(Context(Workspace.find(workspace), progress))
    return [FeatureStore(path) for path in outcome.paths]


def evaluate(
    method: str,
    train: FeatureStore,
    test: FeatureStore | None = None,
    *,
    workspace: str | os.PathLike[str] | None = None,
    jobs: int = -1,
    **options: Any,
) -> Result:
    """Train and test a method on stored features, and save the result in the workspace.

    Parameters
    ----------
    method : str
        ``"svm"``, ``"logistic"``, ``"knn"``, ``"centroid"`` or ``"zeroshot"``.
    train : FeatureStore
    test : FeatureStore, optional
        The dataset's own test rows; without it the protocol splits the rows of ``train``.
    workspace : path, optional
        Where results are kept; default: the current folder.
    jobs : int
        Worker processes; ``-1`` means one per core. Never changes a number.
    **options
        As of the command: ``protocol``, ``c``, ``policy``, ``train_per_class`` …

    Raises
    ------
    FeatpipeError
        If an option is wrong, or the rows cannot honestly train or test a classifier.
    """
    methods = {name: step for name, step in STEPS.items() if issubclass(step, EvaluationStep)}
    if method not in methods:
        raise UnknownNameError(
            f"There is no method named {method!r}.",
            expected=", ".join(methods),
            next_step=did_you_mean(method, methods).strip() or None,
        )
    stores = {"train": train.path, **({} if test is None else {"test": test.path})}
    step = methods[method].from_mapping({**stores, **options})
    outcome = step.run(Context(Workspace.find(workspace), jobs=jobs))
    return Result.load(outcome.paths[0])


def report(
    results: Sequence[Result],
    out: str | os.PathLike[str],
    *,
    workspace: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Write results as one self-contained HTML page; return its path.

    Parameters
    ----------
    results : sequence of Result
        Saved results.
    out : path
        Name of the report, without ending.
    workspace : path, optional
    **options
        As of ``featpipe report``: ``title``, ``gallery`` …
    """
    paths = [str(result.path) for result in results]
    step = ReportStep.from_mapping({"results": paths, "out": str(out), **options})
    return step.run(Context(Workspace.find(workspace))).paths[0]
