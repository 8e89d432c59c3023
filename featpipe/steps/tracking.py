"""Keep parameters, metrics and training curves in MLflow or TensorBoard, too.

The results of featpipe stay what they are; a tracker only copies from the outcomes of tasks. An
existing result is tracked too, so that a run's record is complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.errors import FeatpipeError
from featpipe.lazy import Lazy, check_installed
from featpipe.progress import Event
from featpipe.steps.base import Outcome

if TYPE_CHECKING:
    from featpipe.steps.plan import Plan

tracking, entities = Lazy("mlflow.tracking"), Lazy("mlflow.entities")
summary, plans = Lazy("tensorboard.summary"), Lazy("featpipe.steps.plan")

Keep = Callable[[Outcome], None]

_BATCH = 500  # MLflow takes at most 1000 entities at once


class Tracker:
    """A listener that keeps what every task with metrics has measured.

    ``open_store`` gets the name of an experiment and a default folder, and returns the function
    that keeps one outcome. A missing package or a store that cannot be opened is an error at once;
    a tracker that fails later says so and does not stop the run, whose results are safe without it.
    """

    def __init__(self, open_store: Callable[[str, Path], Keep], plan: Plan) -> None:
        self._note = plan.context.progress.note
        self._evaluated = {task.name for task in plan.tasks if "result" in task.step.makes}
        self._keep = open_store(plan.recipe.name, plan.context.workspace.data)

    def __call__(self, record: Event | Outcome) -> None:
        """Keep the outcome of a method, or that it failed."""
        if isinstance(record, Event) or record.task not in self._evaluated:
            return
        try:
            if record.succeeded or record.status == "failed":
                self._keep(record)
        except Exception as error:  # whatever a server or another package may raise
            self._note(f"not tracked: {record.task}: {error}")


def _open_mlflow(experiment: str, folder: Path) -> Keep:
    """Keep one experiment per recipe in MLflow, one run per evaluated method.

    Runs go to the workspace's ``data/mlruns`` unless ``MLFLOW_TRACKING_URI`` says otherwise.
    """
    check_installed("mlflow", "mlflow")
    metric, param, connect = entities.Metric, entities.Param, tracking.MlflowClient
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        # A folder needs no server and no database; MLflow 3 wants this confirmed.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (folder / "mlruns").resolve().as_uri()
    try:
        client: Any = connect(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else client.create_experiment(experiment)
    except Exception as error:
        what, got = "MLflow's store cannot be opened.", str(error).partition("\n")[0]
        hint = "correct MLFLOW_TRACKING_URI, or unset it to use a local folder"
        raise FeatpipeError(what, where=uri, got=got, next_step=hint) from error

    def keep(outcome: Outcome) -> None:
        """Make a run with the settings, the metrics, the curves and the result's file."""
        facts, tags = outcome.facts, {"featpipe.why": outcome.message}
        if outcome.succeeded:
            tags = {f"featpipe.{name}": facts[name] for name in ("key", "title")}
        run = str(client.create_run(number, run_name=outcome.task, tags=tags).info.run_id)
        if outcome.succeeded:
            now = int(time.time() * 1000)
            metrics = [metric(name, value, now, step) for name, step, value in points_of(outcome)]
            params = [param(name, str(value)[:500]) for name, value in facts["settings"].items()]
            client.log_batch(run, [], params)
            for start in range(0, len(metrics), _BATCH):
                client.log_batch(run, metrics[start : start + _BATCH])
            client.log_artifact(run, str(outcome.paths[0]))
        client.set_terminated(run, "FINISHED" if outcome.succeeded else "FAILED")

    return keep


def _open_tensorboard(experiment: str, folder: Path) -> Keep:
    """Keep one folder of event files per recipe and evaluated method, in ``data/tensorboard``."""
    check_installed("tensorboard", "tensorboard")
    open_writer = summary.Writer  # now, rather than after the first task

    def keep(outcome: Outcome) -> None:
        """Write the metrics and the curves of a result, once per result."""
        if not outcome.succeeded:
            return
        name, key = plans.file_part(outcome.task), outcome.facts["key"][:8]
        events = folder / "tensorboard" / experiment / name / key
        if events.exists():  # event files are only ever appended to: points would occur twice
            return
        writer = open_writer(str(events))
        for name, step, value in points_of(outcome):
            writer.add_scalar(name, value, step)
        writer.close()

    return keep


TRACKERS: dict[str, Callable[[Plan], Tracker]] = {
    "mlflow": partial(Tracker, _open_mlflow),
    "tensorboard": partial(Tracker, _open_tensorboard),
}


def points_of(outcome: Outcome) -> Iterator[tuple[str, int, float]]:
    """Yield the finite numbers of a result and its training: name, epoch (or 0) and value."""
    facts = outcome.facts
    ends = {f"accuracy_{end}": facts["accuracy"][end] for end in ("low", "high")}
    named = {"accuracy": facts["accuracy"]["value"], **ends}
    for name, value in _finite({**named, "metrics": facts["metrics"], "cost": facts["cost"]}):
        yield name, 0, value
    for position, epoch in enumerate(facts.get("history") or (), start=1):
        for name, value in _finite({"history": epoch}):
            if not name.endswith("/epoch"):
                yield name, int(epoch.get("epoch", position)), value


def _finite(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in nested mappings, with the names on the way to them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{below}", number) for below, number in _finite(value))
        elif isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            yield name, float(value)
