"""Keep parameters, metrics and training curves in MLflow or TensorBoard besides.

The results of featpipe stay what they are; a tracker only copies from them. A result that was
there already is tracked too, so that a run's record is complete.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featpipe.errors import FeatpipeError, MissingExtraError
from featpipe.pipeline.process import Event
from featpipe.pipeline.records import FAILED, Record
from featpipe.pipeline.task import Task, file_part, gives_result
from featpipe.recipe import Recipe
from featpipe.evaluation.result import Result
from featpipe.steps.old import Context


def make_tracker(kind: str, recipe: Recipe, context: Context) -> Tracker:
    """Return a tracker.

    Parameters
    ----------
    kind : {"mlflow", "tensorboard"}
    recipe : Recipe
    context : Context
        MLflow's runs go to the workspace's ``data/mlruns`` unless ``MLFLOW_TRACKING_URI`` says
        otherwise, TensorBoard's event files to ``data/tensorboard``.

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    FeatpipeError
        If MLflow's store cannot be opened.
    """
    return {"mlflow": MlflowTracker, "tensorboard": TensorboardTracker}[kind](recipe, context)


class Tracker:
    """An observer that hears of every evaluated method once it has ended.

    A tracker that fails says so and does not stop the run, whose results are safe without it.
    """

    def __init__(self, context: Context) -> None:
        self._note = context.progress.note

    def started(self, task: Task, number: int, total: int) -> None:
        """Do nothing: what counts is in the result."""

    def event(self, task: Task, event: Event) -> None:
        """Do nothing: what counts is in the result."""

    def finished(self, record: Record, seconds_left: float | None) -> None:
        """Keep the result of a method, or that it failed."""
        if not gives_result(record.task.step):
            return
        try:
            if record.succeeded:
                self.keep(record.task, Result.load(record.paths[0]))
            elif record.status == FAILED:
                self.keep_failure(record)
        except Exception as error:  # whatever a server or another package may raise
            self._note(f"not tracked: {record.task.name}: {error}")

    def keep(self, task: Task, result: Result) -> None:
        """Keep one result."""
        raise NotImplementedError

    def keep_failure(self, record: Record) -> None:
        """Keep the failure of a task, where the tracker has a place for it."""


class MlflowTracker(Tracker):
    """One experiment per recipe, one run per evaluated method."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        super().__init__(context)
        try:
            from mlflow.tracking import MlflowClient  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtraError("mlflow", "mlflow") from None
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # A folder needs no server and no database; MLflow 3 wants to be told that it is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (context.workspace.root / "data" / "mlruns").resolve().as_uri()
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(recipe.name)
            self._experiment = (
                known.experiment_id if known else self._client.create_experiment(recipe.name)
            )
        except Exception as error:
            raise FeatpipeError(
                "MLflow's store cannot be opened.",
                where=uri,
                got=str(error).partition("\n")[0],
                next_step="correct MLFLOW_TRACKING_URI, or unset it to use a local folder",
            ) from error

    def keep(self, task: Task, result: Result) -> None:
        """Make a run with the settings, the metrics, the curves and the result's file."""
        from mlflow.entities import Metric, Param  # noqa: PLC0415 - an extra

        run = self._run(task, {"featpipe.key": result.key, "featpipe.title": result.title})
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in numbers_of(result).items()]
        metrics += [Metric(name, value, now, step) for name, step, value in curves_of(result)]
        params = [Param(name, str(value)[:500]) for name, value in result.settings.items()]
        for start in range(0, max(len(metrics), 1), 500):  # a batch holds at most 1000 entities
            batch = metrics[start : start + 500]
            self._client.log_batch(run, batch, params if start == 0 else [])
        self._client.log_artifact(run, str(result.path))
        self._client.set_terminated(run, "FINISHED")

    def keep_failure(self, record: Record) -> None:
        """Make a run that failed, with the reason."""
        run = self._run(record.task, {"featpipe.why": record.message})
        self._client.set_terminated(run, "FAILED")

    def _run(self, task: Task, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=task.name, tags=dict(tags))
        return str(run.info.run_id)


class TensorboardTracker(Tracker):
    """One folder of event files per recipe and evaluated method."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        super().__init__(context)
        try:
            from tensorboard import summary  # noqa: F401, PLC0415 - an extra
        except ImportError:
            raise MissingExtraError("tensorboard", "tensorboard") from None
        self._folder = context.workspace.root / "data" / "tensorboard" / recipe.name

    def keep(self, task: Task, result: Result) -> None:
        """Write the metrics and the curves of a result, once per result."""
        from tensorboard.summary import Writer  # noqa: PLC0415 - an extra

        folder: Path = self._folder / file_part(task.name) / result.key[:8]
        if folder.exists():  # event files are only ever added to: the points would stand twice
            return
        writer = Writer(str(folder))
        for name, value in numbers_of(result).items():
            writer.add_scalar(name, value, 0)
        for name, step, value in curves_of(result):
            writer.add_scalar(name, value, step)
        writer.close()


def numbers_of(result: Result) -> dict[str, float]:
    """Return the metrics and costs of a result that are single finite numbers."""
    accuracy = result.summary["accuracy"]
    named = {"accuracy": accuracy["value"]}
    named |= {f"accuracy_{end}": accuracy[end] for end in ("low", "high")}
    named |= dict(_flat("metrics", result.summary.get("metrics", {})))
    named |= dict(_flat("cost", result.cost))
    return {name: float(value) for name, value in named.items() if _finite(value)}


def curves_of(result: Result) -> Iterator[tuple[str, int, float]]:
    """Yield name, epoch and value of every number in the training histories of a result."""
    histories = result.extra.get("history") or []
    if histories and isinstance(histories[0], Mapping):
        histories = [histories]
    for number, history in enumerate(histories):
        prefix = "history" if len(histories) == 1 else f"history/{number}"
        for position, epoch in enumerate(history, start=1):
            step = int(epoch.get("epoch", position))
            for name, value in _flat(prefix, epoch):
                if _finite(value) and not name.endswith("/epoch"):
                    yield name, step, float(value)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}/{name}", value)
        else:
            yield f"{prefix}/{name}", value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
