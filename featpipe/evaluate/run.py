"""Evaluate one method on stored features: splits → fits → predictions → Result."""

from __future__ import annotations

from pathlib import Path

from featpipe import fingerprint
from featpipe.datasets import slug
from featpipe.evaluate.methods import Evaluated, load_map, run_probe, run_zeroshot
from featpipe.evaluate.models import save_model
from featpipe.evaluate.protocol import make_splits, resolve
from featpipe.evaluate.result import build_result, complete_result, outcome_of, save_result
from featpipe.evaluate.select import select_stores
from featpipe.provenance import package_version
from featpipe.results import Result
from featpipe.steps.old import Context, EvaluationStep, Outcome, ProbeStep, ZeroshotStep
from featpipe.store import FeatureStore

EVALUATION_VERSION = 1  # raised when the same settings would give other numbers

# What changes no number, and the protocol, which stands there as what "auto" meant.
_NOT_IN_KEY = (
    "dataset", "model", "train", "test", "title", "force", "save_model", "protocol"
)  # fmt: skip


def run_evaluation(step: EvaluationStep, context: Context) -> Outcome:
    """Evaluate a method on the stores it means, unless the same result exists already."""
    train, test = select_stores(step, context)
    path = context.workspace.results / f"{result_name(step, train, test)}.json"
    if existing := up_to_date(step, path, context):
        return outcome_of(existing, "up to date")
    return outcome_of(evaluate(step, train, test, context, path), "done")


def up_to_date(step: EvaluationStep, path: Path, context: Context) -> Result | None:
    """Return the result at a path if it is all that the step asks for, else ``None``.

    A result is made again where its predictions or the model asked for are missing, or where it
    was asked for under another title.

    Raises
    ------
    ResultError
        If the result is damaged.
    """
    if step.force:
        return None
    wants_model = isinstance(step, ProbeStep) and step.save_model
    models = [_model_path(path, context)] if wants_model else []
    result = complete_result(path, *models)
    return result if result and result.settings["title"] == step.title else None


def evaluate(
    step: EvaluationStep,
    train: FeatureStore,
    test: FeatureStore | None = None,
    context: Context | None = None,
    path: Path | None = None,
) -> Result:
    """Train and test one method; the test rows are predicted once.

    Parameters
    ----------
    step : EvaluationStep
        The method with its settings: ``SvmStep()``, ``ZeroshotStep(policy="group")`` …
    train : FeatureStore
    test : FeatureStore, optional
        The dataset's own test rows; without it the protocol splits the rows of ``train``.
    context : Context, optional
    path : Path, optional
        Where to save the result (JSON), its predictions and its model; ``None`` saves nothing.

    Returns
    -------
    result : Result

    Raises
    ------
    FitError
        If the rows cannot honestly train or test a classifier.
    """
    context = context or Context()
    protocol, splits = make_splits(step.protocol, train, test, step.seed)
    if isinstance(step, ZeroshotStep):
        evaluated = run_zeroshot(step, splits, context)
    elif isinstance(step, ProbeStep):
        evaluated = run_probe(step, splits, context)
    else:
        raise TypeError(f"{type(step).__name__} describes no method")
    result, table = build_result(step, _key(step, train, test), protocol, evaluated, context)
    if path is not None:
        _save_model(result, path, evaluated, context)
        save_result(result, path, table)
    return result


def result_name(step: EvaluationStep, train: FeatureStore, test: FeatureStore | None) -> str:
    """Return the file name of a result: readable, and different for different numbers."""
    dataset = slug(train.manifest["dataset"]["name"])
    policy = f"-{step.policy}" if isinstance(step, ZeroshotStep) else ""
    model = train.manifest["backbone"]["model"]
    return f"{dataset}-{model}-{step.kind}{policy}-{_key(step, train, test)[:8]}"


def _key(step: EvaluationStep, train: FeatureStore, test: FeatureStore | None) -> str:
    settings = {k: v for k, v in step.settings().items() if k not in _NOT_IN_KEY}
    settings["protocol"], test = resolve(step.protocol, test)
    if isinstance(step, ZeroshotStep):
        settings["map"] = load_map(step, train if test is None else test).fingerprint
    return fingerprint.of_mapping(
        {
            "evaluation": EVALUATION_VERSION,
            "method": step.kind,
            "settings": settings,
            "stores": [store.fingerprint for store in (train, test) if store is not None],
            "scikit-learn": package_version("scikit-learn"),
        }
    )


def _save_model(result: Result, path: Path, evaluated: Evaluated, context: Context) -> None:
    if evaluated.model is not None and result.settings.get("save_model"):
        model = _model_path(path, context)
        result.cost["model_bytes"] = save_model(model, evaluated.model.estimator, result)
        result.files["model"] = model.name


def _model_path(path: Path, context: Context) -> Path:
    return context.workspace.models / f"{path.stem}.skops"
